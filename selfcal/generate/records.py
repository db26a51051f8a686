"""What stage 1 hands to stage 2: particle-level jets and the stable particles in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TruthJets:
    """N particle-level jets with P stable particles (charged, and photons) in their cones.

    Attributes
    ----------
    pt_gev, eta, phi : (N,) float32
    label : (N,) int8, cone label 5, 4, 15 or 0
    weight : (N,) float64, event weight (undoes a biased selection)
    event : (N,) int64; jet_rank : (N,) int32, rank in pT within the event
    hadron_pdg : (N,) int32, hadron or tau that gave the label; 0 for light jets
    hadron_pt_gev, hadron_lxy_mm, hadron_ctau_mm : (N,) float32, its momentum, transverse
        decay distance and proper decay length; 0 for light jets
    offsets : (N + 1,) int64, particles of jet i are rows ``offsets[i]:offsets[i+1]``
    momentum : (P, 3) float32, GeV; position : (P, 3) float32, production vertex, mm
    charge : (P,) int8; pdg : (P,) int32
    origin : (P,) int8, ``ftagTruthOriginLabel``
    vertex : (P,) int16, production vertex within the jet, 0 the primary one
    """

    pt_gev: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    label: NDArray[np.int8]
    weight: NDArray[np.float64]
    event: NDArray[np.int64]
    jet_rank: NDArray[np.int32]
    hadron_pdg: NDArray[np.int32]
    hadron_pt_gev: NDArray[np.float32]
    hadron_lxy_mm: NDArray[np.float32]
    hadron_ctau_mm: NDArray[np.float32]
    offsets: NDArray[np.int64]
    momentum: NDArray[np.float32]
    position: NDArray[np.float32]
    charge: NDArray[np.int8]
    pdg: NDArray[np.int32]
    origin: NDArray[np.int8]
    vertex: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.pt_gev)

    def first(self, n_jets: int) -> TruthJets:
        """The first ``n_jets`` jets with their particles."""
        n_particles = int(self.offsets[n_jets])
        cut = {name: getattr(self, name)[:n_jets] for name in JET_ARRAYS}
        cut |= {name: getattr(self, name)[:n_particles] for name in PARTICLE_ARRAYS}
        return TruthJets(offsets=self.offsets[: n_jets + 1], **cut)

    def select(self, rows: NDArray[np.integer]) -> TruthJets:
        """The jets of ``rows`` (increasing) with their particles."""
        counts = np.diff(self.offsets)[rows]
        particles = ranges(self.offsets[:-1][rows], counts)
        chosen = {name: getattr(self, name)[rows] for name in JET_ARRAYS}
        chosen |= {name: getattr(self, name)[particles] for name in PARTICLE_ARRAYS}
        return TruthJets(offsets=offsets_from_counts(counts), **chosen)


PARTICLE_ARRAYS = ("momentum", "position", "charge", "pdg", "origin", "vertex")
JET_ARRAYS = tuple(f.name for f in fields(TruthJets) if f.name not in PARTICLE_ARRAYS and f.name != "offsets")


def concatenate(parts: Sequence[TruthJets]) -> TruthJets:
    """One batch after the other; event numbers are taken as they are."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in (*JET_ARRAYS, *PARTICLE_ARRAYS)
    }
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return TruthJets(offsets=offsets_from_counts(counts), **arrays)


def offsets_from_counts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N,) counts to (N + 1,) offsets."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts: NDArray[np.integer], counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """All integers of the ranges [start, start + count), one range after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    rows: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return rows
