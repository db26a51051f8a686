"""The few numbers the report computes itself."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.figures.breakdown import variance_shares
from selfcal.report.figures.closure import significance
from selfcal.report.figures.correlation import correlation
from selfcal.report.figures.discriminants import chi_square, region_histograms
from selfcal.report.figures.impacts import impact_figures
from selfcal.report.figures.performance import training_figure
from selfcal.report.figures.scale_factors import continuous_bin_labels
from selfcal.report.figures.scans import rise_curve
from selfcal.report.fit_inputs import ImpactTable, ProfileScan
from selfcal.report.inputs import (
    IMPACTS,
    SCALE_FACTORS,
    ClosureRow,
    RunFiles,
    ScaleFactors,
    TaggerMetrics,
    covariance_of_rows,
)
from selfcal.report.sections import slug
from selfcal.report.style import plain_text, report_style
from selfcal.report.svg import inline_svg
from selfcal.report.tables import flatten


def closure_row(**changes: object) -> ClosureRow:
    row = {
        "region": "r", "held_out": True, "flavour": "b", "working_point": 0.7, "efficiency_data": 0.7,
        "efficiency_simulation": 0.7, "efficiency_calibrated": 0.7, "ratio_uncalibrated": 1.3,
        "ratio_calibrated": 0.9, "error": 0.03, "map_uncertainty": 0.04,
    }  # fmt: skip
    return ClosureRow.model_validate({**row, **changes})


def test_significance_has_the_map_uncertainty_only_after_calibration():
    assert significance(closure_row(), calibrated=False) == pytest.approx(10.0)
    assert significance(closure_row(), calibrated=True) == pytest.approx(2.0)
    assert significance(closure_row(error=0.0), calibrated=True) is None
    assert significance(closure_row(ratio_calibrated=None), calibrated=True) is None


def test_chi_square_leaves_out_empty_bins():
    data, expected = np.array([12.0, 0.0, 7.0]), np.array([10.0, 0.0, 9.0])
    assert chi_square(data, expected, np.array([6.0, 0.0, 7.0])) == pytest.approx((4 / 16 + 4 / 16, 2))


def test_correlation_of_a_product_of_spreads():
    spread = np.array([2.0, 0.5, 0.0])
    wanted = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert correlation(wanted * np.outer(spread, spread)) == pytest.approx(wanted)


def test_continuous_bins_run_from_failing_to_passing():
    wanted = ["100–85", "85–77", "77–60", "60–0"]
    assert continuous_bin_labels([0.60, 0.77, 0.85]) == wanted
    assert continuous_bin_labels([0.85, 0.77, 0.60]) == wanted


def test_epoch_trained_again_replaces_the_earlier_one():
    lines = [
        {"stage": "tagger", "epoch": 0, "train_loss": 9.0},
        {"stage": "tagger", "epoch": 0, "train_loss": 2.0, "validation_loss": 2.5},
        {"stage": "tagger", "epoch": 1, "train_loss": 1.0, "validation_loss": 1.5},
        {"stage": "joint", "epoch": 7, "train_loss": 100.0},
    ]
    with report_style():
        axes = training_figure(lines).figure.axes[0]
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves == {"total, training": [[1, 2.0], [2, 1.0]], "total, validation": [[1, 2.5], [2, 1.5]]}


def test_region_with_a_histogram_of_another_length_is_refused():
    arrays = {
        "edges": np.arange(4.0),
        "data/r": np.ones(3),
        "nominal/r/b": np.ones(3),
        "calibrated/r/b": np.ones(2),
    }
    with pytest.raises(DataError, match="2 bins"):
        region_histograms(arrays, "r")


def test_region_without_its_own_calibrated_variance_takes_the_nominal_one():
    arrays = {
        "edges": np.arange(3.0),
        "data/r": np.ones(2),
        "nominal/r/b": np.ones(2),
        "calibrated/r/b": np.ones(2),
    }
    arrays["nominal_variance/r"] = np.array([4.0, 9.0])
    found = region_histograms(arrays, "r")
    assert found.variance_after.tolist() == [4.0, 9.0]
    assert found.band_after.tolist() == [[-1.0, -2.0], [3.0, 4.0]]


def test_covariance_must_belong_to_its_rows():
    row = {
        "flavour": "b",
        "kind": "continuous",
        "bin": 0,
        "pt_gev": (20, 30),
        "abs_eta": (0, 2.5),
        "status": "measured",
    }
    content = {
        "tagger": "t",
        "flavours": ["b"],
        "working_points": [0.7],
        "rows": [{**row, "value": 1, "total": 1}],
    }
    good = ScaleFactors.model_validate({**content, "covariance": {"rows": [0], "matrix": [[2.0]]}})
    found = covariance_of_rows(good)
    assert found is not None
    assert found[0] == [0]
    assert found[1].tolist() == [[2.0]]
    for bad in ({"rows": [1], "matrix": [[2.0]]}, {"matrix": [[1.0, 0.0], [0.0, 1.0]]}):
        with pytest.raises(DataError, match="covariance of shape"):
            covariance_of_rows(ScaleFactors.model_validate({**content, "covariance": bad}))


def test_rejections_of_both_layouts_are_the_same():
    rows = [{"working_point": 0.7, "flavour": "c", "rejection": 8.0, "error": 0.4}]
    by_point = [{"working_point": 0.7, "threshold": 1.2, "c": {"rejection": 8.0, "rejection_error": 0.4}}]
    listed = TaggerMetrics.model_validate({"rejections": rows})
    assert TaggerMetrics.model_validate({"working_points": by_point}).rejections == listed.rejections


def test_flatten_joins_keys_and_keeps_plain_lists():
    content = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 3}], "f": {}}
    assert flatten(content) == [("a.b", 1), ("a.c", [1, 2]), ("d[0].e", 3), ("f", {})]


def test_plain_text_draws_every_letter_and_shortens():
    assert plain_text("cost $5$") == r"cost \$5\$"
    assert plain_text("a\x00b\n") == "a\ufffdb\ufffd"
    assert len(plain_text("x" * 100)) == 44


def test_slug_leaves_no_path():
    assert slug("../../etc/<b>") == "etc_b"
    assert slug("///") == "unnamed"


def test_inline_svg_escapes_prefixes_and_takes_the_colours_of_the_page():
    with report_style():
        figure = Figure(figsize=(2, 2))
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], clip_on=True)
        axes.set_title(plain_text("<script>alert(1)</script>"))
        svg = str(inline_svg(figure, "name", 'with "quotes" & <tags>'))
    assert "&lt;script&gt;" in svg
    assert "<script" not in svg
    assert "<style" not in svg
    assert "http" not in svg
    assert 'aria-label="with &quot;quotes&quot; &amp; &lt;tags&gt;"' in svg
    assert "var(--ink)" in svg
    assert "#0a0b0c" not in svg
    assert 'id="figure_1"' not in svg
    assert 'id="name-figure_1"' in svg
    assert "url(#name-" in svg


def test_variance_shares_add_up_and_leave_out_what_is_nothing(report):
    rows = RunFiles(report.path).read(SCALE_FACTORS, ScaleFactors).rows
    known = [row.model_copy(update={"syst": {**row.syst, "nothing": 1e-6}}) for row in rows if row.value]
    shares = variance_shares(known)
    assert set(shares) == {"statistics", "map", "composition", "mc_statistics"}
    assert sum(shares.values()) == pytest.approx(np.ones(len(known)))


def test_a_scan_that_is_a_parabola_stays_one_between_its_points():
    points = np.array([-3.0, -2, -1, -0.5, 0, 0.5, 1, 2, 3])
    scan = ProfileScan(
        row=0, points=(1 + 0.2 * points).tolist(), rise=(points**2).tolist(), best=1.0, sigma=0.2
    )
    fine, rise = rise_curve(scan)
    assert rise == pytest.approx(((fine - 1) / 0.2) ** 2, abs=1e-9)


def test_impacts_are_shown_for_the_measured_scale_factor_with_most_jets_near_77_percent(report):
    files = RunFiles(report.path)
    factors, table = files.read(SCALE_FACTORS, ScaleFactors), files.read(IMPACTS, ImpactTable)
    with report_style():
        figures = impact_figures(table, factors)
    assert [figure.name for figure in figures] == [f"impacts_{name}" for name in factors.flavours]
    chosen = [
        row for row in factors.rows if (row.flavour, row.working_point, row.status) == ("b", 0.77, "measured")
    ]
    best = max(chosen, key=lambda row: row.expected_passing or 0.0)
    assert f"pT {best.pt_gev[0]:g}–{best.pt_gev[1]:g} GeV" in figures[0].caption
    bars = [bar.get_width() for bar in figures[0].figure.axes[1].patches]
    assert bars[0] == pytest.approx(1.1 * 0.6 * (best.total or 0.0))
    assert bars[1] == pytest.approx(-0.4 * (best.total or 0.0))


def test_impacts_on_a_row_that_does_not_exist_are_refused(report):
    files = RunFiles(report.path)
    factors, table = files.read(SCALE_FACTORS, ScaleFactors), files.read(IMPACTS, ImpactTable)
    stray = table.model_copy(
        update={"scale_factors": [table.scale_factors[0].model_copy(update={"row": 999})]}
    )
    with pytest.raises(DataError, match="do not exist"):
        impact_figures(stray, factors)
