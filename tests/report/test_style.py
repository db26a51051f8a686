"""Styles of experiments: the name above the figures, and the word "Simulation" where it is true."""

from __future__ import annotations

import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from selfcal.report.comparison import compare_runs
from selfcal.report.figures.scale_factors import _limits
from selfcal.report.fit_inputs import Fit
from selfcal.report.headline import headline
from selfcal.report.html import Tile
from selfcal.report.inputs import COMPOSITION, FIT, SCALE_FACTORS, Composition, RunFiles, ScaleFactors
from selfcal.report.style import experiment_label, report_style
from selfcal.run.atomic import read_json, write_json, write_text


def label(style: str, *, simulated: bool) -> str:
    """What stands above the axes on the left."""
    with report_style(style, simulated=simulated):
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        experiment_label(axes)
        figure.canvas.draw()
    return " ".join(text.get_text() for text in axes.texts if text.get_text())


@pytest.mark.parametrize(("style", "name"), [("neutral", "selfcal"), ("atlas", "ATLAS"), ("cms", "CMS")])
def test_the_word_simulation_is_there_unless_data_are_shown(style, name):
    assert label(style, simulated=True).split() == [name, "Simulation"]
    assert label(style, simulated=False).split() == [name]


def test_a_style_ends_with_its_block():
    before = dict(rcParams)
    with report_style("cms", simulated=False):
        assert rcParams["pdf.fonttype"] == 42
    assert dict(rcParams) == before
    assert label("neutral", simulated=True).startswith("selfcal")


def test_data_are_shown_where_a_run_is_neither_blinded_nor_of_pseudo_data(tmp_path, write_run):
    files = RunFiles(write_run(tmp_path / "run", small=True))
    assert not files.shows_data()
    (files.path / "results/closure.json").unlink()
    assert files.shows_data()
    content = read_json(files.path / "results/scale_factors.json")
    write_json(files.path / "results/scale_factors.json", content | {"blinded": True})
    assert not files.shows_data()


def test_the_style_is_that_of_the_configuration(tmp_path, write_run):
    one, two = (write_run(tmp_path / name, small=True) for name in ("one", "two"))
    assert RunFiles(one).style() == "neutral"
    for run in (one, two):
        write_text(run / "config.resolved.yaml", "name: x\nreport: {style: cms}\n")
    assert ">CMS<" in compare_runs(one, two, tmp_path / "both")[-1].read_text()
    write_text(one / "config.resolved.yaml", "name: x\nreport: {style: atlas}\n")
    assert ">selfcal<" in compare_runs(one, two, tmp_path / "different")[-1].read_text()
    write_text(one / "config.resolved.yaml", "[broken")
    assert RunFiles(one).style() == "neutral"


def test_a_blinded_run_has_no_verdict_of_its_fit_and_shows_whole_bands(tmp_path, write_run):
    files = RunFiles(write_run(tmp_path / "run", small=True))
    factors, fit = files.read(SCALE_FACTORS, ScaleFactors), files.read(FIT, Fit)

    def tile(blinded: bool) -> Tile:
        shown = headline(factors.model_copy(update={"blinded": blinded}), None, fit, None, None, ())
        return next(one for one in shown.tiles if one.label == "Goodness of fit")

    assert tile(blinded=True).number == "–"
    assert tile(blinded=False).number != "–"

    row = next(row for row in factors.rows if row.value is not None)
    blinded = row.model_copy(update={"value": 1.0, "total": 0.4, "truth": None})
    low, high = _limits([blinded])
    assert low < 0.6
    assert high > 1.4


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({}, ""),
        ({3: 2.9}, ""),
        ({3: 3.1, 6: -4.2}, "A fitted fraction more than 3 prior widths away from its prior: 2 of 8"),
    ],
)
def test_fractions_far_from_their_priors_are_pointed_out(tmp_path, write_run, widths, said):
    files = RunFiles(write_run(tmp_path / "run", small=True))
    composition = files.read(COMPOSITION, Composition)
    rows = [
        row.model_copy(update={"fitted": row.prior + widths.get(index, 0.5) * row.prior_uncertainty})
        for index, row in enumerate(composition.rows)
    ]
    composition = composition.model_copy(update={"rows": rows})
    shown = headline(files.read(SCALE_FACTORS, ScaleFactors), None, None, None, composition, ())
    warned = [text for text in shown.warnings if "prior" in text]
    assert len(warned) == bool(said)
    if said:
        worst = rows[6]
        assert warned[0].startswith(said)
        assert f"most of all {worst.flavour} jets of {worst.region} (-4.2)" in warned[0]
