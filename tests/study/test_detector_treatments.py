"""Guessed, inferred and profiled detectors: what is exact between them, and whether each covers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.likelihood.coverage import coverage_table
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import certify
from selfcal.likelihood.impacts import hold
from selfcal.likelihood.stage import measure
from selfcal.study.detector_stage import ratios, treatments_json, treatments_text
from selfcal.study.detector_treatments import (
    detector_places,
    explained,
    treat_guessed,
    treat_profiled,
    treated_toys,
)
from tests.likelihood.conftest import Settings, draw_world, first_pt_bin

CONFIG = FitConfig()
LIGHT = 2


def with_modes(templates, size):
    """Two parameters of the detector: light jets move to tighter bins, charm jets less so."""
    pattern = np.linspace(-1, 1, templates.binning.n_bins)
    modes = {}
    for name, per_flavour in (("0", (0.02, 0.1, 0.5, 0.3)), ("1", (-0.01, 0.05, -0.2, 0.1))):
        moved = templates.calibrated * np.exp(size * np.array(per_flavour)[None, :, None, None] * pattern)
        total = templates.calibrated.sum(axis=-1, keepdims=True) / moved.sum(axis=-1, keepdims=True)
        modes[name] = moved * total
    return replace(templates, detector=modes)


def world(factor, size=1.0):
    """One pT bin of Asimov data, ``factor`` times the usual number of jets, with shifts of ``size``."""
    settings = Settings(asimov=True, simulation_size=10.0, data_factor=factor)
    return with_modes(first_pt_bin(draw_world(3, settings).templates), size)


@pytest.fixture(scope="module")
def usual():
    return world(1.0)


def test_the_detector_part_is_what_a_known_detector_takes_away(usual) -> None:
    measured = measure(usual, CONFIG)
    places = detector_places(measured.model)
    assert len(places) == 2
    theta = torch.from_numpy(measured.result.best_fit)[None]
    model = measured.model
    known = certify(Differentiator(hold(model, *places)), theta, model.observed[None], model.centre[None])
    jacobian = measured.factors.jacobian
    gone = jacobian @ (measured.result.covariance - known.covariance[0].numpy()) @ jacobian.T
    part = explained(measured.factors, measured.result, places)
    np.testing.assert_allclose(part, gone, rtol=1e-6, atol=1e-9 * np.abs(gone).max())
    assert np.linalg.eigvalsh(part).min() > -1e-12


def test_held_parameters_change_the_covariance_by_their_shifts_alone(usual) -> None:
    same_widths = CONFIG.model_copy(update={"residual_width_worth": None})
    guessed = treat_guessed(measure(usual, same_widths), 1)
    without = measure(replace(usual, detector={}), same_widths)
    np.testing.assert_allclose(guessed.factors.value, without.factors.value, rtol=1e-6)
    rest = guessed.factors.covariance - guessed.factors.group_covariance["detector"]
    np.testing.assert_allclose(rest, without.factors.covariance, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(np.diag(guessed.factors.group_covariance["detector"]), guessed.detector)


def test_data_that_say_nothing_leave_a_profiled_detector_as_wide_as_guessed() -> None:
    """The scale factor of light jets moves by the whole shift where hardly any data could oppose it."""
    few = world(0.003, 0.1)
    parts = {}
    for name, treated in (
        ("guessed", treat_guessed(measure(few, CONFIG), 1)),
        ("profiled", treat_profiled("profiled", few, CONFIG, 1, blind=False)),
    ):
        rows = treated.factors.rows
        chosen = [s for s, i in enumerate(treated.factors.measured) if rows[i].flavour == "light"]
        parts[name] = np.sqrt(treated.detector[chosen])
    np.testing.assert_allclose(parts["profiled"], parts["guessed"], rtol=0.05)


def test_data_narrow_a_profiled_detector_and_a_narrow_posterior_is_narrower() -> None:
    many = world(30.0)
    inferred = replace(
        many,
        detector={
            name: many.calibrated + 0.2 * (moved - many.calibrated) for name, moved in many.detector.items()
        },
    )
    found = {
        "guessed": treat_guessed(measure(many, CONFIG), 1),
        "inferred": treat_profiled("inferred", inferred, CONFIG, 1, blind=False),
        "profiled": treat_profiled("profiled", many, CONFIG, 1, blind=False),
    }
    table = treatments_json(found, {}, {})
    light = table["summary"]["light"]
    assert light["guessed"]["detector_ratio"] == 1
    assert light["inferred"]["detector_ratio"] < 0.25
    assert light["profiled"]["detector_ratio"] < 0.7
    assert light["inferred"]["smaller_by_30_percent"] == 1
    without = treatments_json({name: found[name] for name in ("guessed", "profiled")}, {}, {})
    assert without["toys"] == {"inferred": None}
    assert without["summary"]["light"]["inferred"] is None
    assert without["summary"]["light"]["profiled"] == light["profiled"]
    assert "inferred" not in treatments_text(without)
    text = treatments_text(table)
    assert text.count("\n") > len(table["rows"])
    assert "inferred: value" in text


def test_every_treatment_covers_and_a_forgotten_detector_does_not(usual) -> None:
    guessed = treat_guessed(measure(usual, CONFIG), 1)
    profiled = treat_profiled("profiled", usual, CONFIG, 1, blind=False)
    forgotten = replace(guessed, detector=np.zeros_like(guessed.detector))
    covered = {}
    for name, treated in (("guessed", guessed), ("profiled", profiled), ("forgotten", forgotten)):
        toys = treated_toys(treated, 200, 4)
        rows = coverage_table(toys, treated.factors.ratios, treated.theta)["rows"]
        light = [row for row in rows if row["flavour"] == "light" and row["working_point"] == 0.85]
        covered[name] = light[0]["coverage_68"]
    # 200 toys: ± 0.033
    assert covered["guessed"] == pytest.approx(0.683, abs=0.1)
    assert covered["profiled"] == pytest.approx(0.683, abs=0.1)
    assert covered["forgotten"] < 0.55


def test_medians_and_shares_of_rows() -> None:
    def row(flavour, judged, guessed, inferred):
        parts = {"guessed": guessed, "inferred": inferred}
        named = {name: {"value": 2.0, "detector": d, "total": 1.0} for name, d in parts.items()}
        return {"flavour": flavour, "judged": judged, **named}

    rows = [
        row("b", True, 0.2, 0.1),
        row("b", True, 0.2, 0.16),
        row("b", True, 0.2, 0.18),
        row("c", False, 1, 9),
    ]
    found = ratios(rows, "all", ["inferred"])
    assert found["rows"] == 3
    assert found["inferred"]["detector_ratio"] == pytest.approx(0.8)
    assert found["inferred"]["smaller_by_30_percent"] == pytest.approx(1 / 3)
    assert found["guessed"]["detector_rms"] == pytest.approx(0.1)
    assert ratios(rows, "c", ["inferred"]) == {"rows": 0}
