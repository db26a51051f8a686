"""The chapters about efficiencies of single jets and about the network of the profile likelihood."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from selfcal.report.figures.learnt import efficiency_figure, profile_figure
from selfcal.report.inputs import ScaleFactors
from selfcal.report.learnt import (
    EfficiencyClosure,
    ProfileLikelihood,
    by_distance,
    efficiency_chi2_table,
    profile_tables,
)
from selfcal.report.style import report_style


@pytest.fixture
def closure() -> EfficiencyClosure:
    """Two regions that taught and one held out; two bins of the distance, the last without end."""
    rows, chi2 = [], []
    for region, held_out, size in (("r", False, 100.0), ("s", False, 300.0), ("t", True, 1000.0)):
        for flavour, efficiency in (("b", 0.7), ("light", 0.1)):
            for point, factor in ((0.77, 1.0), (0.6, 0.5)):
                for low, high, lost in ((0.0, 0.8, 0.8), (0.8, None, 1.0)):
                    passing = size * efficiency * factor * lost
                    rows.append(
                        {
                            "region": region,
                            "held_out": held_out,
                            "flavour": flavour,
                            "working_point": point,
                            "variable": "delta_r",
                            "low": low,
                            "high": high,
                            "jets": size,
                            "passing": passing,
                            "network": 1.01 * passing,
                            "network_uncertainty": 2.0,
                            "network_error": 3.0,
                            "grid": size * efficiency * factor,
                        }
                    )
                place = {"region": region, "held_out": held_out, "flavour": flavour}
                verdict = {
                    "network_chi2": 2.5,
                    "network_p_value": 0.3,
                    "grid_chi2": 40.0,
                    "grid_p_value": 1e-8,
                }
                chi2.append({**place, "working_point": point, "variable": "delta_r", "ndf": 2, **verdict})
    content = {"simulation": "nominal", "flavours": ["b", "light", "tau"], "working_points": [0.77, 0.6]}
    return EfficiencyClosure.model_validate(content | {"bags": 10, "rows": rows, "chi2": chi2})


@pytest.fixture
def profile() -> ProfileLikelihood:
    numbers = {"mean": 0.01, "largest": 0.2, "parabola_mean": 0.5, "parabola_largest": 9.0}
    roots = {"root_mean": 0.001, "root_largest": 0.02}
    accuracy = {"rise_max": 12.0, "points": 3, "beyond": 1, "unreached": 2, **numbers, **roots}
    judged = {"exact": [1.0, 4.0, 9.0], "network": [1.01, 4.0, 9.2], "parabola": [1.1, 5.0, 18.0]}
    inputs = [{"row": 1, "best_fit": 0.97, "uncertainty": 0.02}]
    content = {"inputs": inputs, "level": 0.9973, "points": 60, "accuracy": accuracy, "judged": judged}
    return ProfileLikelihood.model_validate(content)


def test_regions_that_taught_are_added_up_and_held_out_ones_left_out(closure):
    near, far = by_distance(closure, "b")
    assert (near["low"], near["jets"]) == (0.0, 400.0)
    assert near["counted"] == pytest.approx(0.56)
    assert near["network"] == pytest.approx(1.01 * 0.56)
    assert near["grid"] == pytest.approx(0.7)
    # Networks are shared by the regions, counting is not.
    assert near["band"] == pytest.approx(4 / 400)
    assert near["error"] == pytest.approx((18**0.5) / 400)
    assert far["counted"] == pytest.approx(0.7)
    assert by_distance(closure, "tau") == []


def test_the_table_has_the_working_point_shown(closure):
    assert closure.shown == 0.77
    table = efficiency_chi2_table(closure)
    assert len(table.rows) == 6
    assert {row[2].text for row in table.rows} == {"same processes", "held out"}
    assert "77" in table.caption


def test_figures_show_every_flavour_with_jets_and_every_point(closure, profile):
    with report_style():
        drawn = efficiency_figure(closure)
        assert isinstance(drawn.figure, Figure)
        assert [axes.get_title(loc="right") for axes in drawn.figure.axes] == ["b jets", "light jets"]
        axes = profile_figure(profile).figure.axes[0]
    network = next(line for line in axes.get_lines() if line.get_label() == "network")
    assert network.get_xdata().tolist() == [1.0, 4.0, 9.0]
    assert network.get_ydata() == pytest.approx([0.01, 0.0, 0.2])


def test_tables_of_the_profile_name_inputs_and_errors(profile):
    rows = [
        {
            "flavour": flavour,
            "kind": "working_point",
            "working_point": 0.77,
            "value": 0.97,
            "total": 0.02,
            "pt_gev": (20, 40),
            "abs_eta": (0, 2.5),
            "status": "measured",
        }
        for flavour in ("b", "c")
    ]
    content = {"tagger": "t", "flavours": ["b", "c"], "working_points": [0.77], "rows": rows}
    inputs, errors = profile_tables(profile, ScaleFactors.model_validate(content))
    assert [cell.text for cell in inputs.rows[0]] == ["c", "77\u00a0%", "20–40", "0–2.5", "0.970", "0.020"]
    assert [row[2].value for row in errors.rows] == [0.2, 9.0, 0.02]
    assert "12.0" in errors.caption
