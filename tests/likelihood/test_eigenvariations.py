"""The reduction of a covariance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcal.errors import FitError
from selfcal.likelihood.eigenvariations import reduce_covariance, round_trip_error


def covariance_of_rank(rank: int, bins: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rank, bins)) * 10.0 ** rng.uniform(-3, 1, bins)
    return factors.T @ factors


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_a_covariance_of_low_rank_is_given_back_exactly_by_as_many_variations(rank, seed) -> None:
    covariance = covariance_of_rank(rank, 9, seed)
    reduced = reduce_covariance(covariance, residual_max=1e-6)
    assert len(reduced.shifts) <= rank
    error = round_trip_error(reduced, covariance)
    assert error.covariance < 1e-11
    assert error.sigma < 1e-11


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), residual_max=st.floats(0.003, 0.5))
def test_the_residual_is_below_the_limit_and_one_variation_fewer_is_not_enough(seed, residual_max) -> None:
    covariance = covariance_of_rank(12, 9, seed)
    sigma = np.sqrt(np.diag(covariance))
    reduced = reduce_covariance(covariance, residual_max)
    rest = np.maximum(sigma**2 - (reduced.shifts**2).sum(axis=0), 0)
    assert (np.sqrt(rest) < residual_max * sigma + 1e-7 * sigma).all()
    fewer = np.sqrt(np.maximum(sigma**2 - (reduced.shifts[:-1] ** 2).sum(axis=0), 0))
    assert (fewer >= residual_max * sigma).any()


def test_the_diagonal_is_kept_and_the_error_of_the_rest_is_bounded_by_the_residual() -> None:
    covariance = covariance_of_rank(12, 9, 5)
    reduced = reduce_covariance(covariance, 0.3)
    error = round_trip_error(reduced, covariance)
    np.testing.assert_allclose(np.diag(reduced.covariance()), np.diag(covariance), rtol=1e-12)
    assert 0 < error.covariance <= error.residual**2 < 0.3**2


def test_two_bins_in_closed_form() -> None:
    """ρ = [[1, r], [r, 1]] has λ = 1 ± r with (1, ±1)/√2."""
    r, sigma = 0.6, np.array([0.1, 2.0])
    covariance = np.array([[1, r], [r, 1]]) * np.outer(sigma, sigma)
    shifts = reduce_covariance(covariance).shifts
    np.testing.assert_allclose(shifts[0], np.sqrt((1 + r) / 2) * sigma, rtol=1e-12)
    np.testing.assert_allclose(np.abs(shifts[1]), np.sqrt((1 - r) / 2) * sigma, rtol=1e-12)
    assert shifts[1, 0] * shifts[1, 1] < 0


def test_the_number_of_variations_does_not_depend_on_units() -> None:
    covariance = covariance_of_rank(12, 9, 3)
    scale = np.logspace(-4, 4, 9)
    before = reduce_covariance(covariance, 0.1)
    after = reduce_covariance(covariance * np.outer(scale, scale), 0.1)
    np.testing.assert_allclose(after.shifts, before.shifts * scale, rtol=1e-6)


def test_bins_without_uncertainty_are_not_varied() -> None:
    covariance = np.diag([1.0, 0.0, 4.0])
    reduced = reduce_covariance(covariance)
    assert (reduced.shifts[:, 1] == 0).all()
    assert reduced.envelope[1] == 0
    assert round_trip_error(reduced, covariance).covariance < 1e-15
    nothing = reduce_covariance(np.zeros((2, 2)))
    assert round_trip_error(nothing, np.zeros((2, 2))).covariance == 0


@pytest.mark.fault(9, "matrices that are no covariance")
@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 0.5], [0.1, 1.0]],
        [[1.0, np.nan], [np.nan, 1.0]],
        [[-1.0, 0.0], [0.0, 1.0]],
    ],
    ids=["indefinite", "not symmetric", "NaN", "negative variance"],
)
def test_what_is_no_covariance_is_refused(matrix) -> None:
    with pytest.raises(FitError):
        reduce_covariance(np.array(matrix))


def test_the_largest_shift_of_every_variation_is_upwards() -> None:
    """The sign of an eigenvector is arbitrary: this one is the same on every machine."""
    random = np.random.default_rng(5)
    for _ in range(5):
        root = 0.02 * random.normal(size=(6, 6))
        reduced = reduce_covariance(root @ root.T, 0.0)
        relative = reduced.shifts / np.sqrt(np.diag(root @ root.T))
        largest = relative[np.arange(len(relative)), np.abs(relative).argmax(axis=1)]
        assert (largest > 0).all()
