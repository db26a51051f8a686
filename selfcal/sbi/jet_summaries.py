r"""What the neural estimators see of a jet: a vector of continuous numbers from tracks with little lifetime.

Tracks are *near* along or across the beam below a significance of 4 in z0 or d0, and fall into the
categories of :mod:`selfcal.sbi.summaries`. Per category

- ``lead_d0``, ``lead_z0``: a = the largest -significance among near tracks on the negative side, ln(1 + a);
- ``tracks``: the number n of tracks that are near along the beam and have negative d0, as ln(1 + n + u);

and per jet ``pileup``: near across, not along the beam; ``far``: negative d0, near in neither; both as
ln(1 + n + u); ``centre_d0``, ``centre_z0``: the mean of x/σ, with the sign of x, of tracks within 2σ in both.

The law of a jet's summaries has atoms: counts, and *absent* tracks. Both are given a known law of their
own, independent of theta, so that every bin of the predictive check can hold the same part of the jets: u
is even in [0, 1), and what is absent is drawn from N(``ABSENT``, ``ABSENT_WIDTH``²), outside of the range
of what is present (below zero; below -2 for ``centre``). The map from (jet, these random numbers) to the
vector can be undone: nothing that the jet says of theta is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from selfcal.data.jets import Jets
from selfcal.sbi.noise import hashed_uniform, jet_keys
from selfcal.sbi.summaries import CATEGORIES, CENTRE, NEAR
from selfcal.sbi.track_columns import column, track_columns

ABSENT, ABSENT_WIDTH = -1.0, 0.15
"""Mean and width of the numbers that stand for an absent leading significance ..."""
ABSENT_CENTRE = -3.0
"""... and mean of those that stand for the mean of no tracks."""
_STREAM = 900
"""First of the random streams; those of the smearing are below."""

SUMMARIES: tuple[str, ...] = (
    *(f"tracks {category}" for category in CATEGORIES),
    "pileup all",
    "far all",
    *(f"lead_d0 {category}" for category in CATEGORIES),
    *(f"lead_z0 {category}" for category in CATEGORIES),
    "centre_d0 all",
    "centre_z0 all",
)
"""Name and track category of every number of the vector."""

Floats = NDArray[np.float64]


def summarise(jets: Jets, seed: int) -> Floats:
    """The vectors, (N, S); random numbers are a hash of each jet's key and ``seed``.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    columns = track_columns(jets)
    d0, z0 = (side.astype(np.float64) for side in (columns.d0_significance, columns.z0_significance))
    near_d0, near_z0 = np.abs(d0) < NEAR, np.abs(z0) < NEAR
    category = np.where(columns.innermost, columns.high.astype(np.int64), 2)
    filled = _Filling(jet_keys(jets, seed), columns.jet)
    members = [category == c for c in range(len(CATEGORIES))]
    found = [filled.count(near_z0 & (d0 < 0) & member) for member in members]
    found += [filled.count(near_d0 & ~near_z0), filled.count((d0 <= -NEAR) & ~near_z0)]
    found += [filled.leading(-d0, near_z0 & (d0 < 0) & member) for member in members]
    found += [filled.leading(-z0, near_d0 & (z0 < 0) & member) for member in members]
    centre = (np.abs(d0) < CENTRE) & (np.abs(z0) < CENTRE)
    found += [
        filled.mean(np.abs(significance) * np.sign(column(jets, name)), centre)
        for name, significance in (("d0", d0), ("z0SinTheta", z0))
    ]
    return np.stack(found, axis=1)


@dataclass
class _Filling:
    """Numbers per jet from chosen tracks, the next random stream for each."""

    key: NDArray[np.uint64]
    jet: NDArray[np.int64]
    stream: int = _STREAM

    def leading(self, value: Floats, chosen: NDArray[np.bool_]) -> Floats:
        """ln(1 + largest value), positive where there is a track."""
        largest = np.zeros(len(self.key))
        np.maximum.at(largest, self.jet[chosen], value[chosen])
        return np.where(largest > 0, np.log1p(largest), self._absent(ABSENT))

    def count(self, chosen: NDArray[np.bool_]) -> Floats:
        """ln(1 + n + u)."""
        number = np.bincount(self.jet[chosen], minlength=len(self.key))
        return np.asarray(np.log1p(number + self._uniform()), np.float64)

    def mean(self, value: Floats, chosen: NDArray[np.bool_]) -> Floats:
        """The mean over the tracks."""
        number = np.bincount(self.jet[chosen], minlength=len(self.key))
        total = np.bincount(self.jet[chosen], value[chosen], len(self.key))
        return np.where(number > 0, total / np.maximum(number, 1), self._absent(ABSENT_CENTRE))

    def _absent(self, centre: float) -> Floats:
        return np.asarray(centre + ABSENT_WIDTH * ndtri(self._uniform()), np.float64)

    def _uniform(self) -> Floats:
        self.stream += 1
        return hashed_uniform(self.key, self.stream)


def present(name: str, values: Floats) -> NDArray[np.bool_]:
    """Where the numbers (N,) of one summary stand for tracks that exist."""
    boundary = {"lead_d0": 0.0, "lead_z0": 0.0, "centre_d0": -CENTRE, "centre_z0": -CENTRE}
    return np.asarray(values > boundary.get(name.split(maxsplit=1)[0], -np.inf))
