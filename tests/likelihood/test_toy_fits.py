"""Batched toys: distributions, one by one against together, and the toy p-value."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from selfcal.likelihood import toy_fits
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import fit, goodness_of_fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.toy_fits import draw_toys, fit_batch, fit_toys, toy_goodness


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
    assert toy_goodness(model, replace(result, deviance=1e4), 20, seed=3)["p_value"] == pytest.approx(1 / 21)


@pytest.fixture
def everything(workspaces) -> HistFactory:
    """Every modifier at once, Poisson constraints among them."""
    return HistFactory(workspaces.everything())


def cut(fits, first: int, last: int):
    names = [field.name for field in fields(fits) if field.name != "rescued"]
    return replace(fits, **{name: getattr(fits, name)[first:last] for name in names})


def in_sigma(first, second) -> float:
    sigma = torch.diagonal(second.covariance, dim1=1, dim2=2).sqrt()
    difference = (first.best_fit - second.best_fit).abs()
    return float(torch.where(sigma > 0, difference / sigma.clamp_min(1e-12), difference).max())


def test_poisson_auxiliary_measurements_are_counts(everything) -> None:
    model = everything
    _, centre = draw_toys(model, model.start, 4000, torch.Generator().manual_seed(1))
    chosen = model.poisson & ~model.fixed
    counts = centre[:, chosen] * model.width[chosen] ** -2
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(counts.var(0) / counts.mean(0), torch.ones_like(counts[0]), rtol=0.1, atol=0)


def test_every_toy_is_certified_and_batches_do_not_matter(everything) -> None:
    model, differentiator = everything, Differentiator(everything)
    counts, centre = draw_toys(model, model.start, 20, torch.Generator().manual_seed(2))
    whole = fit_batch(differentiator, model.start, counts, centre)
    assert whole.failed == 0
    assert whole.rescued == 0
    assert whole.edm.max() < 1e-8
    assert whole.gradient_in_sigma.max() < 1e-3
    part = fit_batch(differentiator, model.start, counts[:7], centre[:7])
    rest = fit_batch(differentiator, model.start, counts[7:], centre[7:])
    assert in_sigma(part, cut(whole, 0, 7)) < 1e-4
    assert in_sigma(rest, cut(whole, 7, 20)) < 1e-4


def test_a_toy_without_minimum_is_counted_and_leaves_the_others_alone(everything) -> None:
    model, differentiator = everything, Differentiator(everything)
    counts, centre = draw_toys(model, model.start, 3, torch.Generator().manual_seed(3))
    good = fit_batch(differentiator, model.start, counts, centre)
    # An infinite auxiliary measurement: this toy has no minimum.
    broken = centre.clone()
    broken[1, model.index["fake_error[0]"]] = torch.inf
    fits = fit_batch(differentiator, model.start, counts, broken)
    assert fits.failed == 1
    assert fits.passed.tolist() == [True, False, True]
    assert fits.best_fit[1].isnan().all()
    torch.testing.assert_close(fits.best_fit[[0, 2]], good.best_fit[[0, 2]], rtol=1e-10, atol=1e-12)


def test_what_fisher_scoring_leaves_is_rescued(everything, monkeypatch) -> None:
    model, differentiator = everything, Differentiator(everything)
    counts, centre = draw_toys(model, model.start, 2, torch.Generator().manual_seed(4))
    good = fit_batch(differentiator, model.start, counts, centre)
    original = toy_fits.minimise

    def impatient(*arguments):
        return original(*arguments, iterations_max=1)

    monkeypatch.setattr(toy_fits, "minimise", impatient)
    rescued = fit_batch(differentiator, model.start, counts, centre)
    assert rescued.failed == 0
    assert rescued.rescued == 2
    assert in_sigma(rescued, good) < 1e-4
