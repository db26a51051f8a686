"""Profile likelihoods: closed forms, and one way of holding a parameter against the other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.errors import FitError
from selfcal.likelihood.fit import fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.impacts import hold, impacts, strongest
from selfcal.likelihood.profile import scan
from selfcal.likelihood.stage import scans


def poisson_model(count: float) -> HistFactory:
    """One bin with expectation 100 μ."""
    modifier = {"name": "mu", "type": "normfactor", "data": None}
    sample = {"name": "s", "data": [100.0], "modifiers": [modifier]}
    return HistFactory(
        {
            "channels": [{"name": "c", "samples": [sample]}],
            "observations": [{"name": "c", "data": [count]}],
            "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
            "version": "1.0.0",
        }
    )


def test_a_counting_experiment_has_the_closed_form_scan() -> None:
    model = poisson_model(81.0)
    found = scan(model, fit(model), lambda theta: theta[0])
    expected = 2 * (100 * found.points - 81 - 81 * np.log(100 * found.points / 81))
    np.testing.assert_allclose(found.rise, expected, rtol=1e-6, atol=1e-9)
    assert found.sigma == pytest.approx(0.09)
    # Poisson intervals reach further above than below.
    low, high = found.interval()
    assert 0 < found.best - low < found.sigma < high - found.best


def test_a_scan_ends_where_the_parameters_cannot_follow() -> None:
    """Four jets: 3 σ below the best fit the expectation would be negative."""
    model = poisson_model(4.0)
    found = scan(model, fit(model), lambda theta: theta[0])
    assert found.points[0] == pytest.approx(0.02)
    assert found.points[-1] == pytest.approx(0.10)
    expected = 2 * (100 * found.points - 4 - 4 * np.log(25 * found.points))
    np.testing.assert_allclose(found.rise, expected, rtol=1e-6, atol=1e-9)


def test_a_held_parameter_gives_the_same_minimum_as_a_fit_without_it(measured) -> None:
    model, result = measured.model, measured.result
    index = strongest(impacts(model, result, measured.factors), measured.factors, 1)[0]
    found = scan(model, result, lambda theta: theta[index], widths=(-2.0, 1.0))
    for point, rise in zip(found.points, found.rise, strict=True):
        start = torch.from_numpy(result.best_fit).clone()
        start[index] = point
        held = fit(hold(model, index), start=start)
        assert rise == pytest.approx(held.deviance - result.deviance, abs=1e-5)


def test_a_scale_factor_rises_by_one_at_one_sigma(measured) -> None:
    """For a row with many jets the profile is a parabola of the quoted width."""
    factors = measured.factors
    s = int(np.argmax(factors.expected_passing))
    found = scan(
        measured.model,
        measured.result,
        lambda theta: factors.ratios.values(theta)[s],
        widths=(-2.0, -1.0, 1.0, 2.0),
    )
    # The part of σ from ε⁰'s own fluctuation is outside of the likelihood.
    inside = factors.jacobian[s] @ measured.result.covariance @ factors.jacobian[s]
    assert found.sigma == pytest.approx(np.sqrt(inside))
    np.testing.assert_allclose(found.rise[[1, 3]], 1.0, rtol=0.05)
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(found.sigma, rel=0.02)


def test_scans_of_a_working_point_are_written_for_every_row_that_has_it(measured) -> None:
    config = FitConfig(scanned_working_points=(0.85,))
    content = json.loads(json.dumps(scans(measured, config), allow_nan=False))
    rows = [measured.factors.rows[entry["row"]] for entry in content["scans"]]
    assert [(row.flavour, row.working_point) for row in rows] == [
        (flavour, 0.85) for flavour in ("b", "c", "light", "tau")
    ]
    for entry in content["scans"]:
        assert entry["rise"][len(entry["rise"]) // 2] == 0
        assert min(entry["rise"]) >= -1e-6
        low, high = entry["interval"]
        assert low < entry["best"] < high
        assert (high - low) / 2 == pytest.approx(entry["sigma"], rel=0.3)


def test_a_working_point_that_is_not_measured_cannot_be_scanned() -> None:
    with pytest.raises(ValueError, match="not among 'working_points'"):
        FitConfig(scanned_working_points=(0.5,))


def test_no_point_of_the_scan_is_below_the_best_fit(measured) -> None:
    factors = measured.factors
    for s in (0, len(factors.value) - 1):
        found = scan(
            measured.model, measured.result, lambda theta, s=s: factors.ratios.values(theta)[s], (-1.0, 1.0)
        )
        assert (found.rise >= -1e-6).all()
        assert np.isfinite(found.interval()).any()


def test_a_quantity_that_nothing_changes_is_refused(measured) -> None:
    with pytest.raises(FitError, match="cannot be scanned"):
        scan(measured.model, measured.result, lambda theta: 0 * theta[0])


def test_a_scan_whose_first_point_cannot_be_reached_is_an_error() -> None:
    model = poisson_model(81.0)
    with pytest.raises(FitError):
        scan(model, fit(model), lambda theta: theta[0], widths=(-30.0, 1.0))


def test_a_scan_has_points_at_half_one_two_and_three_sigma_on_both_sides() -> None:
    model = poisson_model(400.0)
    found = scan(model, fit(model), lambda theta: theta[0])
    widths = (found.points - found.best) / found.sigma
    assert widths == pytest.approx([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3])
