"""Scale and resolution of the jets' pT before and after regression."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from selfcal.data.flavours import LIGHT, B, C
from selfcal.training.response import JETS_MIN, measure_response, scale_and_resolution

EVERY = {"replicas": 60, "seed": 3}


def test_a_gaussian_has_its_mean_and_its_relative_width():
    response = norm.ppf((np.arange(100_000) + 0.5) / 100_000, loc=0.9, scale=0.09)
    assert scale_and_resolution(response) == pytest.approx((0.9, 0.1), rel=1e-3)


def test_a_regression_that_knows_the_truth_leaves_no_width():
    generator = np.random.default_rng(5)
    truth = generator.uniform(30.0, 200.0, 500)
    pt_gev = truth * generator.normal(0.95, 0.15, 500)
    flavour, event = np.full(500, C), np.arange(500)
    (row,) = measure_response(pt_gev, truth, truth, flavour, event, **EVERY)
    assert (row["flavour"], row["jets"]) == ("c", 500)
    assert row["after"] == {"scale": 1.0, "scale_error": 0.0, "resolution": 0.0, "resolution_error": 0.0}
    assert row["resolution_ratio"] == 0.0
    assert row["before"]["scale"] == pytest.approx(0.95, abs=0.02)


def test_errors_are_those_of_quantiles_and_know_that_the_jets_are_the_same():
    """Half the distance of the quantiles p and 1 - p of n Gaussian numbers has the variance
    (p (1 - p) - p^2) / (2 n f^2), f the density there; common to both, it cancels in their ratio."""
    generator, n = np.random.default_rng(1), 4000
    truth = np.full(n, 50.0)
    pt_gev = truth * generator.normal(1.0, 0.1, n)
    (row,) = measure_response(pt_gev, 0.8 * pt_gev, truth, np.full(n, B), np.arange(n), replicas=400)
    density = norm.pdf(1.0) / 0.1
    expected = np.sqrt((0.1587 * 0.8413 - 0.1587**2) / (2 * n)) / density
    assert row["before"]["resolution_error"] == pytest.approx(expected, rel=0.15)
    assert row["after"]["scale"] == pytest.approx(0.8 * row["before"]["scale"])
    assert row["resolution_ratio"] == pytest.approx(1.0)
    assert row["resolution_ratio_error"] < 1e-12
    # The same jets as pairs of equal ones: half the information.
    twice = [np.repeat(x, 2) for x in (pt_gev, truth, np.full(n, B), np.arange(n))]
    (paired,) = measure_response(twice[0], twice[0], *twice[1:], replicas=400)
    assert paired["before"]["resolution_error"] == pytest.approx(expected, rel=0.15)


def test_jets_without_true_pt_and_rare_flavours_do_not_count():
    n = 3 * JETS_MIN
    flavour = np.repeat([B, C, LIGHT], [2 * JETS_MIN - 1, JETS_MIN - 1, 2])
    truth = np.full(n, 100.0)
    truth[: JETS_MIN - 1] = np.nan
    pt_gev = np.where(np.isnan(truth), 1.0, 110.0)
    (row,) = measure_response(pt_gev, pt_gev, truth, flavour, np.arange(n), **EVERY)
    assert (row["flavour"], row["jets"], row["before"]["scale"]) == ("b", JETS_MIN, 1.1)
    assert row["resolution_ratio"] is None
