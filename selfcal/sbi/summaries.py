"""What theta is inferred from: binned counts of tracks that carry little lifetime.

Tracks fall into categories (innermost hit and pT below or above 5 GeV; no innermost hit). Per category

- ``d0``: negative side of the signed d0 significance, tracks near the vertex along the beam;
- ``z0``: negative side of the signed z0 significance, tracks near the vertex across the beam, and tracks
  far from it both ways with negative d0, which are mostly fakes;

and per pT band ``hit``: tracks without and with innermost hit; ``d0_sign``, ``z0_sign``: tracks near the
vertex with negative and positive d0, z0 (not signed by the jet: the sign of a common offset is seen
nowhere else); per region ``tracks``: tracks per jet.
Every histogram but ``tracks`` counts relative to its own sum, so that the momentum spectrum and the
multiplicity of tracks, which belong to the generator, do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.sbi.track_columns import column, track_columns

CATEGORIES = ("innermost_low_pt", "innermost_high_pt", "no_innermost")
D0_EDGES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, np.inf])
Z0_EDGES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0, np.inf])
NEAR = 4.0
"""Tracks count as near the vertex in one coordinate below this significance in the other."""
CENTRE = 2.0
"""Tracks below it in both significances count for the sign of an offset."""
FAR_D0 = 10.0
"""Boundary between the two bins of tracks far from the vertex both ways."""


@dataclass(frozen=True)
class Histogram:
    """A block of bins; ``normalised`` if only its shape counts."""

    name: str
    category: str
    bins: slice
    normalised: bool


def _histograms() -> tuple[Histogram, ...]:
    blocks: list[Histogram] = []
    start = 0
    for name, categories, size, normalised in (
        ("d0", CATEGORIES, len(D0_EDGES) - 1, True),
        ("z0", CATEGORIES, len(Z0_EDGES) + 1, True),
        ("hit", ("low_pt", "high_pt"), 2, True),
        ("d0_sign", ("low_pt", "high_pt"), 2, True),
        ("z0_sign", ("low_pt", "high_pt"), 2, True),
        ("tracks", ("all",), 1, False),
    ):
        for category in categories:
            blocks.append(Histogram(name, category, slice(start, start + size), normalised))
            start += size
    return tuple(blocks)


HISTOGRAMS = _histograms()
N_BINS = HISTOGRAMS[-1].bins.stop


@dataclass(frozen=True)
class Counts:
    """Summed summaries of a sample.

    Attributes
    ----------
    total : (F, B) sum over jets of weight times number of tracks, per flavour and bin
    jets : (F,) sum of weights of the jets
    spread : (F, B) sum over jets of (weight times number of tracks)^2: the variance of ``total`` if jets
        are independent, which their tracks are not
    """

    total: NDArray[np.float64]
    jets: NDArray[np.float64]
    spread: NDArray[np.float64]

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.total + other.total, self.jets + other.jets, self.spread + other.spread)

    def pooled(self) -> Counts:
        """All flavours as one."""
        return Counts(*(part.sum(axis=0, keepdims=True) for part in (self.total, self.jets, self.spread)))


def count_tracks(jets: Jets, *, with_spread: bool = True) -> Counts:
    """Summaries per flavour; jets without a label all count as the first flavour.

    Without ``with_spread`` the spread is zero, which is twice as fast.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    flavour = np.maximum(jets.flavour.astype(np.int64), 0)
    entries = _entries(jets)
    jet = np.concatenate([e[0] for e in entries])
    bins = np.concatenate([e[1] for e in entries])
    cell = flavour[jet] * N_BINS + bins
    shape = (len(FLAVOURS), N_BINS)
    size = shape[0] * shape[1]
    total = np.bincount(cell, weights=jets.weight[jet], minlength=size).reshape(shape)
    spread = np.zeros(shape)
    if with_spread:
        per_jet, number = np.unique(jet * N_BINS + bins, return_counts=True)
        owner, place = per_jet // N_BINS, per_jet % N_BINS
        squares = (jets.weight[owner] * number) ** 2
        sums = np.bincount(flavour[owner] * N_BINS + place, squares, minlength=size)
        spread = np.asarray(sums, dtype=np.float64).reshape(shape)
    number_of_jets = np.asarray(np.bincount(flavour, jets.weight, minlength=len(FLAVOURS)), dtype=np.float64)
    return Counts(total, number_of_jets, spread)


def count_samples(samples: Sequence[Jets], *, with_spread: bool = True) -> Counts:
    """Summaries of several samples as one."""
    first, *rest = [count_tracks(jets, with_spread=with_spread) for jets in samples]
    for part in rest:
        first = first + part
    return first


def tracks_of_jets(jets: Jets) -> NDArray[np.uint8]:
    """Tracks of every jet in every bin, (N, B).

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    cells = np.concatenate([jet * N_BINS + bins for jet, bins in _entries(jets)])
    found = np.bincount(cells, minlength=len(jets) * N_BINS).reshape(len(jets), N_BINS)
    return np.minimum(found, np.iinfo(np.uint8).max).astype(np.uint8)


def _entries(jets: Jets) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (jet of each entry, its bin), one pair of arrays per kind of histogram."""
    columns = track_columns(jets)
    d0, z0 = columns.d0_significance, columns.z0_significance
    category = np.where(columns.innermost, columns.high.astype(np.int64), 2)
    first = {(h.name, h.category): h.bins.start for h in HISTOGRAMS}
    d0_start, z0_start = (
        np.array([first[name, c] for c in CATEGORIES], dtype=np.int64) for name in ("d0", "z0")
    )
    near_d0, near_z0 = np.abs(d0) < NEAR, np.abs(z0) < NEAR
    on_d0 = (d0 < 0) & near_z0
    on_z0 = (z0 < 0) & near_d0
    far = (d0 <= -NEAR) & ~near_z0
    counted = on_d0
    centre = (np.abs(d0) < CENTRE) & (np.abs(z0) < CENTRE)
    band = columns.high[centre].astype(np.int64)
    signs = [
        (
            columns.jet[centre],
            np.array([first[name, "low_pt"], first[name, "high_pt"]])[band]
            + (column(jets, field)[centre] > 0),
        )
        for name, field in (("d0_sign", "d0"), ("z0_sign", "z0SinTheta"))
    ]
    band_start = np.array([first["hit", "low_pt"], first["hit", "high_pt"]], dtype=np.int64)
    return [
        (columns.jet[on_d0], d0_start[category[on_d0]] + np.digitize(-d0[on_d0], D0_EDGES) - 1),
        (columns.jet[on_z0], z0_start[category[on_z0]] + np.digitize(-z0[on_z0], Z0_EDGES) - 1),
        (
            columns.jet[far],
            z0_start[category[far]] + len(Z0_EDGES) - 1 + (d0[far] <= -FAR_D0).astype(np.int64),
        ),
        (
            columns.jet[counted],
            band_start[columns.high[counted].astype(np.int64)] + columns.innermost[counted],
        ),
        *signs,
        (columns.jet[near_z0], np.full(int(near_z0.sum()), first["tracks", "all"], dtype=np.int64)),
    ]
