"""Efficiencies in bins of pT, |η| and flavour: the classic two-dimensional map, and projections on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.kinematic_bins import KinematicBins
from selfcal.efficiency.event_jets import EventJets

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Grid(KinematicBins):
    """Bins of pT and |η| per flavour; jets beyond the last edges belong to the outermost bins.

    A cell is (flavour · P + pT bin) · E + |η| bin, with P bins of pT and E of |η|.
    """

    pt_gev_edges: tuple[float, ...]
    abs_eta_edges: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(FLAVOURS) * self.n_pt * self.n_eta

    def cell(self, jets: EventJets) -> Int64[NDArray[np.int64], " N"]:
        """Cell of every jet, (N,)."""
        pt_bin = np.digitize(jets.pt_gev, self.pt_gev_edges[1:-1])
        eta_bin = np.digitize(np.abs(jets.eta), self.abs_eta_edges[1:-1])
        found: NDArray[np.int64] = (jets.flavour * self.n_pt + pt_bin) * self.n_eta + eta_bin
        return found

    def place(self, cell: int) -> tuple[int, int, int]:
        """Flavour, pT bin and |η| bin of a cell."""
        rest, eta_bin = divmod(cell, self.n_eta)
        return *divmod(rest, self.n_pt), eta_bin


@dataclass(frozen=True)
class GridMap:
    """ε = Σ w [passes] / Σ w per cell (cells, K), and its variance ε (1 − ε) Σ w² / (Σ w)².

    A cell without jets has the mean of its flavour, with the variance of one jet.
    """

    grid: Grid
    efficiency: Float[NDArray[np.float64], "cells points"]
    variance: Float[NDArray[np.float64], "cells points"]
    jets: Int64[NDArray[np.int64], " cells"]


def passing(jets: EventJets, points: int) -> Floats:
    """One where a jet passes a working point, (N, K)."""
    return (jets.passed[:, None] > np.arange(points)).astype(np.float64)


def learn_grid(grid: Grid, jets: EventJets, points: int) -> GridMap:
    """The two-dimensional map of ``jets``."""
    cell, passed = grid.cell(jets), passing(jets, points)
    total = np.bincount(cell, jets.weight, grid.size)
    squares = np.bincount(cell, jets.weight**2, grid.size)
    per_flavour = np.repeat(total.reshape(len(FLAVOURS), -1).sum(axis=1), grid.n_pt * grid.n_eta)
    known = total > 0
    efficiency = np.zeros((grid.size, points))
    for k in range(points):
        inside = np.bincount(cell, jets.weight * passed[:, k], grid.size)
        of_flavour = np.repeat(inside.reshape(len(FLAVOURS), -1).sum(axis=1), grid.n_pt * grid.n_eta)
        mean = np.divide(of_flavour, per_flavour, out=np.zeros(grid.size), where=per_flavour > 0)
        efficiency[:, k] = np.divide(inside, total, out=mean, where=known)
    share = np.divide(squares, total**2, out=np.ones(grid.size), where=known)
    variance = (efficiency * (1 - efficiency)).clip(min=0.0) * share[:, None]
    return GridMap(grid, efficiency, variance, np.bincount(cell, minlength=grid.size))


def projected(
    grid: Grid, jets: EventJets, by_bag: Float[NDArray[np.float32], "bags N K"]
) -> tuple[Floats, Floats]:
    """Mean efficiency of the jets of every cell and its spread over bags, (cells, K); NaN: no jets."""
    cell = grid.cell(jets)
    total = np.bincount(cell, jets.weight, grid.size)
    means = np.full((*by_bag.shape[:1], grid.size, by_bag.shape[2]), np.nan)
    known = total > 0
    for b, found in enumerate(by_bag):
        for k in range(found.shape[1]):
            weighted = np.bincount(cell, jets.weight * found[:, k], grid.size)
            means[b, known, k] = weighted[known] / total[known]
    return means.mean(axis=0), means.std(axis=0, ddof=1)
