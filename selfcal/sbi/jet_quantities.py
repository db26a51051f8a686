r"""What the hadrons of a jet show in its tracks: quantities that the inference of the detector leaves alone.

Tracks are *near* below a significance of 4 in z0, *displaced* above 2.5 in d0 (signed by the jet) and below
10 in z0. Every jet falls into one bin of each quantity:

- ``tracks``, ``displaced_tracks``: numbers of near and of displaced tracks;
- ``second_d0``: second largest signed d0 significance of the near tracks (last bin first: fewer than two);
- ``momentum``, ``displaced_momentum``, ``leading_momentum``: pT of all near and displaced tracks and of the
  hardest near track over that of the jet, where the file knows momenta.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import Jets
from selfcal.sbi.summaries import NEAR
from selfcal.sbi.track_columns import track_columns, track_pt_gev

DISPLACED_D0, DISPLACED_Z0 = 2.5, 10.0

EDGES: dict[str, NDArray[np.float64]] = {
    "tracks": np.arange(0.5, 16.0),
    "displaced_tracks": np.arange(0.5, 8.0),
    "second_d0": np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 15.0, 25.0]),
    "momentum": np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    "displaced_momentum": np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8]),
    "leading_momentum": np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6]),
}
"""Inner edges of the bins of each quantity; the first and the last bin are open."""
QUANTITIES = tuple(EDGES)
BINS = tuple(len(edges) + 1 for edges in EDGES.values())
"""Number of bins of each quantity."""


def quantity_bins(jets: Jets) -> NDArray[np.int64]:
    """The bin of every jet in each of ``QUANTITIES``, (N, Q).

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    columns = track_columns(jets)
    d0, z0 = columns.d0_significance.astype(np.float64), columns.z0_significance
    near = np.abs(z0) < NEAR
    displaced = (d0 > DISPLACED_D0) & (np.abs(z0) < DISPLACED_Z0)
    share = track_pt_gev(jets) / jets.pt_gev.astype(np.float64)[columns.jet]
    share = np.where(np.isfinite(share), share, 0.0)
    size = len(jets)
    leading = np.zeros(size)
    np.maximum.at(leading, columns.jet[near], share[near])
    values: dict[str, NDArray[np.float64]] = {
        "tracks": _sum(columns.jet[near], np.ones(near.sum()), size),
        "displaced_tracks": _sum(columns.jet[displaced], np.ones(displaced.sum()), size),
        "second_d0": _second_largest(d0[near], columns.jet[near], size),
        "momentum": _sum(columns.jet[near], share[near], size),
        "displaced_momentum": _sum(columns.jet[displaced], share[displaced], size),
        "leading_momentum": leading,
    }
    return np.stack([np.digitize(values[name], edges) for name, edges in EDGES.items()], axis=1)


def _sum(jet: NDArray[np.int64], value: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(jet, value, size), np.float64)


def _second_largest(value: NDArray[np.float64], jet: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Per jet; -infinity where there are fewer than two."""
    order = np.lexsort((-value, jet))
    jet, value = jet[order], value[order]
    first = np.searchsorted(jet, np.arange(size))
    number = np.bincount(jet, minlength=size)
    found = np.full(size, -np.inf)
    several = number >= 2
    found[several] = value[first[several] + 1]
    return found
