"""Means that are linear in theta: the posterior is known, whatever the numbers of a jet are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.errors import FitError
from selfcal.sbi.emulator import QuadraticEmulator
from selfcal.sbi.jet_scores import JetRows
from selfcal.sbi.set_likelihood import (
    SetLikelihood,
    SetObservation,
    fit_sets,
    set_observation,
    simulation_variance,
)
from selfcal.sbi.set_posterior import calibration_summary

RESPONSE = np.array([[1.0, 0.3], [-0.2, 0.8], [0.4, 0.4]])
"""T_f = A u + b_f, three numbers a jet."""
OFFSET = np.array([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
NOISE = np.diag([1.0, 2.0, 1.5])


def linear_emulator(regions=1, error=0.0):
    flat = np.tile(OFFSET.ravel(), regions)
    slopes = np.tile(np.repeat(RESPONSE.T[:, None], 2, axis=1).reshape(2, -1), (1, regions))
    coefficients = np.concatenate([flat[None], slopes, np.zeros_like(slopes)])
    return QuadraticEmulator(np.zeros(2), np.ones(2), coefficients, np.full(len(flat), error), cross=False)


def likelihood_of(means, jets, fractions=(1.0, 0.0), multiplicity=(0.0, 0.0), error=0.0):
    observations = tuple(
        SetObservation(np.asarray(mean), NOISE / jets, np.array(fractions), np.full(2, 0.2)) for mean in means
    )
    emulator = linear_emulator(len(means), error)
    return SetLikelihood(observations, emulator, np.array(multiplicity), np.zeros(2), np.ones(2))


def exact(means, jets, error=0.0):
    weight = np.linalg.inv(NOISE / jets + error**2 * np.eye(3))
    covariance = np.linalg.inv(len(means) * RESPONSE.T @ weight @ RESPONSE + np.eye(2))
    return covariance @ RESPONSE.T @ weight @ np.sum(means, axis=0), covariance


@pytest.mark.parametrize("error", [0.0, 0.3])
def test_the_posterior_of_a_linear_model_is_exact(error):
    means = np.random.default_rng(1).normal(size=(2, 3))
    fit = fit_sets(likelihood_of(means, 50, error=error))
    mean, covariance = exact(means, 50, error)
    assert fit.best[:2] == pytest.approx(mean, abs=1e-6)
    assert np.allclose(fit.covariance[:2, :2], covariance, rtol=1e-6)
    assert fit.covariance[2:, 2:] == pytest.approx(np.eye(6), abs=1e-6)


def test_the_composition_is_fitted_with_the_detector():
    u, share = np.array([0.4, -0.7]), 0.4
    mean = RESPONSE @ u + (1 - share) * OFFSET[0] + share * OFFSET[1]
    likelihood = likelihood_of([mean], 1e6, (0.7, 0.3))
    fit = fit_sets(
        replace(
            likelihood,
            observations=tuple(
                replace(one, relative_width=np.full(2, 10.0)) for one in likelihood.observations
            ),
        )
    )
    tilted = likelihood.fractions * np.exp(10.0 * fit.best[2:4])
    assert (tilted / tilted.sum())[0, 1] == pytest.approx(share, abs=0.002)
    assert fit.best[:2] == pytest.approx(u, abs=0.005)


def test_a_multiplicity_that_looks_like_a_parameter_takes_its_share():
    """With width m the parameter's posterior is that of a prior of variance 1 + m², shared 1 : m²."""
    fit = fit_sets(likelihood_of([RESPONSE @ [1.5, 0.0]], 1e6, multiplicity=(1.5, 0.0)))
    assert fit.best[0] == pytest.approx(1.5 / (1 + 1.5**2), abs=1e-3)
    assert fit.covariance[0, 0] == pytest.approx(1.5**2 / (1 + 1.5**2), abs=1e-3)


def test_directions_that_say_nothing_change_nothing():
    """A number that repeats another one has no information, but makes the covariance singular."""
    mean = np.array([0.3, -0.4, 0.2])
    double = np.concatenate([np.eye(3), np.eye(3)[:1]])
    plain = likelihood_of([mean], 50)
    one = plain.observations[0]
    repeated = replace(one, mean=double @ one.mean, covariance=double @ one.covariance @ double.T)
    old = plain.emulator
    coefficients = (old.coefficients.reshape(-1, 2, 3) @ double.T).reshape(len(old.coefficients), -1)
    emulator = replace(old, coefficients=coefficients, error=np.zeros(8))
    found = fit_sets(replace(plain, observations=(repeated,), emulator=emulator))
    assert found.best == pytest.approx(fit_sets(plain).best, abs=1e-6)


