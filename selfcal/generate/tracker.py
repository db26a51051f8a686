"""Perigee, hits, efficiency and measurement errors of charged particles: the parametric tracker."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from selfcal.config.detector_parameters import DetectorParameters
from selfcal.data.jets import ORIGINS, TRACK_FIELDS
from selfcal.generate import resolution
from selfcal.generate.candidates import Candidates, nearest_neighbour, random_stream

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BENDING_RADIUS_MM_PER_GEV = 1000.0 / (0.299792458 * 2.0)
"""Radius of curvature per GeV of transverse momentum in 2 T."""

PIXEL_RADII_MM = np.array([33.3, 50.5, 88.5, 122.5])
SCT_RADII_MM = np.array([299.0, 371.0, 443.0, 514.0])
INNERMOST_HIT_EFFICIENCY, PIXEL_HIT_EFFICIENCY, SCT_HIT_EFFICIENCY = 0.970, 0.985, 0.985
PIXEL_OVERLAP = 0.06
"""Probability of a second hit in a layer, where modules overlap."""
MERGING_DISTANCE = 0.006
"""Distance Delta R to the next track over which clusters merge, at the innermost layer."""
DENSE_CORE_LOSS = 0.30
"""Efficiency lost where the core is most crowded, for a scale of one."""
TRACK_PT_MIN_GEV = 0.5
D0_MAX_MM, Z0_SIN_THETA_MAX_MM = 3.5, 5.0
SILICON_HITS_MIN = 7


@dataclass(frozen=True)
class Hits:
    """Hit counts of P tracks, int64 each."""

    innermost: Counts
    next_to_innermost: Counts
    pixel: Counts
    sct: Counts
    innermost_shared: Counts
    innermost_split: Counts
    pixel_shared: Counts
    pixel_split: Counts
    sct_shared: Counts

    def select(self, rows: NDArray[np.integer]) -> Hits:
        return Hits(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Measured:
    """P reconstructed tracks: jet row, columns of ``TRACK_FIELDS`` (P, 19), truth origin and vertex."""

    jet: NDArray[np.int64]
    columns: NDArray[np.float32]
    pt_gev: Floats
    origin: NDArray[np.int8]
    vertex: NDArray[np.int16]


def perigee(momentum: Floats, position: Floats, charge: NDArray[np.int8]) -> tuple[Floats, Floats, Floats]:
    """Point of closest approach to the beam axis of helices in 2 T.

    With the centre of the transverse circle c = x + q R (sin phi, -cos phi),
    d0 = q (R - |c|), phi0 = atan2(q c_x, -q c_y), z0 = z - s cot(theta), where s is
    the arc from the perigee to x. ``momentum`` (P, 3) in GeV at ``position``
    (P, 3) in mm; returns d0 (mm), z0 (mm), phi0 (rad).
    """
    px, py, pz = momentum.T
    pt = np.hypot(px, py)
    radius = BENDING_RADIUS_MM_PER_GEV * pt
    q = charge.astype(np.float64)
    centre_x = position[:, 0] + q * radius * py / pt
    centre_y = position[:, 1] - q * radius * px / pt
    d0 = q * (radius - np.hypot(centre_x, centre_y))
    phi0 = np.arctan2(q * centre_x, -q * centre_y)
    turned = (np.arctan2(py, px) - phi0 + np.pi) % (2 * np.pi) - np.pi
    return d0, position[:, 2] + q * radius * turned * pz / pt, phi0


def hits_of(
    radius_mm: Floats, stop_mm: Floats, crowding: Floats, innermost_shift: float, rng: np.random.Generator
) -> Hits:
    """Hits in four pixel and four double-sided strip layers.

    A layer counts when the particle is produced inside and absorbed outside of it.
    ``crowding`` = exp(-DeltaR_min/0.006) is the chance scale of merged clusters:
    shared when the cluster was not recognised as merged, split when it was.
    """
    n = len(radius_mm)
    efficiency = np.full(4, PIXEL_HIT_EFFICIENCY)
    efficiency[0] = min(INNERMOST_HIT_EFFICIENCY + innermost_shift, 1.0)
    crossed = (radius_mm[:, None] < PIXEL_RADII_MM) & (stop_mm[:, None] >= PIXEL_RADII_MM)
    uniform, merged_uniform = rng.random((n, 4)), rng.random((n, 4))
    overlap = rng.random((n, 4)) < PIXEL_OVERLAP
    found = crossed & (uniform < efficiency)
    # the separation grows with the lever arm, so merging falls layer by layer
    merging = crowding[:, None] * (PIXEL_RADII_MM[0] / PIXEL_RADII_MM)
    shared = found & (merged_uniform < 0.35 * merging + 0.003)
    split = found & ~shared & (merged_uniform < 0.95 * merging + 0.006)
    strips = (radius_mm[:, None] < SCT_RADII_MM) & (stop_mm[:, None] >= SCT_RADII_MM)
    sct = (rng.random((n, 4, 2)) < SCT_HIT_EFFICIENCY).sum(axis=2) * strips
    sct_shared = (sct > 0) & (rng.random((n, 4)) < 0.5 * crowding[:, None] + 0.01)
    return Hits(
        innermost=found[:, 0].astype(np.int64),
        next_to_innermost=found[:, 1].astype(np.int64),
        pixel=found.sum(axis=1) + (found & overlap)[:, 1:].sum(axis=1),
        sct=sct.sum(axis=1),
        innermost_shared=shared[:, 0].astype(np.int64),
        innermost_split=split[:, 0].astype(np.int64),
        pixel_shared=shared.sum(axis=1),
        pixel_split=split.sum(axis=1),
        sct_shared=sct_shared.sum(axis=1),
    )


def efficiency_of(
    pt_gev: Floats,
    eta: Floats,
    is_electron: NDArray[np.bool_],
    crowding: Floats,
    detector: DetectorParameters,
) -> Floats:
    """Probability to reconstruct a track with enough hits.

    0.97 - 0.12 exp(-(pT - 0.5)/0.8) - 0.05 (eta/2.5)^2 - 0.04 (electron)
    - 0.30 scale crowding + shift, kept within [0, 1].
    """
    turn_on = 0.12 * np.exp(-np.maximum(pt_gev - TRACK_PT_MIN_GEV, 0.0) / 0.8)
    efficiency = 0.97 - turn_on - 0.05 * (eta / 2.5) ** 2 - 0.04 * is_electron
    efficiency = efficiency - DENSE_CORE_LOSS * detector.dense_core_loss_scale * crowding
    return np.clip(efficiency + detector.efficiency_shift, 0.0, 1.0)


def reconstruct(
    candidates: Candidates,
    jet_eta: Floats,
    jet_phi: Floats,
    detector: DetectorParameters,
    seed: int,
    stream: str,
) -> Measured:
    """Tracks of all ``candidates`` that are found and pass pT > 0.5 GeV, |d0| < 3.5 mm, |z0 sin| < 5 mm.

    ``stream`` names the random streams, so that generator particles, material
    products and pile-up do not disturb each other. Candidates are sorted by jet.
    """
    momentum, position = candidates.momentum, candidates.position
    pt = np.hypot(momentum[:, 0], momentum[:, 1])
    eta = np.arcsinh(momentum[:, 2] / pt)
    radius = np.hypot(position[:, 0], position[:, 1])
    distance = nearest_neighbour(candidates.jet, eta, np.arctan2(momentum[:, 1], momentum[:, 0]))
    crowding = np.exp(-distance / MERGING_DISTANCE)
    hits = hits_of(
        radius, candidates.stop_radius_mm, crowding, detector.innermost_efficiency_shift,
        random_stream(seed, f"{stream} hits"),
    )  # fmt: skip
    is_electron = np.abs(candidates.pdg) == 11
    efficiency = efficiency_of(pt, eta, is_electron, crowding, detector)
    uniform, smear = (random_stream(seed, f"{stream} {what}") for what in ("efficiency", "smearing"))
    found = uniform.random(len(pt)) < efficiency
    found &= hits.pixel + hits.sct >= SILICON_HITS_MIN
    normal, tail_uniform = smear.normal(size=(5, len(pt))), smear.random(len(pt))
    brems = smear.exponential(scale=0.04, size=len(pt)) * is_electron

    # bremsstrahlung and curvature error act on q/pT, which may not change sign here
    rows = np.flatnonzero(found)
    pt = pt[rows]
    relative = resolution.relative_momentum_sigma(pt) * detector.momentum_resolution_scale
    inverse = np.clip(1.0 + relative * normal[0, rows], 0.3, 3.0) * (1.0 + brems[rows])
    tail = resolution.tail_width(tail_uniform[rows], detector.tail_fraction_scale, crowding[rows])
    d0, z0, phi0 = perigee(momentum[rows], position[rows], candidates.charge[rows])
    theta = 2.0 * np.arctan(np.exp(-eta[rows]))
    estimate = _Estimate.of(pt / inverse, np.sin(theta), hits.select(rows))
    true = _Estimate.of(pt, np.sin(theta), hits.select(rows))
    d0 += true.sigma_d0 * detector.d0_core_scale * tail * normal[1, rows] + detector.d0_bias_mm
    z0_sin = (z0 + detector.z0_bias_mm) * np.sin(theta)
    z0_sin += true.sigma_z0 * detector.z0_core_scale * tail * normal[2, rows]
    phi0 += true.sigma_phi * normal[3, rows]
    theta = np.clip(theta + true.sigma_theta * normal[4, rows], 1e-3, np.pi - 1e-3)
    return assemble(
        jet=candidates.jet[rows], pt_gev=pt / inverse, theta=theta, phi=phi0, d0=d0, z0_sin_theta=z0_sin,
        charge=candidates.charge[rows], estimate=estimate, origin=candidates.origin[rows],
        vertex=candidates.vertex[rows], jet_eta=jet_eta, jet_phi=jet_phi,
    )  # fmt: skip


@dataclass(frozen=True)
class _Estimate:
    """Uncertainties (and the hits they follow from) that the fit quotes: they know no nuisance parameter."""

    hits: Hits
    sigma_d0: Floats
    sigma_z0: Floats
    sigma_phi: Floats
    sigma_theta: Floats

    @classmethod
    def of(cls, pt_gev: Floats, sin_theta: Floats, hits: Hits) -> _Estimate:
        def impact(a_mm: float, b_mm_gev: float) -> Floats:
            inner, shared = hits.innermost > 0, hits.innermost_shared > 0
            return resolution.impact_sigma_mm(pt_gev, sin_theta, a_mm, b_mm_gev, inner, shared)

        return cls(
            hits,
            impact(resolution.D0_ASYMPTOTIC_MM, resolution.D0_SCATTERING_MM_GEV),
            impact(resolution.Z0_ASYMPTOTIC_MM, resolution.Z0_SCATTERING_MM_GEV),
            resolution.phi_sigma(pt_gev),
            resolution.theta_sigma(pt_gev, sin_theta),
        )


def assemble(
    jet: NDArray[np.int64],
    pt_gev: Floats,
    theta: Floats,
    phi: Floats,
    d0: Floats,
    z0_sin_theta: Floats,
    charge: NDArray[np.int8],
    estimate: _Estimate,
    origin: NDArray[np.int8],
    vertex: NDArray[np.int16],
    jet_eta: Floats,
    jet_phi: Floats,
) -> Measured:
    """Selected tracks as columns; lifetime signs are sin(phi_jet - phi) d0 > 0 and (eta_jet - eta) z0 > 0."""
    deta = -np.log(np.tan(theta / 2.0)) - jet_eta[jet]
    dphi = (phi - jet_phi[jet] + np.pi) % (2 * np.pi) - np.pi
    sign_d0 = np.where(-np.sin(dphi) * d0 >= 0.0, 1.0, -1.0)
    sign_z0 = np.where(-deta * z0_sin_theta >= 0.0, 1.0, -1.0)
    q_over_p = charge * np.sin(theta) / (pt_gev * 1000.0)
    hits = estimate.hits
    columns = {
        "d0": d0,
        "z0SinTheta": z0_sin_theta,
        "deta": deta,
        "dphi": dphi,
        "qOverP": q_over_p,
        "lifetimeSignedD0Significance": sign_d0 * np.abs(d0) / estimate.sigma_d0,
        "lifetimeSignedZ0SinThetaSignificance": sign_z0 * np.abs(z0_sin_theta) / estimate.sigma_z0,
        "phiUncertainty": estimate.sigma_phi,
        "thetaUncertainty": estimate.sigma_theta,
        "qOverPUncertainty": np.abs(q_over_p) * resolution.relative_momentum_sigma(pt_gev),
        "numberOfPixelHits": hits.pixel,
        "numberOfSCTHits": hits.sct,
        "numberOfInnermostPixelLayerHits": hits.innermost,
        "numberOfNextToInnermostPixelLayerHits": hits.next_to_innermost,
        "numberOfInnermostPixelLayerSharedHits": hits.innermost_shared,
        "numberOfInnermostPixelLayerSplitHits": hits.innermost_split,
        "numberOfPixelSharedHits": hits.pixel_shared,
        "numberOfPixelSplitHits": hits.pixel_split,
        "numberOfSCTSharedHits": hits.sct_shared,
    }
    keep = (pt_gev > TRACK_PT_MIN_GEV) & (np.abs(d0) < D0_MAX_MM)
    keep &= np.abs(z0_sin_theta) < Z0_SIN_THETA_MAX_MM
    table = np.stack([columns[name][keep] for name in TRACK_FIELDS], axis=1).astype(np.float32)
    return Measured(jet[keep], table, pt_gev[keep], origin[keep], vertex[keep])


def fakes(
    tracks_in_jet: NDArray[np.int64],
    jet_eta: Floats,
    jet_phi: Floats,
    fake_rate_scale: float,
    seed: int,
) -> Measured:
    """Wrong combinations of hits: 0.05 + 0.006 n_tracks per jet; soft, few hits, far from the vertex."""
    rng = random_stream(seed, "fakes")
    count = rng.poisson(fake_rate_scale * (0.05 + 0.006 * tracks_in_jet))
    jet = np.repeat(np.arange(len(count)), count)
    n = len(jet)
    pt = TRACK_PT_MIN_GEV + rng.exponential(1.5, n)
    distance, angle = 0.4 * np.sqrt(rng.random(n)), rng.uniform(-np.pi, np.pi, n)
    theta = 2.0 * np.arctan(np.exp(-(jet_eta[jet] + distance * np.cos(angle))))
    phi = jet_phi[jet] + distance * np.sin(angle)
    width = np.where(rng.random(n) < 0.5, 0.08, 0.7)
    innermost = (rng.random(n) < 0.6).astype(np.int64)
    next_to = (rng.random(n) < 0.7).astype(np.int64)
    innermost_shared = innermost * (rng.random(n) < 0.15)
    pixel = innermost + next_to + rng.binomial(2, 0.7, n)
    hits = Hits(
        innermost=innermost, next_to_innermost=next_to, pixel=pixel, sct=5 + rng.binomial(3, 0.5, n),
        innermost_shared=innermost_shared,
        innermost_split=innermost * (1 - innermost_shared) * (rng.random(n) < 0.05),
        pixel_shared=innermost_shared + rng.binomial(2, 0.15, n), pixel_split=rng.binomial(2, 0.05, n),
        sct_shared=rng.binomial(3, 0.2, n),
    )  # fmt: skip
    return assemble(
        jet=jet, pt_gev=pt, theta=theta, phi=phi, d0=width * rng.normal(size=n),
        z0_sin_theta=2.0 * width * rng.normal(size=n),
        charge=np.where(rng.random(n) < 0.5, -1, 1).astype(np.int8),
        estimate=_Estimate.of(pt, np.sin(theta), hits),
        origin=np.full(n, ORIGINS.index("fake"), dtype=np.int8), vertex=np.full(n, -2, dtype=np.int16),
        jet_eta=jet_eta, jet_phi=jet_phi,
    )  # fmt: skip
