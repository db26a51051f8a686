"""Where the control regions have jets, and which jets lie beyond: there a map is a guess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from selfcal.data.flavours import FLAVOURS
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.transport.composition import distance_features
from selfcal.transport.sample import Sample

NEIGHBOURS = 10
"""A jet is as far from the reference as its neighbour of this number."""
QUANTILE = 0.999
REFERENCE_JETS = 5000
"""Jets per flavour that stand for the control regions."""


@dataclass(frozen=True)
class Support:
    """Jets of each flavour of the control regions, and how far apart they lie.

    A jet at x = (scores, l · conditions) is **beyond the support** of flavour f if its distance to the
    ``NEIGHBOURS``-th nearest of the flavour's reference jets is larger than ``reach[f]``: the quantile
    ``QUANTILE`` of the same distance among the control regions' other jets of f. One in a thousand of
    those is therefore flagged, wherever they lie densest or thinnest. A flavour with fewer than
    ``2 * NEIGHBOURS`` jets has no support, and all its jets are flagged.
    """

    points: tuple[NDArray[np.float64], ...]
    reach: tuple[float, ...]

    @classmethod
    def of(cls, simulation: Sample, seed: int) -> Support:
        """From the simulation with which the maps were derived; half of it refers, half measures."""
        random = np.random.default_rng(seed)
        features = distance_features(simulation).numpy()
        flavour, weight = simulation.flavour.numpy(), simulation.weight.numpy()
        points, reach = [], []
        for index in range(len(FLAVOURS)):
            own = features[(flavour == index) & (weight != 0)]
            own = own[random.permutation(len(own))]
            if len(own) < 2 * NEIGHBOURS:
                points.append(np.zeros((0, features.shape[1])))
                reach.append(0.0)
                continue
            reference, others = np.array_split(own[: 2 * REFERENCE_JETS], 2)
            points.append(reference)
            reach.append(float(np.quantile(_distance(reference, others), QUANTILE)))
        return cls(tuple(points), tuple(reach))

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        arrays = {f"points/{name}": part for name, part in zip(FLAVOURS, self.points, strict=True)}
        write_arrays(path, {**arrays, "reach": np.array(self.reach)})

    @classmethod
    def load(cls, path: Path) -> Support:
        """Read what :meth:`save` wrote; raises DataError if it is missing or damaged."""
        arrays = read_arrays(path)
        points = tuple(arrays[f"points/{name}"] for name in FLAVOURS)
        return cls(points, tuple(float(reach) for reach in arrays["reach"]))

    def beyond(self, jets: Sample) -> NDArray[np.bool_]:
        """Which jets (labelled simulation) lie beyond the support of their flavour, (N,).

        A jet without flavour is flagged where it is beyond the support of every flavour.
        """
        features, flavour = distance_features(jets).numpy(), jets.flavour.numpy()
        flagged = np.ones(len(jets), dtype=bool)
        for index, (reference, reach) in enumerate(zip(self.points, self.reach, strict=True)):
            chosen = np.flatnonzero((flavour == index) | (flavour < 0))
            if len(reference) and len(chosen):
                flagged[chosen] &= _distance(reference, features[chosen]) > reach
        return flagged


def _distance(reference: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    neighbours = min(NEIGHBOURS, len(reference))
    return np.asarray(cKDTree(reference).query(points, k=[neighbours])[0]).reshape(len(points))
