"""Coverage of likelihood toys, and the check that must tell a right uncertainty from a wrong one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.likelihood.coverage import (
    Limits,
    coverage_table,
    interval_score,
    odds_pulls,
    toy_scale_factors,
)
from selfcal.likelihood.stage import measure

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])


@pytest.fixture(scope="module")
def toys(one_flavour):
    """A b-only fit with simulation statistics, 400 toys."""
    measured = measure(one_flavour(9e3 * SHAPE, SHAPE, size=2e4), FitConfig(free_flavours=("b",)))
    theta = torch.from_numpy(measured.result.best_fit)
    ratios = measured.factors.ratios
    return ratios, toy_scale_factors(ratios, theta, 400, seed=7), theta


def test_the_toys_of_a_right_uncertainty_pass(toys) -> None:
    ratios, found, theta = toys
    table = coverage_table(found, ratios, theta)
    assert table["summary"]["passed"], table["summary"]
    assert table["summary"]["toys"] == 400
    assert table["summary"]["judged"] == 8
    same = {row["row"]: row["same_as"] for row in table["rows"] if row["same_as"] is not None}
    assert same == {8: 3}  # the tightest working point is the last of the continuous bins


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_halved_or_doubled_uncertainty_is_flagged_everywhere(toys, factor) -> None:
    ratios, found, theta = toys
    broken = replace(found, sigma=factor * found.sigma)
    table = coverage_table(broken, ratios, theta)
    assert not table["summary"]["passed"]
    assert table["summary"]["flagged_count"] == table["summary"]["judged"]
    for row in table["rows"]:
        assert {"pull_width", "coverage_68"} <= set(row["exceeded"])
    assert table["summary"]["flagged_count"] > table["summary"]["allowed_by_chance"]


def test_a_bias_is_flagged(toys) -> None:
    ratios, found, theta = toys
    moved = replace(found, estimate=found.estimate + 0.4 * found.sigma)
    table = coverage_table(moved, ratios, theta)
    assert all("pull_mean" in row["exceeded"] for row in table["rows"])


def test_failed_toys_are_counted_and_too_many_are_flagged(toys) -> None:
    ratios, found, theta = toys
    for failed, passed in ((1, True), (5, False)):
        table = coverage_table(replace(found, failed=failed), ratios, theta)
        assert table["summary"]["failed"] == failed
        assert table["summary"]["passed"] is passed


def test_the_truth_scatters_with_the_part_of_the_simulation_that_no_data_see(one_flavour) -> None:
    """Calibrated templates of four times the variance: ε⁰ is correlated with them by a half."""
    templates = one_flavour(9e3 * SHAPE, SHAPE, size=2e4)
    templates = replace(templates, calibrated_variance=4 * templates.nominal_variance)
    factors = measure(templates, FitConfig(free_flavours=("b",))).factors
    start = factors.ratios.model.start
    found = toy_scale_factors(factors.ratios, start, 200, seed=3)
    independent = (factors.ratios.jacobians(start)[1] ** 2).sum(1).sqrt().numpy()
    assert (independent > 1e-3).all()
    np.testing.assert_allclose(found.truth.std(0), independent, rtol=0.2)
    moving = coverage_table(found, factors.ratios, start)
    assert moving["summary"]["passed"], moving["summary"]


def test_pulls_of_counts_are_centred_in_the_odds_and_not_in_the_share() -> None:
    """40 of 400 jets, SF ε⁰ = k/n: the mean pull of the share is −(1 − 2ε)/(2 √[n ε (1 − ε)]) = −0.067."""
    random = np.random.default_rng(2)
    share, jets, toys = 0.1, 400, 200_000
    estimate = random.binomial(jets, share, toys) / jets
    sigma = np.sqrt(estimate * (1 - estimate) / jets)
    expected = -(1 - 2 * share) / (2 * math.sqrt(jets * share * (1 - share)))
    assert ((estimate - share) / sigma).mean() == pytest.approx(expected, rel=0.15)
    pulls = odds_pulls(estimate / 0.2, np.full(toys, share / 0.2), sigma / 0.2, np.asarray(0.2))
    assert abs(pulls.mean()) < 0.01
    assert pulls.std() == pytest.approx(1, abs=0.03)


def test_a_row_with_few_jets_outside_of_its_bins_is_not_judged(one_flavour) -> None:
    shape = np.array([0.001, 0.299, 0.2, 0.2, 0.3])
    measured = measure(one_flavour(9e3 * shape, shape), FitConfig(free_flavours=("b",)))
    ratios, theta = measured.factors.ratios, torch.from_numpy(measured.result.best_fit)
    found = toy_scale_factors(ratios, theta, 20, seed=7)
    for row in coverage_table(found, ratios, theta)["rows"]:
        few = row["working_point"] == 0.85 or row["bin"] == 0
        assert row["judged"] is (not few and row["same_as"] is None)


def test_the_score_has_the_closed_form_of_its_source() -> None:
    spread = math.sqrt(0.6827 * 0.3173 / 1000)
    assert interval_score(0.1, 0.6827, 1000) == pytest.approx(-math.log(0.101))
    assert interval_score(0.1, 0.6827 + 1.99 * spread, 1000) == pytest.approx(-math.log(0.101))
    assert interval_score(0.1, 0.6827 - 5 * spread, 1000) == pytest.approx(-math.log(0.101 * 82))
    assert interval_score(0.1, 0.6827 + 5 * spread, 1000) == pytest.approx(-math.log(0.101 * 28))
    # Under-coverage costs more than over-coverage by the same amount.
    assert interval_score(0.1, 0.6, 1000) < interval_score(0.1, 0.7654, 1000)


def test_limits_are_those_of_1000_toys_and_widen_for_fewer() -> None:
    assert Limits().for_toys(1000) == Limits().for_toys(4000)
    narrow, wide = Limits().for_toys(1000), Limits().for_toys(250)
    assert narrow.coverage_68 == pytest.approx((0.63, 0.735))
    assert wide.pull_mean == pytest.approx(0.24)
    assert wide.coverage_68[0] == pytest.approx(0.6827 - 2 * 0.0527)


def test_the_chance_to_be_flagged_is_that_of_gaussian_pulls() -> None:
    """Limits drawn in until a tenth of right rows is outside; 20,000 rows of 100 Gaussian pulls."""
    limits = Limits((0.595, 0.765), (0.905, 0.985), (0.0, 1.0), 0.19, (0.88, 1.12))
    pulls = np.random.default_rng(8).normal(size=(20_000, 100))
    inside = [(np.abs(pulls) < edge).mean(1) for edge in (1, 1.959964)]
    outside = [
        (inside[0] < 0.595) | (inside[0] > 0.765),
        (inside[1] < 0.905) | (inside[1] > 0.985),
        np.abs(pulls.mean(1)) > 0.19,
        np.abs(pulls.std(1, ddof=1) - 1) > 0.12,
    ]
    assert limits.chance(100) == pytest.approx(sum(part.mean() for part in outside), rel=0.05)


def test_one_row_outside_of_a_hundred_is_chance_and_three_are_not(toys) -> None:
    ratios, found, theta = toys
    table = coverage_table(found, ratios, theta)
    assert table["summary"]["expected_by_chance"] == pytest.approx(8 * Limits().for_toys(400).chance(400))
    for moved in (1, 3):
        estimate = found.estimate.copy()
        estimate[:, :moved] += 0.5 * found.sigma[:, :moved]
        summary = coverage_table(replace(found, estimate=estimate), ratios, theta)["summary"]
        assert summary["flagged_count"] == moved
        assert summary["passed"] is (moved <= summary["allowed_by_chance"])
