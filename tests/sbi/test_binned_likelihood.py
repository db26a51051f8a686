"""The binned likelihood: merging, closed form of its Laplace posterior, and calibration by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.sbi.binned_likelihood import (
    Observation,
    build_likelihood,
    central_jacobian,
    fit_laplace,
    merged_bins,
)
from selfcal.sbi.diagnostics import calibration, predictive_check, ranks
from selfcal.sbi.emulator import fit_emulator, gaussian_design
from selfcal.sbi.summaries import HISTOGRAMS, N_BINS, Counts

FLAVOURS = 4
FRACTIONS = np.array([0.5, 0.2, 0.25, 0.05])


def rates(theta):
    """Two parameters that tilt every histogram, differently per flavour, (F, B) as one row."""
    table = np.zeros((FLAVOURS, N_BINS))
    for histogram in HISTOGRAMS:
        size = histogram.bins.stop - histogram.bins.start
        x = np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
        for f in range(FLAVOURS):
            slope = 1 + 0.2 * theta[0] * x + 0.1 * theta[1] * (x**2 - 0.4) + 0.05 * f * x
            table[f, histogram.bins] = 0.2 * slope
    return table.ravel()


def counts(rate, jets, generator=None):
    expected = rate * jets[:, None]
    total = expected if generator is None else generator.poisson(expected).astype(float)
    return Counts(total, jets, expected)


@pytest.fixture(scope="module")
def emulator():
    width = np.ones(2)
    design = gaussian_design(np.zeros(2), width, 32, seed=1)
    return fit_emulator(design, np.stack([rates(t) for t in design]), np.zeros(2), width, cross=True)


def likelihood_of(emulator, theta, jets, generator, relative_width=0.0, modelling_error=0.0):
    simulated = counts(rates(np.zeros(2)).reshape(FLAVOURS, N_BINS), np.full(FLAVOURS, 1e9))
    data = counts(rates(theta).reshape(FLAVOURS, N_BINS), jets * FRACTIONS, generator)
    one = Observation("toy", data.pooled(), simulated, FRACTIONS, np.full(FLAVOURS, relative_width))
    return build_likelihood(
        [one], emulator, np.zeros(2), np.ones(2), modelling_error=modelling_error, multiplicity_error=0.03
    )


def test_merged_bins_hold_enough_and_miss_nothing():
    generator = np.random.default_rng(1)
    for _ in range(50):
        expected = generator.exponential(10.0, 12)
        groups = merged_bins(expected, 15.0)
        assert sorted(b for group in groups for b in group) == list(range(12))
        assert all(group == list(range(group[0], group[-1] + 1)) for group in groups)
        if expected.sum() >= 15:
            assert all(expected[group].sum() >= 15 for group in groups)


def test_expected_counts_of_shapes_sum_to_the_observed(emulator):
    likelihood = likelihood_of(emulator, np.array([0.5, -0.5]), 3000.0, np.random.default_rng(1), 0.2)
    x = np.random.default_rng(2).normal(size=(5, likelihood.dimension))
    nu, _ = likelihood.expected(x)
    for index in np.unique(likelihood.histogram[likelihood.normalised]):
        inside = likelihood.histogram == index
        assert np.allclose(nu[:, inside].sum(axis=1), likelihood.observed[inside].sum())
    assert np.allclose(likelihood.expected(x[0])[0], nu[0])


def test_exact_data_give_the_exact_parameters(emulator):
    truth = np.array([0.7, -0.4])
    likelihood = likelihood_of(emulator, truth, 1e8, None)
    assert np.allclose(likelihood.theta(fit_laplace(likelihood).best), truth, atol=1e-3)


def test_laplace_covariance_is_the_inverse_fisher_information(emulator):
    likelihood = likelihood_of(emulator, np.array([0.3, 0.2]), 20000.0, np.random.default_rng(1), 0.25)
    fit = fit_laplace(likelihood)
    slope = central_jacobian(lambda x: likelihood.expected(x)[0], fit.best)
    information = slope.T @ (slope / fit.variance[:, None]) + np.eye(likelihood.dimension)
    assert np.allclose(fit.covariance @ information, np.eye(likelihood.dimension), atol=1e-5)


def test_uncertain_composition_widens_the_posterior(emulator):
    widths = [
        np.sqrt(fit_laplace(likelihood_of(emulator, np.zeros(2), 1e5, None, w)).covariance[0, 0])
        for w in (0.0, 0.3)
    ]
    assert widths[1] > 1.05 * widths[0]


def test_posteriors_of_many_experiments_are_calibrated(emulator):
    """Truths from the prior, Poisson counts: even ranks; with intervals halved or doubled they are not."""
    generator = np.random.default_rng(5)
    truth, centre, sigma = [], [], []
    for _ in range(160):
        theta = generator.normal(size=2)
        likelihood = likelihood_of(emulator, theta, 2000.0, generator)
        fit = fit_laplace(likelihood)
        truth.append(theta)
        centre.append(fit.best[:2])
        sigma.append(np.linalg.cholesky(fit.covariance[:2, :2]))
    noise = generator.normal(size=(160, 400, 2))
    spread = np.einsum("nij,nsj->nsi", np.array(sigma), noise)
    verdicts = {
        scale: [
            calibration(ranks(np.array(truth), np.array(centre)[:, None] + scale * spread)[:, d])
            for d in range(2)
        ]
        for scale in (1.0, 0.5, 2.0)
    }
    assert all(v.verdict == "exact" and v.uniformity > 0.005 for v in verdicts[1.0])
    assert all(v.verdict == "over-confident" for v in verdicts[0.5])
    assert all(v.verdict == "conservative" for v in verdicts[2.0])


def test_prediction_flags_data_outside_the_model(emulator):
    generator = np.random.default_rng(1)
    likelihood = likelihood_of(emulator, np.array([0.5, 0.5]), 20000.0, generator)
    good = predictive_check(likelihood, fit_laplace(likelihood), seed=1)
    assert good[0]["histogram"] == "all"
    assert good[0]["p_value"] > 0.01
    odd = likelihood.observed.copy()
    odd[3] += 6 * np.sqrt(odd[3])
    object.__setattr__(likelihood, "observed", odd)
    bad = predictive_check(likelihood, fit_laplace(likelihood), seed=1)
    first = next(r for r in bad if r["histogram"] == "d0" and r["category"] == "innermost_low_pt")
    assert first["p_value"] < 1e-3
    assert abs(first["pull"]) > 3


def test_bins_are_merged_from_the_end_and_what_is_left_joins_its_neighbour():
    assert merged_bins(np.array([20.0, 6.0, 5.0, 9.0, 1.0]), 9.0) == [[0], [1, 2], [3, 4]]
    assert merged_bins(np.array([4.0, 4.0, 10.0]), 9.0) == [[0, 1, 2]]
    assert merged_bins(np.array([9.0, 8.9]), 9.0) == [[0, 1]]
    assert merged_bins(np.array([9.0, 9.0]), 9.0) == [[0], [1]]
    assert merged_bins(np.array([1.0, 2.0]), 9.0) == [[0, 1]]  # too few altogether: still all of them
