"""Several quantities held at once: closed forms, derivatives, and agreement with the scan of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from selfcal.likelihood.constrained import constrained_minima
from selfcal.likelihood.fit import fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.profile import scan


def counting(counts: list[float]) -> HistFactory:
    """Bins with expectation 100 μ_i, a factor of each its own."""

    def channel(i: int) -> dict:
        modifier = {"name": f"mu{i}", "type": "normfactor", "data": None}
        return {"name": f"c{i}", "samples": [{"name": "s", "data": [100.0], "modifiers": [modifier]}]}

    return HistFactory(
        {
            "channels": [channel(i) for i in range(len(counts))],
            "observations": [{"name": f"c{i}", "data": [count]} for i, count in enumerate(counts)],
            "measurements": [{"name": "m", "config": {"poi": "mu0", "parameters": []}}],
            "version": "1.0.0",
        }
    )


def poisson_rise(value: np.ndarray, count: float) -> np.ndarray:
    return 2 * (100 * value - count - count * np.log(100 * value / count))


def hold(model: HistFactory, quantities, values, eta_size: int = 0):
    rows = torch.tensor(values, dtype=torch.float64)
    start = torch.from_numpy(fit(model).best_fit).expand(len(rows), -1)
    scale = torch.full((rows.shape[1],), 0.1, dtype=torch.float64)
    eta = torch.zeros(len(rows), eta_size, dtype=torch.float64)
    return constrained_minima(model, model.observed, quantities, rows, start, eta, scale)


def test_independent_counts_add_up_and_others_stay_at_their_best_fit() -> None:
    model = counting([81.0, 25.0, 49.0])
    values = np.array([[0.7, 0.3], [0.81, 0.25], [1.0, 0.2]])
    found = hold(model, lambda theta, _: theta[:2], values)
    assert found.converged.all()
    expected = poisson_rise(values[:, 0], 81.0) + poisson_rise(values[:, 1], 25.0)
    np.testing.assert_allclose(found.deviance, expected, atol=1e-6)
    np.testing.assert_allclose(found.theta[:, 2], 0.49, atol=1e-6)
    slopes = np.stack([200 - 162 / values[:, 0], 200 - 50 / values[:, 1]], axis=1)
    np.testing.assert_allclose(-2 * found.multiplier.numpy(), slopes, atol=1e-4)


def test_a_fluctuation_outside_of_the_data_widens_the_profile() -> None:
    """ln q = ln μ + 0.2 η: the minimum over η, by a search in one dimension."""
    model = counting([64.0])

    def logarithm(theta: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        return theta[:1].log() + 0.2 * eta

    values = np.log([[0.4], [0.64], [0.9]])
    found = hold(model, logarithm, values, eta_size=1)
    for value, rise in zip(values[:, 0], found.deviance, strict=True):
        best = minimize_scalar(
            lambda eta, at=value: poisson_rise(np.exp(at - 0.2 * eta), 64.0) + eta**2,
            bounds=(-6, 6),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert float(rise) == pytest.approx(best.fun, abs=1e-6)
    assert float(found.deviance[0]) < poisson_rise(np.array(0.4), 64.0)


def test_values_that_cannot_be_reached_are_said_and_disturb_no_other() -> None:
    model = counting([4.0, 9.0])
    found = hold(model, lambda theta, _: theta, [[0.05, 0.1], [-0.2, 0.1], [0.03, 0.08]])
    assert found.converged.tolist() == [True, False, True]
    expected = poisson_rise(np.array([0.05, 0.03]), 4.0) + poisson_rise(np.array([0.1, 0.08]), 9.0)
    np.testing.assert_allclose(found.deviance[found.converged], expected, atol=1e-6)


def test_two_held_where_one_puts_the_other_give_the_scan_of_one(measured) -> None:
    """Along the profile of the first, the second pulls nowhere: its multiplier vanishes."""
    ratios, model, result = measured.factors.ratios, measured.model, measured.result
    rows = [0, 5]
    profiled = scan(model, result, lambda theta: ratios.values(theta)[rows[0]], widths=(-1.0, 1.0))
    first = torch.from_numpy(profiled.points[[0, 2]])[:, None]
    start = torch.from_numpy(result.best_fit).expand(2, -1)
    none, scale = start.new_zeros(2, 0), torch.full((2,), profiled.sigma, dtype=torch.float64)

    def held(count: int, values: torch.Tensor):
        return constrained_minima(
            model,
            model.observed,
            lambda theta, _: ratios.values(theta)[rows[:count]],
            values,
            start,
            none,
            scale[:count],
        )

    one = held(1, first)
    second = torch.stack([ratios.values(theta)[rows[1]] for theta in one.theta])[:, None]
    two = held(2, torch.cat([first, second], dim=1))
    np.testing.assert_allclose(one.deviance - result.deviance, profiled.rise[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(two.deviance, one.deviance, atol=1e-5)
    assert (two.multiplier[:, 1].abs() < 1e-2 * two.multiplier[:, 0].abs()).all()


def test_too_few_iterations_leave_a_point_without_a_value(monkeypatch) -> None:
    monkeypatch.setattr("selfcal.likelihood.constrained.ITERATIONS_MAX", 1)
    found = hold(counting([81.0, 25.0]), lambda theta, _: theta[:1], [[0.5], [0.81]])
    assert found.converged.tolist() == [False, True]
    assert found.deviance[0] == np.inf
    assert float(found.deviance[1]) == pytest.approx(0.0, abs=1e-9)
