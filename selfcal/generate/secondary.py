"""What the material does: photon conversions and hadronic interactions at five radii."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import ORIGINS
from selfcal.generate.candidates import Candidates, random_stream
from selfcal.generate.records import TruthJets

LAYER_RADII_MM = np.array([24.3, 33.3, 50.5, 88.5, 122.5])
"""Beam pipe and four layers of silicon."""
RADIATION_LENGTHS = np.array([0.006, 0.019, 0.026, 0.026, 0.026])
"""Thickness of each at normal incidence, in radiation lengths."""
INTERACTION_PER_RADIATION_LENGTH = 0.22
"""Nuclear interaction lengths in one radiation length."""
CONVERSION_PER_RADIATION_LENGTH = 7.0 / 9.0
"""Of photons of high energy (Bethe and Heitler)."""
_KICK_GEV = 0.30
"""Width, in each direction, of the momentum that a prong of a hadronic interaction gets."""
_MEAN_EXTRA_PRONGS = 1.2
_MAX_PRONGS = 5


def charged_candidates(truth: TruthJets, material_scale: float, seed: int) -> Candidates:
    """The charged particles of the generator, stopped where they interact with the material."""
    rows = np.flatnonzero(truth.charge != 0)
    jet = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))[rows]
    momentum = truth.momentum[rows].astype(np.float64)
    position = truth.position[rows].astype(np.float64)
    hadron = np.abs(truth.pdg[rows]) > 100
    layer, _ = _crossing_layer(
        momentum,
        position,
        np.where(hadron, INTERACTION_PER_RADIATION_LENGTH, 0.0) * material_scale,
        random_stream(seed, "interaction").random(len(rows)),
    )
    stops = np.append(LAYER_RADII_MM, np.inf)[layer]
    return Candidates(
        jet=jet, momentum=momentum, position=position, charge=truth.charge[rows], pdg=truth.pdg[rows],
        origin=truth.origin[rows], vertex=truth.vertex[rows], stop_radius_mm=stops,
    )  # fmt: skip


def material_products(truth: TruthJets, charged: Candidates, material_scale: float, seed: int) -> Candidates:
    """Electron pairs of converted photons and prongs of hadronic interactions, each with its own vertex."""
    pairs = _conversions(truth, material_scale, seed)
    prongs = _interaction_prongs(charged, seed)
    jet = np.concatenate([pairs[0], prongs[0]])
    source = np.concatenate([pairs[4], prongs[4] + (pairs[4].max(initial=-1) + 1)])
    n = len(jet)
    return Candidates(
        jet=jet,
        momentum=np.concatenate([pairs[1], prongs[1]]),
        position=np.concatenate([pairs[2], prongs[2]]),
        charge=np.concatenate([pairs[3], prongs[3]]),
        pdg=np.concatenate([-11 * pairs[3].astype(np.int32), 211 * prongs[3].astype(np.int32)]),
        origin=np.full(n, ORIGINS.index("other_secondary"), dtype=np.int8),
        vertex=_new_vertices(truth, jet, source),
        stop_radius_mm=np.full(n, np.inf),
    )


_Products = tuple[
    NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int8], NDArray[np.int64]
]


def _conversions(truth: TruthJets, material_scale: float, seed: int) -> _Products:
    """Jet, momentum, position, charge and vertex number of the electrons of converted photons."""
    rng = random_stream(seed, "conversion")
    rows = np.flatnonzero(truth.charge == 0)
    jet = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))[rows]
    momentum, position = truth.momentum[rows].astype(np.float64), truth.position[rows].astype(np.float64)
    uniform, share = rng.random(len(rows)), rng.random(len(rows))
    probability = np.full(len(rows), CONVERSION_PER_RADIATION_LENGTH * material_scale)
    layer, path = _crossing_layer(momentum, position, probability, uniform)
    converted = np.flatnonzero(layer < len(LAYER_RADII_MM))
    direction = momentum[converted] / np.hypot(*momentum[converted, :2].T)[:, None]
    where = position[converted] + path[converted, None] * direction
    share = share[converted, None]
    both = np.tile(np.arange(len(converted)), 2)
    return (
        jet[converted][both],
        np.concatenate([share * momentum[converted], (1.0 - share) * momentum[converted]]),
        where[both],
        np.repeat(np.array([-1, 1], dtype=np.int8), len(converted)),
        both,
    )


def _interaction_prongs(charged: Candidates, seed: int) -> _Products:
    """As :func:`_conversions`, for one to five prongs that share the parent's momentum with neutrals."""
    rng = random_stream(seed, "prongs")
    parents = np.flatnonzero(np.isfinite(charged.stop_radius_mm))
    shares = rng.exponential(size=(len(charged), _MAX_PRONGS + 1))[parents]
    kicks = rng.normal(scale=_KICK_GEV, size=(len(parents), _MAX_PRONGS, 3))
    prongs = np.minimum(1 + rng.poisson(_MEAN_EXTRA_PRONGS, len(charged))[parents], _MAX_PRONGS)
    present = np.arange(_MAX_PRONGS) < prongs[:, None]
    fraction = shares[:, :_MAX_PRONGS] * present
    fraction /= (fraction.sum(axis=1) + shares[:, _MAX_PRONGS])[:, None]
    momentum = fraction[:, :, None] * charged.momentum[parents][:, None, :] + kicks
    pt = np.hypot(*charged.momentum[parents, :2].T)
    path = _path_to(charged.momentum[parents], charged.position[parents], charged.stop_radius_mm[parents])
    where = charged.position[parents] + path[:, None] * charged.momentum[parents] / pt[:, None]
    which, slot = np.nonzero(present)
    charge = np.where(rng.random(len(which)) < 0.5, -1, 1).astype(np.int8)
    return charged.jet[parents][which], momentum[which, slot], where[which], charge, which


