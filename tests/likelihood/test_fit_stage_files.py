"""A fit that did not converge leaves no scale factors behind, unless they are asked for by force."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.loading import load_run
from selfcal.config.tagger import TaggerConfig
from selfcal.errors import FitError
from selfcal.likelihood import fit as minimum
from selfcal.likelihood import stage
from selfcal.likelihood.build import MeasureFold
from selfcal.run.atomic import read_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])


@pytest.fixture
def context_of(tmp_path, monkeypatch, one_flavour):
    """A run whose templates are given; nothing of the fit itself is replaced."""
    templates = one_flavour(4500 * SHAPE, SHAPE, size=2e4)
    fold = MeasureFold({}, {}, templates.binning, TaggerConfig())
    monkeypatch.setattr(stage, "load_calibration", lambda folder: type("Derived", (), {"regions": ()}))
    monkeypatch.setattr(stage, "measure_fold", lambda context, regions: fold)
    monkeypatch.setattr(stage, "build_templates", lambda fold, calibration: templates)

    def make(force: bool) -> RunContext:
        for role, prior in (("data", "composition: {}\n"), ("simulation", "")):
            card = f"name: {role}\nrole: {role}\nregion: ttbar_emu\nfiles: [{role}.h5]\n{prior}"
            write_text(tmp_path / f"{role}.yaml", card)
        settings = f"force: {str(force).lower()}, free_flavours: [b], goodness_toys: 0, impacts_refitted: 0"
        cards = "data: {cards: [data.yaml, simulation.yaml]}"
        write_text(tmp_path / "run.yaml", f"name: r\n{cards}\nfit: {{{settings}}}\n")
        loaded = load_run([str(tmp_path / "run.yaml")], ())
        return RunContext(
            loaded.config, loaded.cards, RunDirectory(tmp_path / "run"), card_folders=loaded.card_folders
        )

    return make


def test_without_convergence_the_exit_code_is_4_and_no_file_is_written(context_of, monkeypatch) -> None:
    monkeypatch.setattr(minimum, "GRADIENT_MAX", 0.0)
    context = context_of(force=False)
    with pytest.raises(FitError) as caught:
        stage.run_fit(context, blind=True)
    assert caught.value.exit_code == 4
    assert not list(context.directory.path.rglob("*.json"))


def test_by_force_they_are_written_and_marked(context_of, monkeypatch) -> None:
    monkeypatch.setattr(minimum, "GRADIENT_MAX", 0.0)
    context = context_of(force=True)
    stage.run_fit(context, blind=True)
    results = context.directory.results
    assert read_json(results / "scale_factors.json")["forced"] is True
    assert read_json(results / "fit.json")["certificate"]["converged"] is False


def test_a_converged_fit_is_not_marked(context_of) -> None:
    context = context_of(force=False)
    stage.run_fit(context, blind=True)
    assert read_json(context.directory.results / "scale_factors.json")["forced"] is False
