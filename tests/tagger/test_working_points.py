"""Thresholds reach the wanted efficiency; areas and errors equal their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.errors import DataError
from selfcal.tagger.working_points import area_under_curve, efficiency, roc_curve, thresholds

POINTS = [0.1, 0.6, 0.7, 0.77, 0.85, 1.0]


def test_unweighted_thresholds_are_order_statistics():
    values = np.random.default_rng(1).permutation(np.arange(1000.0))
    np.testing.assert_array_equal(
        thresholds(values, np.ones(1000), POINTS), [900.0, 400.0, 300.0, 230.0, 150.0, 0.0]
    )


def test_weighted_thresholds_are_the_largest_that_reach_the_efficiency():
    generator = np.random.default_rng(2)
    values, weight = generator.normal(size=500), generator.uniform(0.1, 3, 500)
    for point, cut in zip(POINTS, thresholds(values, weight, POINTS), strict=True):
        reached = weight[values >= cut].sum() / weight.sum()
        without = weight[values > cut].sum() / weight.sum()
        assert without < point <= reached * (1 + 1e-12)


def test_tied_jets_pass_together():
    values = np.array([5.0, 3.0, 3.0, 3.0, 1.0])
    np.testing.assert_array_equal(
        thresholds(values, np.ones(5), [0.2, 0.21, 0.8, 0.81]), [5.0, 3.0, 3.0, 1.0]
    )


def test_no_signal_is_an_error():
    with pytest.raises(DataError, match="no signal"):
        thresholds(np.array([]), np.array([]), [0.7])


def test_efficiency_and_rejection_with_binomial_errors():
    values = np.arange(100.0)
    result = efficiency(values, np.full(100, 2.0), 80.0)
    assert result.value == pytest.approx(0.2)
    assert result.error == pytest.approx(np.sqrt(0.2 * 0.8 / 100))
    assert result.rejection == pytest.approx(5.0)
    assert result.rejection_error == pytest.approx(25 * result.error)
    nothing = efficiency(values, np.ones(100), 1e3)
    assert nothing.rejection is None
    assert nothing.rejection_error is None


def test_error_of_weighted_jets_uses_the_effective_number():
    weight = np.array([1.0, 1.0, 4.0])
    assert efficiency(np.arange(3.0), weight, 2.0).error == pytest.approx(np.sqrt(2 / 3 * 1 / 3 / (36 / 18)))


def test_roc_equals_direct_counting():
    generator = np.random.default_rng(3)
    signal, background = generator.integers(0, 30, 200) + 5.0, generator.integers(0, 30, 300) + 0.0
    weight = generator.uniform(0.5, 2, 300)
    curve = roc_curve(signal, background, np.ones(200), weight, points=20)
    for cut, s, b in zip(curve.threshold, curve.signal, curve.background, strict=True):
        assert s == pytest.approx((signal >= cut).mean())
        assert b == pytest.approx(weight[background >= cut].sum() / weight.sum())
    assert (curve.signal >= np.arange(1, 21) / 20 - 1e-12).all()


def test_area_equals_all_pairs():
    generator = np.random.default_rng(4)
    signal, background = generator.integers(3, 12, 80) + 0.0, generator.integers(0, 10, 90) + 0.0
    ws, wb = generator.uniform(size=80), generator.uniform(size=90)
    pairs = (signal[:, None] > background) + 0.5 * (signal[:, None] == background)
    expected = (ws[:, None] * wb * pairs).sum() / (ws.sum() * wb.sum())
    assert area_under_curve(signal, background, ws, wb) == pytest.approx(expected, rel=1e-12)