def _path_to(
    momentum: NDArray[np.float64], position: NDArray[np.float64], radius_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Transverse path length (mm) from ``position`` to a cylinder around the beam; the bend is left out."""
    direction = momentum[:, :2] / np.hypot(*momentum[:, :2].T)[:, None]
    along = (position[:, :2] * direction).sum(axis=1)
    beyond = radius_mm**2 - (position[:, :2] ** 2).sum(axis=1)
    path: NDArray[np.float64] = np.sqrt(np.maximum(along**2 + beyond, 0.0)) - along
    return path


def _crossing_layer(
    momentum: NDArray[np.float64],
    position: NDArray[np.float64],
    probability_per_length: NDArray[np.float64],
    uniform: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index of the layer where each particle interacts (5: nowhere) and its path to it, mm."""
    radius = np.hypot(position[:, 0], position[:, 1])
    sin_theta = np.hypot(*momentum[:, :2].T) / np.maximum(np.sqrt((momentum**2).sum(axis=1)), 1e-12)
    thickness = RADIATION_LENGTHS[None, :] / np.maximum(sin_theta, 0.05)[:, None]
    chance = np.where(LAYER_RADII_MM[None, :] > radius[:, None], thickness, 0.0)
    survived = np.cumsum(chance * probability_per_length[:, None], axis=1)
    layer = (uniform[:, None] > 1.0 - np.exp(-survived)).sum(axis=1)
    stop = LAYER_RADII_MM[np.minimum(layer, len(LAYER_RADII_MM) - 1)]
    return layer, _path_to(momentum, position, stop)


def _new_vertices(truth: TruthJets, jet: NDArray[np.int64], source: NDArray[np.int64]) -> NDArray[np.int16]:
    """Vertex numbers after those of the generator, one per ``source``."""
    highest = np.zeros(len(truth), dtype=np.int64)
    np.maximum.at(highest, np.repeat(np.arange(len(truth)), np.diff(truth.offsets)), truth.vertex)
    unique, inverse = np.unique(np.column_stack([jet, source]), axis=0, return_inverse=True)
    rank = np.arange(len(unique)) - np.searchsorted(unique[:, 0], unique[:, 0])
    return (highest[jet] + 1 + rank[inverse.ravel()]).astype(np.int16)
