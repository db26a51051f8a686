"""Random numbers that belong to a jet: the same whichever other jets are read with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from selfcal.data.folds import event_hash, splitmix64
from selfcal.data.jets import Jets

UNIFORM_STREAMS = ("loss", "innermost", "tail", "far_tail")
NORMAL_STREAMS = ("hit_d0", "hit_z0", "core_d0", "core_z0", "tail_d0", "tail_z0")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Noise:
    """Random numbers of N jets with T tracks.

    Attributes
    ----------
    jet_key : (N,) uint64
    uniform, normal : streams of (T,) float32 by name
    """

    jet_key: NDArray[np.uint64]
    uniform: dict[str, NDArray[np.float32]]
    normal: dict[str, NDArray[np.float32]]


def draw_noise(jets: Jets, seed: int) -> Noise:
    """From a hash of (seed, dataset, run, event, jet index, place of the track in its jet, stream)."""
    key = jet_keys(jets, seed)
    place = np.arange(len(jets.tracks)) - np.repeat(jets.track_offsets[:-1], jets.n_tracks)
    track_key = splitmix64(np.repeat(key, jets.n_tracks) + (place.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    streams = {name: hashed_uniform(track_key, i) for i, name in enumerate(UNIFORM_STREAMS + NORMAL_STREAMS)}
    return Noise(
        key,
        {name: streams[name].astype(np.float32) for name in UNIFORM_STREAMS},
        {name: ndtri(streams[name]).astype(np.float32) for name in NORMAL_STREAMS},
    )


def jet_keys(jets: Jets, seed: int) -> NDArray[np.uint64]:
    """A hash of (seed, dataset, run, event, jet index), (N,)."""
    salt = np.array([seed], dtype=np.uint64) * _GOLDEN
    key = splitmix64(event_hash(jets.dataset, jets.run, jets.event) + salt)
    return splitmix64(key + jets.jet_index.astype(np.uint64))


def hashed_uniform(key: NDArray[np.uint64], stream: int) -> NDArray[np.float64]:
    """Numbers evenly in (0, 1), one per key, another one for every stream."""
    salt = np.array([stream + 1], dtype=np.uint64) * _GOLDEN
    bits = splitmix64(key ^ salt) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) / 2.0**52


POISSON_MAX = 60
"""More tracks than that are never added to one jet."""


def poisson_quantile(uniform: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.int64]:
    """Smallest n with P(N <= n) >= ``uniform`` for Poisson numbers N of ``mean``; grows with the mean."""
    count = np.zeros(len(uniform), dtype=np.int64)
    term = np.exp(-mean)
    total = term.copy()
    n = 0
    while (above := uniform > total).any() and n < POISSON_MAX:
        n += 1
        count[above] = n
        term = term * mean / n
        total = total + term
    return count
