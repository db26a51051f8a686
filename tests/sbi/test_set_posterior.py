"""The amortised posterior where the exact one is known: u ~ N(0, 1), z = B u + noise."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.sbi.set_posterior import calibration_summary, picked, train_set_posterior

MIXING = np.array([[1.0, 0.4], [-0.3, 0.7]])
NOISE = 0.5


@pytest.fixture(scope="module")
def trained():
    generator = np.random.default_rng(1)
    u = generator.normal(size=(800, 2))
    z = u @ MIXING.T + NOISE * generator.normal(size=(800, 2))
    model, held = train_set_posterior(u, z, seed=2)
    return model, u, z, held


def exact(z):
    covariance = np.linalg.inv(np.eye(2) + MIXING.T @ MIXING / NOISE**2)
    return z @ MIXING @ covariance / NOISE**2, covariance


def test_a_linear_gaussian_posterior_is_found(trained):
    model, _, z, held = trained
    draws = model.draw(z[held[:40]], 2000, seed=3)
    mean, covariance = exact(z[held[:40]])
    sigma = np.sqrt(np.diag(covariance))
    assert np.sqrt((((draws.mean(axis=1) - mean) / sigma) ** 2).mean()) < 0.25
    assert (draws.std(axis=1) / sigma).mean() == pytest.approx(1.0, abs=0.1)


def test_it_is_calibrated_on_samples_it_did_not_learn_from(trained):
    model, u, z, held = trained
    assert len(held) == 160
    draws = model.draw(z[held], 300, seed=4)
    found = calibration_summary(u[held], draws, seed=5)
    assert found["verdicts"] == ["exact", "exact"]
    assert found["tarp_p_value"] > 0.01
    middle = draws.mean(axis=1, keepdims=True)
    narrow = calibration_summary(u[held], middle + 0.5 * (draws - middle), seed=5)
    assert narrow["verdicts"] == ["over-confident", "over-confident"]
    assert narrow["tarp_p_value"] < 0.01


def test_a_curved_posterior_is_better_described_than_by_a_line():
    """The noise of the first z depends on u, so the posterior's width does on z."""
    generator = np.random.default_rng(6)
    u = generator.normal(size=(3000, 2))
    z = u + 0.2 * np.exp(0.8 * u[:, :1]) * generator.normal(size=u.shape)
    model, _ = train_set_posterior(u, z, seed=7)
    low, high = model.draw(np.array([[-1.5, 0.0], [1.0, 0.0]]), 3000, seed=8).std(axis=1)[:, 0]
    assert high > 1.5 * low


def test_samples_have_the_asked_number_of_jets_and_flavours(make_toy_jets):
    samples = [make_toy_jets(400, seed=s, dataset=f"part{s}") for s in (1, 2)]
    found = picked(np.random.default_rng(1), samples, 600, np.array([0.6, 0.3, 0.1, 0.0]))
    flavour = np.concatenate([jets.flavour for jets in found])
    assert len(flavour) == 600
    counts = np.bincount(flavour, minlength=4)
    assert counts[3] == 0
    assert counts[0] == pytest.approx(360, abs=4 * np.sqrt(600 * 0.24))
    assert {jets.dataset for jets in found} == {"part1", "part2"}
