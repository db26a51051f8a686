"""Charged particles on their way through the tracker, and the random streams of its effects."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from selfcal.generate.records import ranges


@dataclass(frozen=True)
class Candidates:
    """P charged particles, each in the cone of one jet.

    Attributes
    ----------
    jet : (P,) int64, row of its jet
    momentum : (P, 3) float64, GeV, at the production ``position`` (P, 3), mm from the primary vertex
    charge : (P,) int8; pdg : (P,) int32
    origin : (P,) int8; vertex : (P,) int16, truth labels as in the file
    stop_radius_mm : (P,) float64, transverse radius at which the particle is absorbed, or infinity
    """

    jet: NDArray[np.int64]
    momentum: NDArray[np.float64]
    position: NDArray[np.float64]
    charge: NDArray[np.int8]
    pdg: NDArray[np.int32]
    origin: NDArray[np.int8]
    vertex: NDArray[np.int16]
    stop_radius_mm: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.jet)


def join(parts: Sequence[Candidates]) -> Candidates:
    """All candidates, ordered by jet; within a jet the order of ``parts``."""
    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Candidates)}
    order = np.argsort(joined["jet"], kind="stable")
    return Candidates(**{name: values[order] for name, values in joined.items()})


def random_stream(seed: int, effect: str) -> np.random.Generator:
    """An independent generator per effect.

    One effect's draws do not move another's when a nuisance parameter changes how
    many numbers it takes, so that samples of different theta stay correlated.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(effect.encode())])))


def nearest_neighbour(
    jet: NDArray[np.int64], eta: NDArray[np.float64], phi: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance Delta R (n,) of every particle to the next of its jet, infinite when alone; sorted by jet."""
    count_of_jet = np.bincount(jet) if len(jet) else np.zeros(0, dtype=np.int64)
    first = (np.cumsum(count_of_jet) - count_of_jet)[jet]
    count = count_of_jet[jet]
    one = np.repeat(np.arange(len(jet)), count)
    other = ranges(first, count)
    dphi = np.abs(phi[one] - phi[other])
    squared = (eta[one] - eta[other]) ** 2 + np.minimum(dphi, 2 * np.pi - dphi) ** 2
    squared[one == other] = np.inf
    if not len(jet):
        return np.zeros(0)
    return np.sqrt(np.minimum.reduceat(squared, np.cumsum(count) - count))
