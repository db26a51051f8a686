"""The Markov chain finds a known posterior, and says where Laplace's is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.sbi.chain_check import chain_available, compare_with_chain, log_density_of

pytestmark = pytest.mark.skipif(not chain_available(), reason="needs pyro (extra 'chain')")


@pytest.fixture
def gaussian():
    generator = np.random.default_rng(2)
    root = generator.normal(size=(4, 4)) + 2 * np.eye(4)
    covariance = root @ root.T
    precision = torch.from_numpy(np.linalg.inv(covariance))
    mean = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    return mean, covariance, lambda x: -0.5 * (x - mean) @ precision @ (x - mean) - 1e5


def test_a_gaussian_is_its_own_laplace_posterior(gaussian):
    mean, covariance, log_density = gaussian
    found = compare_with_chain(log_density, mean.numpy(), covariance, 3, seed=1)
    error = 4 / np.sqrt(found["effective_samples"])
    assert len(found["mean_shift"]) == 3
    assert np.abs(found["mean_shift"]).max() < error
    assert np.abs(np.array(found["width_ratio"]) - 1).max() < error
    assert found["split_r_hat"] < 1.1


def test_a_wrong_laplace_posterior_is_noticed(gaussian):
    """Mean off by two and widths half of the true ones, in the units of the wrong posterior."""
    mean, covariance, log_density = gaussian
    wrong = covariance / 4
    off = mean.numpy() + 2 * np.sqrt(np.diag(wrong))
    found = compare_with_chain(log_density, off, wrong, 4, seed=1)
    assert np.array(found["mean_shift"]) == pytest.approx(-2 * np.ones(4), abs=0.6)
    assert np.array(found["width_ratio"]) == pytest.approx(2 * np.ones(4), abs=0.5)


def test_the_chain_is_its_seed_and_leaves_other_random_numbers_alone(gaussian):
    mean, covariance, log_density = gaussian
    torch.manual_seed(5)
    first = compare_with_chain(log_density, mean.numpy(), covariance, 2, seed=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert first == compare_with_chain(log_density, mean.numpy(), covariance, 2, seed=3)


def test_the_chain_leaves_densities_that_are_not_finite_to_those_who_ask(gaussian):
    """pyro's import turns the checks of torch's distributions on, which raise where fits look for NaN."""
    mean, covariance, log_density = gaussian
    compare_with_chain(log_density, mean.numpy(), covariance, 2, seed=3)
    nothing = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(torch.nan))
    assert bool(nothing.isnan())


def test_the_density_of_residuals_has_its_derivative():
    generator = np.random.default_rng(4)
    matrix = generator.normal(size=(6, 3))
    offset = generator.normal(size=6)
    density = log_density_of(lambda x: offset - x @ matrix.T)
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = density(x)
    (slope,) = torch.autograd.grad(value, x)
    residual = offset - matrix @ x.detach().numpy()
    assert float(value.detach()) == pytest.approx(-0.5 * residual @ residual, rel=1e-12)
    assert slope.numpy() == pytest.approx(matrix.T @ residual, rel=1e-6)
