"""Where p(s | theta) is Gaussian the posterior is known: the exact density finds it, a learnt one too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from selfcal.config.inference import NeuralConfig
from selfcal.errors import FitError
from selfcal.sbi.jet_density import JetRows, train_density
from selfcal.sbi.neural_inference import combine
from selfcal.sbi.set_posterior import calibration_summary
from selfcal.sbi.unbinned_likelihood import UnbinnedFit, UnbinnedLikelihood, fit_unbinned, spectrum_weights

RESPONSE = np.array([[1.0, 0.3], [-0.2, 0.8]])
"""s ~ N(A θ + b_f, 1)"""
EXPERIMENTS = 120
OFFSET = np.array([[0.0, 0.0], [3.0, -2.0]])


def rows_at(u, number, seed, flavour_share=0.0):
    """Jets of two flavours; ``u``: one detector, or one for each jet."""
    generator = np.random.default_rng(seed)
    theta = np.broadcast_to(u, (number, 2)).astype(np.float64)
    flavour = (generator.random(number) < flavour_share).astype(np.int64)
    summaries = theta @ RESPONSE.T + OFFSET[flavour] + generator.normal(size=(number, 2))
    return JetRows(
        summaries,
        generator.normal(size=(number, 2)),
        np.zeros(number, np.int64),
        flavour,
        np.ones(number),
        theta,
        np.arange(number, dtype=np.uint64),
    )


@dataclass(frozen=True)
class GaussianDensity:
    """The law itself."""

    def log_prob(self, summaries, kinematics, region, flavour, theta):
        mean = theta @ torch.from_numpy(RESPONSE.T) + torch.from_numpy(OFFSET)[flavour]
        return -0.5 * ((summaries - mean) ** 2).sum(1) - np.log(2 * np.pi)


def likelihood_at(rows, density, fractions=(1.0, 0.0), multiplicity=(0.0, 0.0)):
    return UnbinnedLikelihood(
        density,
        rows,
        np.ones((len(rows), 2)),
        np.array([fractions]),
        np.full((1, 2), 0.2),
        np.array(multiplicity),
    )


def exact_posterior(rows):
    precision = len(rows) * RESPONSE.T @ RESPONSE + np.eye(2)
    covariance = np.linalg.inv(precision)
    return covariance @ RESPONSE.T @ rows.summaries.sum(axis=0), covariance


def test_the_exact_density_gives_the_exact_posterior():
    rows = rows_at([0.7, -1.2], 900, seed=1)
    fit = fit_unbinned(likelihood_at(rows, GaussianDensity()), modelling_error=0.0)
    mean, covariance = exact_posterior(rows)
    assert fit.best[:2] == pytest.approx(mean, abs=0.03 * np.sqrt(covariance.diagonal().min()))
    assert np.allclose(fit.covariance[:2, :2], covariance, rtol=1e-8)
    assert np.allclose(fit.modelling, 0)
    assert fit.covariance[2:, 2:] == pytest.approx(np.eye(3), abs=1e-9)


def test_derivatives_are_those_of_the_log_density():
    rows = rows_at([0.2, 0.4], 600, seed=2, flavour_share=0.3)
    likelihood = likelihood_at(rows, GaussianDensity(), (0.7, 0.3), (0.5, 0.0))
    x = np.random.default_rng(1).normal(size=likelihood.dimension)
    found = likelihood.evaluate(x)
    at = torch.from_numpy(x)
    assert found.value == pytest.approx(-float(likelihood.log_density(at)), rel=1e-12)
    slope = torch.autograd.functional.jacobian(likelihood.log_density, at).numpy()
    assert np.allclose(found.gradient, -slope, rtol=1e-9, atol=1e-9)
    second = torch.autograd.functional.hessian(likelihood.log_density, at).numpy()
    assert np.allclose(likelihood.hessian(x), -second, rtol=1e-9, atol=1e-8)
    mapped = found.scores @ likelihood.embedding(0).numpy()
    assert np.allclose(mapped.sum(axis=0) - x, slope, rtol=1e-9, atol=1e-9)
    assert np.allclose(found.information, mapped.T @ mapped + np.eye(len(x)), rtol=1e-9)


def test_a_multiplicity_that_looks_like_a_parameter_takes_its_share():
    """With width m the parameter's posterior is that of a prior of variance 1 + m², shared 1 : m²."""
    rows = rows_at([1.5, 0.0], 400, seed=3)
    free = fit_unbinned(likelihood_at(rows, GaussianDensity(), multiplicity=(1.5, 0.0)), 0.0)
    total = free.best[0] + 1.5 * free.best[-1]
    assert free.best[0] / total == pytest.approx(1 / (1 + 1.5**2), abs=0.01)
    wide = np.linalg.inv(len(rows) * RESPONSE.T @ RESPONSE + np.diag([1 / (1 + 1.5**2), 1]))
    move = np.zeros(len(free.best))
    move[0], move[-1] = 1.0, 1.5
    assert move @ free.covariance @ move == pytest.approx(wide[0, 0], rel=1e-8)
    assert free.covariance[0, 0] == pytest.approx(1.5**2 / (1 + 1.5**2), abs=0.01)


