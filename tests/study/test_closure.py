"""The comparison with truth: exact on closed forms, and it must catch what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from selfcal.study.closure import compare_with_truth, fraction_summary
from selfcal.study.passing_shares import PassingShares

WORKING_POINTS = (0.85, 0.77, 0.70, 0.60)


def factors(
    values: np.ndarray, truth: np.ndarray, covariance: np.ndarray, passing: float = 100.0
) -> dict[str, Any]:
    rows = [
        {
            "kind": "working_point",
            "value": float(value),
            "truth": {"value": float(true), "error": 0.0},
            "expected_passing": passing,
        }
        for value, true in zip(values, truth, strict=True)
    ]
    return {"rows": rows, "covariance": {"rows": list(range(len(rows))), "matrix": covariance.tolist()}}


def correlated(size: int, sigma: float) -> np.ndarray:
    place = np.arange(size)
    return sigma**2 * 0.8 ** np.abs(place[:, None] - place[None, :])


def test_chi2_of_correlated_rows_is_distributed_as_chi2() -> None:
    random = np.random.default_rng(1)
    covariance, truth = correlated(6, 0.05), np.ones(6)
    none = np.zeros((6, 6))
    draws = [
        compare_with_truth(factors(random.multivariate_normal(truth, covariance), truth, covariance), none)
        for _ in range(400)
    ]
    chi2 = np.array([draw["chi2"] for draw in draws])
    assert chi2.mean() == pytest.approx(6.0, abs=4 * np.sqrt(12 / 400))
    assert np.mean([draw["p_value"] < 0.1 for draw in draws]) == pytest.approx(0.1, abs=0.06)


def test_halved_uncertainty_and_shifted_scale_factors_are_caught() -> None:
    random = np.random.default_rng(2)
    covariance, truth = correlated(12, 0.05), np.ones(12)
    measured = random.multivariate_normal(truth, covariance)
    none = np.zeros((12, 12))
    honest = compare_with_truth(factors(measured, truth, covariance), none)
    shifted = compare_with_truth(factors(measured + 0.3, truth, covariance), none)
    assert 0.005 < honest["p_value"] < 0.995
    assert shifted["p_value"] < 1e-6
    assert shifted["max_pull"] > 4
    many = [
        compare_with_truth(
            factors(random.multivariate_normal(truth, covariance), truth, covariance / 4), none
        )["p_value"]
        for _ in range(20)
    ]
    assert np.median(many) < 1e-4


def test_uncertainty_of_the_truth_counts_too() -> None:
    covariance, truth = correlated(3, 0.01), np.ones(3)
    content = factors(truth + 0.05, truth, covariance)
    exact = compare_with_truth(content, np.zeros((3, 3)))
    blurred = compare_with_truth(content, correlated(3, 0.1))
    assert exact["chi2"] > 20 * blurred["chi2"]


def test_a_row_that_repeats_another_does_not_count_twice() -> None:
    covariance = correlated(2, 0.05)
    twice = covariance[np.ix_([0, 1, 1], [0, 1, 1])]
    values, truth = np.array([1.1, 0.95, 0.95]), np.ones(3)
    single = compare_with_truth(factors(values[:2], truth[:2], covariance), np.zeros((2, 2)))
    double = compare_with_truth(factors(values, truth, twice), np.zeros((3, 3)))
    assert double["ndf"] == single["ndf"] == 2
    assert double["chi2"] == pytest.approx(single["chi2"])


def test_rows_with_few_jets_or_without_truth_are_left_out() -> None:
    covariance, truth = correlated(4, 0.05), np.ones(4)
    content = factors(truth, truth, covariance)
    content["rows"][1]["expected_passing"] = 24.9
    content["rows"][2]["truth"] = None
    assert compare_with_truth(content, np.zeros((4, 4)))["rows_used"] == [0, 3]


def test_no_rows_give_no_p_value() -> None:
    content = factors(np.ones(2), np.ones(2), np.eye(2), passing=3.0)
    result = compare_with_truth(content, np.zeros((2, 2)))
    assert (result["ndf"], result["p_value"]) == (0, None)


def test_identity_is_compared_on_the_same_rows() -> None:
    covariance, truth = correlated(4, 0.5), np.full(4, 1.6)
    result = compare_with_truth(factors(truth, truth, covariance), correlated(4, 0.02))
    assert result["chi2"] == pytest.approx(0.0)
    # A large uncertainty of the measurement does not excuse having measured nothing.
    assert result["uncalibrated"]["p_value"] < 1e-6
    assert result["uncalibrated"]["rows_used"] == result["rows_used"]


def test_continuous_bins_and_their_sum_have_the_multinomial_covariance() -> None:
    random = np.random.default_rng(4)
    selections = [(1,), (2,), (1, 2)]
    shares = PassingShares.of(random.standard_normal(500), np.ones(500), (-0.5, 0.5), selections)
    p, q = shares.value[0], shares.value[1]
    assert shares.value[2] == pytest.approx(p + q)
    expected = np.array([[p * (1 - p), -p * q], [-p * q, q * (1 - q)]]) / 500
    assert shares.covariance[:2, :2] == pytest.approx(expected)
    assert shares.covariance[2, 2] == pytest.approx((p + q) * (1 - p - q) / 500)


def test_nested_efficiencies_have_the_binomial_covariance() -> None:
    random = np.random.default_rng(3)
    edges = (-0.5, 0.0, 0.7, 1.2)
    draws, predicted = [], None
    for _ in range(2000):
        shares = PassingShares.of(random.standard_normal(200), np.ones(200), edges)
        draws.append(shares.value)
        predicted = shares.covariance if predicted is None else predicted + shares.covariance
    assert predicted is not None
    assert np.cov(np.array(draws).T) == pytest.approx(predicted / 2000, rel=0.12)


def test_the_summary_of_fractions_counts_pulls_and_the_errors_of_main_flavours() -> None:
    def row(prior: float, fitted: float, uncertainty: float, truth: float) -> dict[str, float]:
        return {"prior": prior, "fitted": fitted, "uncertainty": uncertainty, "truth": truth}

    found = fraction_summary(
        [
            row(0.6, 0.55, 0.044, 0.50),  # 1.14 sigma, main: 8 %
            row(0.3, 0.30, 0.015, 0.25),  # 3.33 sigma, main: 5 %
            row(0.1, 0.10, 0.050, 0.19),  # 1.8 sigma, not a main flavour
            row(0.02, 0.02, 0.010, 0.02),
            row(0.001, 0.001, 0.0001, 0.05),  # not judged
        ]
    )
    assert found == {
        "fractions": 4,
        "within_1_5_sigma": 0.5,
        "largest_pull": pytest.approx(10 / 3),
        "main_relative_uncertainty": pytest.approx(0.08),
    }
