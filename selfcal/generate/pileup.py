"""Tracks that do not belong to the jet: other collisions of the same bunch crossing, and fakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import ORIGINS
from selfcal.generate.candidates import Candidates, random_stream
from selfcal.generate.records import offsets_from_counts, ranges

BEAM_SPOT_SIGMA_Z_MM = 42.0
Z_WINDOW_MM = 5.0
"""Largest |z0 sin θ| of the pile-up that is overlaid; along the beam it widens with cosh η ..."""
POOL_EVENTS = 2000
POOL_ABS_ETA_MAX = 2.9
NO_VERTEX = -2
_MAX_WINDOW_MM = 45.0
"""... up to here."""
_EVENTS_PER_BATCH = 500


@dataclass(frozen=True)
class MinimumBiasPool:
    """Charged particles of pT > 0.45 GeV of many inelastic events, by event and rising eta.

    ``offsets`` (E + 1,) int64; ``eta`` (P,) float64; ``momentum``, ``position`` (P, 3) float32;
    ``charge`` (P,) int8; ``pdg`` (P,) int32.
    """

    offsets: NDArray[np.int64]
    eta: NDArray[np.float64]
    momentum: NDArray[np.float32]
    position: NDArray[np.float32]
    charge: NDArray[np.int8]
    pdg: NDArray[np.int32]

    @property
    def n_events(self) -> int:
        return len(self.offsets) - 1


def generate_pool(pythia_settings: tuple[str, ...], pythia_seed: int) -> MinimumBiasPool:
    """Generate ``POOL_EVENTS`` non-diffractive events (a few CPU seconds)."""
    from selfcal.generate.processes import process_named, start_pythia
    from selfcal.generate.truth import CHARGED_STABLE, batch_of, charge_of, eta_phi_pt

    pythia: Any = start_pythia(process_named("minimum_bias"), pythia_settings, pythia_seed)
    parts: list[tuple[NDArray[Any], ...]] = []
    counts: list[NDArray[np.int64]] = []
    for _ in range(POOL_EVENTS // _EVENTS_PER_BATCH):
        batch = batch_of(pythia, _EVENTS_PER_BATCH)
        charged = np.flatnonzero((batch.status > 0) & np.isin(np.abs(batch.pdg), CHARGED_STABLE))
        eta, _, pt = eta_phi_pt(batch.momentum[charged])
        kept = (np.abs(eta) < POOL_ABS_ETA_MAX) & (pt > 0.45)
        rows, eta = charged[kept], eta[kept]
        order = np.lexsort((eta, batch.event[rows]))
        rows, eta = rows[order], eta[order]
        counts.append(np.bincount(batch.event[rows], minlength=len(batch.starts)))
        parts.append(
            (eta, batch.momentum[rows].astype(np.float32), batch.position[rows].astype(np.float32),
             charge_of(batch.pdg[rows]), batch.pdg[rows])
        )  # fmt: skip
    arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return MinimumBiasPool(offsets_from_counts(np.concatenate(counts)), *arrays)


def overlay(
    pool: MinimumBiasPool,
    event: NDArray[np.int64],
    jet_eta: NDArray[np.float64],
    jet_phi: NDArray[np.float64],
    pileup_mu: float,
    radius: float,
    seed: int,
) -> Candidates:
    """Pile-up particles in the cones of the jets, from vertices near enough in z to be kept.

    The vertex density at the hard vertex z is mu N(z; 0, sigma_z); around each jet
    a Poisson number of vertices lies within |dz| < 5 mm / sin(theta), each one an
    event of the pool turned by a random angle. Jets of one event share z.
    """
    rng = random_stream(seed, "pileup")
    _, event_of_jet = np.unique(event, return_inverse=True)
    z = rng.normal(size=int(event_of_jet.max(initial=-1)) + 1)[event_of_jet]
    window = np.minimum(Z_WINDOW_MM * np.cosh(np.abs(jet_eta) + radius), _MAX_WINDOW_MM)
    density = np.exp(-0.5 * z**2) / (np.sqrt(2.0 * np.pi) * BEAM_SPOT_SIGMA_Z_MM)
    n_vertices = rng.poisson(pileup_mu * density * 2.0 * window)
    jet = np.repeat(np.arange(len(event)), n_vertices)
    source = rng.integers(pool.n_events, size=len(jet))
    turn = rng.uniform(-np.pi, np.pi, size=len(jet))
    dz = rng.uniform(-1.0, 1.0, size=len(jet)) * window[jet]

    # (event, eta) as one sorted number finds the slice of each event within the cone
    slot = 2.0 * (POOL_ABS_ETA_MAX + 1.0)
    position = np.repeat(np.arange(pool.n_events), np.diff(pool.offsets)) * slot + pool.eta
    low = np.searchsorted(position, source * slot + np.maximum(jet_eta[jet] - radius, -POOL_ABS_ETA_MAX))
    high = np.searchsorted(position, source * slot + np.minimum(jet_eta[jet] + radius, POOL_ABS_ETA_MAX))
    count = high - low
    row, which = ranges(low, count), np.repeat(np.arange(len(jet)), count)
    px, py = pool.momentum[row, 0].astype(np.float64), pool.momentum[row, 1].astype(np.float64)
    dphi = np.arctan2(py, px) + turn[which] - jet_phi[jet[which]]
    dphi = np.abs((dphi + np.pi) % (2 * np.pi) - np.pi)
    inside = np.hypot(dphi, pool.eta[row] - jet_eta[jet[which]]) < radius
    row, which = row[inside], which[inside]
    return _turned(pool, row, jet[which], turn[which], dz[which])


def _turned(
    pool: MinimumBiasPool,
    row: NDArray[np.int64],
    jet: NDArray[np.int64],
    turn: NDArray[np.float64],
    dz: NDArray[np.float64],
) -> Candidates:
    cosine, sine = np.cos(turn), np.sin(turn)

    def rotated(vector: NDArray[np.float32]) -> NDArray[np.float64]:
        x, y, along = vector[row].astype(np.float64).T
        return np.stack([x * cosine - y * sine, x * sine + y * cosine, along], axis=1)

    position = rotated(pool.position)
    position[:, 2] += dz
    n = len(row)
    return Candidates(
        jet=jet,
        momentum=rotated(pool.momentum),
        position=position,
        charge=pool.charge[row],
        pdg=pool.pdg[row],
        origin=np.full(n, ORIGINS.index("pileup"), dtype=np.int8),
        vertex=np.full(n, NO_VERTEX, dtype=np.int16),
        stop_radius_mm=np.full(n, np.inf),
    )