def test_the_composition_is_fitted_with_the_detector():
    rows = rows_at([0.5, 0.5], 3000, seed=4, flavour_share=0.4)
    likelihood = likelihood_at(rows, GaussianDensity(), (0.7, 0.3))
    fit = fit_unbinned(likelihood, 0.0)
    share = likelihood.fractions * np.exp(likelihood.relative_width * fit.best[2:4])
    assert (share / share.sum())[0, 1] == pytest.approx(0.4, abs=0.04)
    assert np.abs((fit.best[:2] - 0.5) / np.sqrt(np.diag(fit.covariance)[:2])).max() < 3.5


def test_the_modelling_error_is_what_distorted_data_do():
    """Data whose bins are off by a relative error move the fit as far as the formula says."""
    error, shifts = 0.2, []
    generator = np.random.default_rng(5)
    rows = rows_at([0.0, 0.0], 3000, seed=6)
    fit = fit_unbinned(likelihood_at(rows, GaussianDensity()), error)
    edges = [np.quantile(column, np.linspace(0, 1, 9)[1:-1]) for column in rows.summaries.T]
    for _ in range(60):
        weight = np.ones(len(rows))
        for column, edge in zip(rows.summaries.T, edges, strict=True):
            weight += error * generator.normal(size=8)[np.digitize(column, edge)]
        moved = exact_weighted(rows, weight)
        shifts.append(moved - fit.best[:2])
    expected = np.sqrt(np.diag(fit.modelling)[:2])
    assert np.std(shifts, axis=0) == pytest.approx(expected, rel=0.35)


def exact_weighted(rows, weight):
    weight = weight / weight.mean()
    precision = weight.sum() * RESPONSE.T @ RESPONSE + np.eye(2)
    return np.linalg.solve(precision, RESPONSE.T @ (weight @ rows.summaries))


@pytest.fixture(scope="module")
def learnt():
    """A density learnt from jets with a detector of their own each."""
    generator = np.random.default_rng(7)
    rows = rows_at(1.5 * generator.normal(size=(20_000, 2)), 20_000, seed=8)
    config = NeuralConfig(hidden_width=24, spline_bins=5, steps=400, batch_size=256, learning_rate=5e-3)
    return train_density(rows, 1, 2, config, seed=1)


def test_a_learnt_density_gives_nearly_the_exact_posterior(learnt):
    rows = rows_at([0.4, -0.6], 300, seed=9)
    fit = fit_unbinned(likelihood_at(rows, learnt), 0.0)
    mean, covariance = exact_posterior(rows)
    sigma = np.sqrt(np.diag(covariance))
    assert np.abs((fit.best[:2] - mean) / sigma).max() < 0.7
    assert np.sqrt(np.diag(fit.covariance)[:2]) / sigma == pytest.approx(np.ones(2), abs=0.2)


def test_a_density_that_is_stored_is_the_same(learnt, tmp_path):
    rows = rows_at([0.0, 0.0], 50, seed=10)
    learnt.save(tmp_path / "network.safetensors")
    again = type(learnt)(2, 2, 1, 2, width=24, bins=5).double()
    again.load(tmp_path / "network.safetensors")
    names = ("summaries", "kinematics", "region", "flavour")
    inputs = [torch.from_numpy(getattr(rows, name)) for name in names]
    theta = torch.zeros(50, 2, dtype=torch.float64)
    assert torch.equal(learnt.log_prob(*inputs, theta), again.log_prob(*inputs, theta))


