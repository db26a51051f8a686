"""Diagnostics tell exact, over-confident, conservative and biased estimators apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfcal.sbi.diagnostics import calibration, expected_coverage, ranks

N, DRAWS = 400, 300


@pytest.fixture(scope="module")
def problem():
    """theta ~ N(0, 1), one measurement of width 0.5: the posterior is N(0.8 x, 0.2)."""
    generator = np.random.default_rng(1)
    truth = generator.normal(size=(N, 2))
    measured = truth + 0.5 * generator.normal(size=(N, 2))
    noise = generator.normal(size=(N, DRAWS, 2))
    return truth, lambda scale, offset: 0.8 * measured[:, None] + np.sqrt(0.2) * (scale * noise + offset)


@pytest.mark.parametrize(
    ("scale", "offset", "verdict"),
    [(1.0, 0.0, "exact"), (0.6, 0.0, "over-confident"), (1.6, 0.0, "conservative"), (1.0, 0.5, "biased")],
)
def test_estimators_are_told_apart(problem, scale, offset, verdict):
    truth, posterior = problem
    found = ranks(truth, posterior(scale, offset))
    for parameter in range(2):
        assert calibration(found[:, parameter]).verdict == verdict
    even = calibration(found[:, 0]).uniformity
    assert (even > 0.01) == (verdict == "exact")


def test_expected_coverage_is_even_only_for_the_exact_posterior(problem):
    truth, posterior = problem
    p_values = {
        scale: stats.kstest(expected_coverage(truth, posterior(scale, 0.0), seed=1), "uniform").pvalue
        for scale in (1.0, 0.5, 2.0)
    }
    assert p_values[1.0] > 0.01
    assert max(p_values[0.5], p_values[2.0]) < 0.01


def test_ranks_count_ties_half():
    truth = np.zeros((1, 1))
    assert ranks(truth, np.array([[[-1.0], [0.0], [1.0], [1.0]]]))[0, 0] == pytest.approx(0.375)
