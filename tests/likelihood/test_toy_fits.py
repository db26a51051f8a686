"""Batched toys: distributions, one by one against together, and the toy p-value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from selfcal.config.run import FitConfig
from selfcal.likelihood.fit import fit, goodness_of_fit
from selfcal.likelihood.stage import measure
from selfcal.likelihood.toy_fits import draw_toys, fit_toys, toy_goodness


@pytest.fixture(scope="module")
def measured(small_world):
    return measure(small_world.templates, FitConfig())


def test_a_toy_fitted_in_a_batch_is_the_same_as_fitted_alone(measured) -> None:
    model, theta = measured.model, torch.from_numpy(measured.result.best_fit)
    (toys,) = fit_toys(model, theta, 3, seed=5)
    counts, centre = draw_toys(model, theta, 3, torch.Generator().manual_seed(5))
    assert toys.passed.all()
    for t in range(3):
        alone = fit(model.with_centre(centre[t]), counts[t])
        np.testing.assert_allclose(toys.best_fit[t], alone.best_fit, atol=1e-4)
        assert float(toys.deviance[t]) == pytest.approx(alone.deviance, abs=1e-6)


def test_auxiliary_measurements_scatter_by_the_width_of_their_constraint(measured) -> None:
    model, theta = measured.model, torch.from_numpy(measured.result.best_fit)
    _, centre = draw_toys(model, theta, 2000, torch.Generator().manual_seed(2))
    chosen = model.constrained & ~model.fixed
    scaled = ((centre - theta) / model.width)[:, chosen]
    np.testing.assert_allclose(scaled.std(0), 1.0, atol=0.08)
    assert (centre[:, ~model.constrained] == model.centre[~model.constrained]).all()


def test_deviances_of_toys_follow_the_chi2_of_the_degrees_of_freedom(measured) -> None:
    model, result = measured.model, measured.result
    ndf = goodness_of_fit(model, result)["ndf"]
    theta = torch.from_numpy(result.best_fit)
    deviance = torch.cat([toys.deviance for toys in fit_toys(model, theta, 100, seed=3)])
    assert kstest(deviance.numpy(), chi2(ndf).cdf).pvalue > 0.01


def test_the_toy_p_value_agrees_with_chi2_and_sees_a_bad_fit(measured, small_world) -> None:
    model, result = measured.model, measured.result
    found = toy_goodness(model, result, 100, seed=3)
    assert found["toys"] + found["failed"] == 100
    expected = goodness_of_fit(model, result)["p_value"]
    assert abs(found["p_value"] - expected) < 4 * np.sqrt(0.25 / 100)
    from dataclasses import replace

    assert toy_goodness(model, replace(result, deviance=1e4), 20, seed=3)["p_value"] == pytest.approx(1 / 21)