def test_a_learnt_density_is_normalised(learnt):
    axis = torch.linspace(-8, 8, 160, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    n, area = len(grid), float(axis[1] - axis[0]) ** 2
    zeros = torch.zeros(n, dtype=torch.int64)
    kinematics, theta = torch.zeros(n, 2).double(), torch.full((n, 2), 0.5).double()
    units = grid * learnt.summary_width + learnt.summary_mean
    total = learnt.log_prob(units, kinematics, zeros, zeros, theta).exp().sum() * area
    assert float(total) == pytest.approx(1.0, abs=0.01)


def test_posteriors_of_many_samples_are_calibrated_and_wrong_ones_noticed(learnt):
    """Simulation-based calibration and TARP of the learnt likelihood; its intervals cut in half fail."""
    generator = np.random.default_rng(11)
    truths, means, roots = [], [], []
    for experiment in range(EXPERIMENTS):
        truth = generator.normal(size=2)
        fit = fit_unbinned(likelihood_at(rows_at(truth, 25, seed=100 + experiment), learnt), 0.0)
        truths.append(truth)
        means.append(fit.best[:2])
        roots.append(np.linalg.cholesky(fit.covariance[:2, :2]))
    noise = generator.normal(size=(EXPERIMENTS, 200, 2))
    verdicts = {}
    for scale in (1.0, 0.5):
        draws = np.stack([m + scale * e @ r.T for m, e, r in zip(means, noise, roots, strict=True)])
        found = calibration_summary(np.stack(truths), draws, seed=1)
        verdicts[scale] = found["verdicts"]
        assert (found["tarp_p_value"] > 0.001) == (scale == 1.0)
    assert verdicts == {1.0: ["exact", "exact"], 0.5: ["over-confident", "over-confident"]}


def test_an_ensembles_spread_is_added():
    fits = [UnbinnedFit(np.array([m, 0.0]), np.eye(2), 0.5 * np.eye(2), 0.0) for m in (-1.0, 0.0, 1.0)]
    mean, covariance, between = combine(fits)
    assert np.allclose(mean, 0)
    assert np.allclose(between, [[1 + 1 / 3, 0], [0, 0]])
    assert np.allclose(covariance, 1.5 * np.eye(2) + between)
    assert np.allclose(combine(fits[:1])[1], 1.5 * np.eye(2))


def test_a_likelihood_without_maximum_is_an_error():
    class Upward:
        """A density that grows without end."""

        def log_prob(self, summaries, kinematics, region, flavour, theta):
            return (theta**2).sum(1)

    rows = rows_at([0.0, 0.0], 20, seed=12)
    with pytest.raises(FitError):
        fit_unbinned(likelihood_at(rows, Upward()), 0.0, start=np.full(5, 0.1))


def test_spectra_weigh_flavours_by_pt():
    """A flavour that is twice as frequent above the median has 4/3 and 2/3 of the average's shares."""
    generator = np.random.default_rng(13)
    log_pt = np.concatenate([generator.uniform(0, 1, 20_000), generator.uniform(1, 2, 40_000)])
    simulation = rows_at([0.0, 0.0], 60_000, seed=14)
    flat = generator.uniform(0, 2, 60_000)
    both = np.where(np.arange(60_000) % 2 == 0, log_pt, flat)
    flavour = (np.arange(60_000) % 2).astype(np.int64)
    simulation = replace(simulation, kinematics=np.stack([both, np.zeros(60_000)], axis=1), flavour=flavour)
    data = rows_at([0.0, 0.0], 3, seed=15)
    data = replace(data, kinematics=np.array([[0.1, 0.0], [1.9, 0.0], [1.9, 0.0]]))
    found = spectrum_weights(simulation, data, 1, 2)
    average = np.array([(1 / 3 + 1 / 2) / 2, (2 / 3 + 1 / 2) / 2])
    assert found[:, 0] == pytest.approx(np.array([1 / 3, 2 / 3, 2 / 3]) / average[[0, 1, 1]], rel=0.03)
    assert found[:, 1] == pytest.approx(0.5 / average[[0, 1, 1]], rel=0.03)
