"""Stage 2: particle-level jets through the detector of a given theta, vectorised over all jets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.config.detector_parameters import DetectorParameters
from selfcal.data.flavours import flavour_from_cone_label
from selfcal.data.jets import TRACK_FIELDS, Jets, wrapped_angle
from selfcal.generate import resolution
from selfcal.generate.candidates import join, random_stream
from selfcal.generate.pileup import MinimumBiasPool, overlay
from selfcal.generate.records import TruthJets, offsets_from_counts
from selfcal.generate.secondary import charged_candidates, material_products
from selfcal.generate.tracker import Measured, fakes, reconstruct

RECONSTRUCTED_PT_MIN_GEV = 20.0
RECONSTRUCTED_ABS_ETA_MAX = 2.5
CONE_RADIUS = 0.4
_KEPT_MANTISSA_BITS = 13
"""Of 23: the others are noise that does not compress."""


@dataclass(frozen=True)
class DetectedJets:
    """Reconstructed jets, and the row of the particle-level jet behind each (N,) int64."""

    jets: Jets
    truth_row: NDArray[np.int64]


def simulate(
    truth: TruthJets, detector: DetectorParameters, pool: MinimumBiasPool, *, dataset: str, seed: int
) -> DetectedJets:
    """Pass ``truth`` through the detector; jets reconstructed above 20 GeV within |eta| < 2.5 are kept.

    Equal arguments give equal jets. Different ``detector`` with the same ``seed``
    re-use the random numbers where they can, so that differences between them are
    mostly those of the parameters. Jets carry their flavour and track truth; whether
    these reach a file is the writer's choice.
    """
    rng = random_stream(seed, "jets")
    energy, axis_eta, axis_phi = rng.normal(size=(3, len(truth)))
    true_pt = truth.pt_gev.astype(np.float64)
    relative = resolution.jet_relative_sigma(true_pt) * detector.jet_energy_resolution_scale
    pt = true_pt * detector.jet_energy_scale * np.maximum(1.0 + relative * energy, 0.1)
    sigma = resolution.jet_axis_sigma(true_pt)
    eta = truth.eta + sigma * axis_eta
    phi = truth.phi + sigma * axis_phi

    charged = charged_candidates(truth, detector.material_scale, seed)
    streams = {
        "generator": charged,
        "material": join([material_products(truth, charged, detector.material_scale, seed)]),
        "pileup": join([overlay(pool, truth.event, eta, phi, detector.pileup_mu, CONE_RADIUS, seed)]),
    }
    measured = [reconstruct(c, eta, phi, detector, seed, name) for name, c in streams.items()]
    found = np.bincount(np.concatenate([m.jet for m in measured]), minlength=len(truth))
    measured.append(fakes(found, eta, phi, detector.fake_rate_scale, seed))
    kept = (pt > RECONSTRUCTED_PT_MIN_GEV) & (np.abs(eta) < RECONSTRUCTED_ABS_ETA_MAX)
    return DetectedJets(_packed(truth, pt, eta, phi, measured, dataset).select(kept), np.flatnonzero(kept))


def _packed(
    truth: TruthJets,
    pt_gev: NDArray[np.float64],
    eta: NDArray[np.float64],
    phi: NDArray[np.float64],
    measured: list[Measured],
    dataset: str,
) -> Jets:
    """Tracks of all sources within the cone, in each jet by falling pT."""
    jet = np.concatenate([m.jet for m in measured])
    columns = np.concatenate([m.columns for m in measured])
    track_pt = np.concatenate([m.pt_gev for m in measured])
    deta, dphi = (columns[:, TRACK_FIELDS.index(name)] for name in ("deta", "dphi"))
    inside = np.flatnonzero(np.hypot(deta, dphi) < CONE_RADIUS)
    order = inside[np.lexsort((-track_pt[inside], jet[inside]))]
    return Jets(
        dataset=dataset,
        pt_gev=_rounded(pt_gev.astype(np.float32)),
        eta=_rounded(eta.astype(np.float32)),
        flavour=flavour_from_cone_label(truth.label, where=dataset),
        weight=truth.weight,
        run=np.zeros(len(truth), dtype=np.int64),
        event=truth.event,
        jet_index=truth.jet_rank,
        track_offsets=offsets_from_counts(np.bincount(jet[order], minlength=len(truth))),
        tracks=_rounded(columns[order]),
        track_origin=np.concatenate([m.origin for m in measured])[order],
        track_vertex=np.concatenate([m.vertex for m in measured])[order],
        phi=_rounded(wrapped_angle(phi)),
    )


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearest values with 13 mantissa bits (relative 6e-5): files are half as large, physics the same."""
    drop = 23 - _KEPT_MANTISSA_BITS
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(1 << (drop - 1))
    mask = np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    rounded: NDArray[np.float32] = ((bits + half) & mask).view(np.float32)
    return rounded