def toy_rows(generator, number, counts=None):
    index = np.zeros(number, np.int64)
    counts = np.zeros((number, 0), np.uint8) if counts is None else counts
    return JetRows(
        np.zeros((number, 0)),
        counts,
        np.zeros((number, 2)),
        index,
        (generator.random(number) < 0.3).astype(np.int64),
        np.ones(number),
        np.zeros((number, 0)),
        np.arange(number, dtype=np.uint64),
    )


def test_the_modelling_error_is_what_distorted_data_do():
    """Data whose bins of tracks are off by a relative error: their means move as far as the formula says."""
    generator, error = np.random.default_rng(5), 0.05
    counts = generator.poisson(1.5, (4000, 6)).astype(np.uint8)
    rows = toy_rows(generator, 4000, counts)
    statistic = counts[:, :3] + 0.5 * counts[:, 3:] + generator.normal(size=(4000, 3))
    fractions, width, none = np.array([0.7, 0.3]), np.full(2, 0.2), np.zeros((3, 3))
    with_error, without = (
        set_observation(rows, statistic, none, fractions, width, m).covariance for m in (error, 0.0)
    )
    assert without == pytest.approx(np.cov(statistic.T) / len(rows), rel=1e-3)
    moved = []
    for _ in range(300):
        weight = 1 + error * counts @ generator.normal(size=6)
        moved.append(weight @ statistic / weight.sum())
    assert np.cov(np.array(moved).T).diagonal() == pytest.approx((with_error - without).diagonal(), rel=0.35)


def test_the_error_of_the_simulation_is_that_of_repeated_simulations():
    generator = np.random.default_rng(6)
    fractions, means, claimed = np.array([0.6, 0.4]), [], []
    for _ in range(300):
        rows = toy_rows(generator, 200)
        statistic = OFFSET[rows.flavour] + generator.normal(size=(200, 3))
        means.append(sum(fractions[f] * statistic[rows.flavour == f].mean(axis=0) for f in range(2)))
        claimed.append(simulation_variance(rows, rows.weight, statistic, fractions))
    assert np.cov(np.array(means).T).diagonal() == pytest.approx(np.mean(claimed, axis=0).diagonal(), rel=0.3)


def test_the_error_of_the_simulation_counts_weights_and_leaves_out_what_has_no_positive_total():
    """Σ_f π_f² Σ w² (t − T_f)(t − T_f)ᵀ / (Σ w)², jet by jet; a flavour of negative total has no mean."""
    rows = toy_rows(np.random.default_rng(8), 60)
    statistic = np.random.default_rng(9).normal(size=(60, 2))
    weight = np.random.default_rng(10).uniform(0.2, 2.0, 60)
    fractions = np.array([0.6, 0.4])
    expected = np.zeros((2, 2, 2))
    for flavour in range(2):
        inside = np.flatnonzero(rows.flavour == flavour)
        total = sum(weight[i] for i in inside)
        mean = sum(weight[i] * statistic[i] for i in inside) / total
        for i in inside:
            part = fractions[flavour] * weight[i] / total * (statistic[i] - mean)
            expected[flavour] += np.outer(part, part)
    assert simulation_variance(rows, weight, statistic, fractions) == pytest.approx(expected.sum(axis=0))
    negative = np.where(rows.flavour == 1, -weight, weight)
    assert simulation_variance(rows, negative, statistic, fractions) == pytest.approx(expected[0])


def test_posteriors_of_many_samples_are_calibrated_and_wrong_ones_noticed():
    """Simulation-based calibration and TARP; intervals cut in half fail."""
    generator = np.random.default_rng(11)
    truths, means, roots = [], [], []
    for _ in range(200):
        truth = generator.normal(size=2)
        seen = generator.multivariate_normal(RESPONSE @ truth, NOISE / 25)
        fit = fit_sets(likelihood_of([seen], 25))
        truths.append(truth)
        means.append(fit.best[:2])
        roots.append(np.linalg.cholesky(fit.covariance[:2, :2]))
    noise = generator.normal(size=(200, 200, 2))
    verdicts = {}
    for scale in (1.0, 0.5):
        draws = np.stack([m + scale * e @ r.T for m, e, r in zip(means, noise, roots, strict=True)])
        found = calibration_summary(np.stack(truths), draws, seed=1)
        verdicts[scale] = found["verdicts"]
        assert (found["tarp_p_value"] > 0.001) == (scale == 1.0)
    assert verdicts == {1.0: ["exact", "exact"], 0.5: ["over-confident", "over-confident"]}


def test_a_fit_that_does_not_end_is_an_error():
    likelihood = likelihood_of([np.full(3, np.nan)], 10)
    with pytest.raises((FitError, ValueError)):
        fit_sets(likelihood)
