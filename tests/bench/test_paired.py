"""Ratios of rejections of two taggers, with errors that know what the two share."""

from __future__ import annotations

import numpy as np
import pytest

from bench.paired import compare_rejections, cross_entropy_change
from selfcal.data.flavours import LIGHT, B, C


def scores_of(discriminant):
    """ln p with ``discriminant`` = ln p_b - ln p_other for all others."""
    others = -np.log1p(np.exp(discriminant) / 3.0) - np.log(3.0)
    return np.stack([discriminant + others, others, others, others], axis=1)


@pytest.fixture
def world():
    """b jets at d = 2, others at 0, width 1: the separation in units of the width is the tagger's quality."""
    generator = np.random.default_rng(2)
    flavour = np.repeat([B, C, LIGHT], 4000)
    return flavour, np.arange(len(flavour)) // 2, 2.0 * (flavour == B) + generator.normal(size=len(flavour))


def test_the_same_tagger_has_the_ratio_one_without_error(world):
    flavour, event, discriminant = world
    for row in compare_rejections([scores_of(discriminant)], [scores_of(2 * discriminant)], flavour, event):
        assert (row["ratio"], row["jets_error"], row["trainings_error"]) == pytest.approx((1.0, 0.0, None))
        assert row["first"] == row["second"] > 1


def test_a_better_tagger_is_seen_and_pairs_give_the_error_of_the_trainings(world):
    flavour, event, discriminant = world
    generator = np.random.default_rng(3)
    blurred = [scores_of(discriminant + 0.7 * generator.normal(size=len(flavour))) for _ in range(4)]
    sharp = scores_of(discriminant)
    rows = compare_rejections([sharp] * 4, blurred, flavour, event)
    for row in rows:
        assert row["ratio"] > 1 + 3 * row["jets_error"]
        assert row["ratio"] == pytest.approx(np.exp(np.log(row["ratios"]).mean()), rel=2e-3)
        expected = np.std(np.log(row["ratios"]), ddof=1) / 2
        assert row["trainings_error"] == pytest.approx(expected, abs=2e-3)
    change, error = cross_entropy_change([sharp] * 4, blurred, flavour)
    assert change < -5 * error < 0


def test_pairing_makes_the_error_smaller_than_that_of_two_samples(world):
    flavour, event, discriminant = world
    generator = np.random.default_rng(4)
    nearly = scores_of(discriminant + 0.05 * generator.normal(size=len(flavour)))
    row = compare_rejections([scores_of(discriminant)], [nearly], flavour, event)[0]
    passing = (flavour == LIGHT).sum() / row["first"]
    assert row["jets_error"] < 0.5 * np.sqrt(2 / passing)
