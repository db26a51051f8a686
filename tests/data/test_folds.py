"""Folds and bootstraps by hashes of the event: whole events, the right law, independent of each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfcal.data.folds import bootstrap_weights, fold_of


@pytest.fixture(scope="module")
def jets():
    from dataclasses import dataclass

    @dataclass
    class Keys:
        """What the hashes look at."""

        dataset: str
        run: np.ndarray
        event: np.ndarray

    event = np.repeat(np.arange(40_000), 2)
    return Keys("data", np.ones(len(event), np.int64), event)


def test_bootstrap_weights_follow_the_poisson_law_with_mean_one(jets):
    weights = bootstrap_weights(jets, 1)[::2]
    counts = np.bincount(weights.astype(int), minlength=8)[:8]
    expected = len(weights) * stats.poisson.pmf(np.arange(8), 1.0)
    expected[-1] = len(weights) * stats.poisson.sf(6, 1.0)
    counts[-1] = (weights >= 7).sum()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_jets_of_an_event_count_alike_and_bootstraps_are_independent(jets):
    one, other = bootstrap_weights(jets, 1), bootstrap_weights(jets, 2)
    np.testing.assert_array_equal(one[::2], one[1::2])
    np.testing.assert_array_equal(one, bootstrap_weights(jets, 1))
    assert abs(np.corrcoef(one[::2], other[::2])[0, 1]) < 4 / np.sqrt(len(one) / 2)
    folds = fold_of(jets, (0.5, 0.2, 0.3))
    means = [one[folds == fold].mean() for fold in range(3)]
    assert np.allclose(means, 1.0, atol=5 / np.sqrt(0.2 * len(one) / 2))
