"""Three disjoint folds by a hash of the event key.

Data that shaped the tagger (``train``) or the map (``derive``) never measure a
scale factor (``measure``); all jets of one event fall into one fold.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import Jets


class Fold(IntEnum):
    """TRAIN: tagger and joint stage. DERIVE: composition and map. MEASURE: scale factors."""

    TRAIN = 0
    DERIVE = 1
    MEASURE = 2


UNTRAINED = (Fold.DERIVE, Fold.MEASURE)
"""Simulation that did not train the tagger. A map that was derived with some of it moves all of it alike."""


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection with full avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def event_hash(dataset: str, run: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64-bit hash of (dataset, run, event) (N,), the same on every machine."""
    seed = np.uint64(zlib.crc32(dataset.encode()))
    return splitmix64(splitmix64(run.astype(np.uint64) ^ (seed << np.uint64(32))) ^ event.astype(np.uint64))


def bootstrap_weights(jets: Jets, bootstrap: int) -> NDArray[np.float64]:
    """How often each jet counts in a bootstrap of the events, (N,): Poisson with mean one, whole events.

    From a hash of (dataset, run, event) and the number of the bootstrap that is independent of the folds.
    """
    hashed = event_hash(f"{jets.dataset} bootstrap {bootstrap}", jets.run, jets.event)
    uniform = hashed.astype(np.float64) / 2.0**64
    # P(n <= k) of the Poisson law, up to n = 19: beyond that no double is left.
    cumulative = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 20)]))
    return np.searchsorted(cumulative, uniform, side="right").astype(np.float64)


def fold_of(jets: Jets, fractions: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)) -> NDArray[np.int8]:
    """Fold of every jet, (N,) int8 with the values of :class:`Fold`."""
    return fold_of_events(jets.dataset, jets.run, jets.event, fractions)


def fold_of_events(
    dataset: str, run: NDArray[np.int64], event: NDArray[np.int64], fractions: tuple[float, float, float]
) -> NDArray[np.int8]:
    """Fold of every event key (N,)."""
    uniform = event_hash(dataset, run, event).astype(np.float64) / 2.0**64
    edges = np.cumsum(fractions)[:2]
    return np.searchsorted(edges, uniform, side="right").astype(np.int8)
