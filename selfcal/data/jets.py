"""Jets in memory: one array per jet quantity, tracks packed with offsets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import UNLABELLED

TRACK_FIELDS: tuple[str, ...] = (
    "d0",
    "z0SinTheta",
    "deta",
    "dphi",
    "qOverP",
    "lifetimeSignedD0Significance",
    "lifetimeSignedZ0SinThetaSignificance",
    "phiUncertainty",
    "thetaUncertainty",
    "qOverPUncertainty",
    "numberOfPixelHits",
    "numberOfSCTHits",
    "numberOfInnermostPixelLayerHits",
    "numberOfNextToInnermostPixelLayerHits",
    "numberOfInnermostPixelLayerSharedHits",
    "numberOfInnermostPixelLayerSplitHits",
    "numberOfPixelSharedHits",
    "numberOfPixelSplitHits",
    "numberOfSCTSharedHits",
)
"""Track inputs of a GN2-class tagger, in the names of the newer ATLAS generation."""

_UNITS = {"d0": "mm", "z0SinTheta": "mm", "qOverP": "1/MeV", "qOverPUncertainty": "1/MeV"}
_ANGLES = ("dphi", "phiUncertainty", "thetaUncertainty")


def track_field_unit(name: str) -> str:
    """Unit of a track field in files and in ``Jets.tracks``; empty for counts, significances and deta."""
    return "rad" if name in _ANGLES else _UNITS.get(name, "")


def wrapped_angle(angle_rad: NDArray[np.floating]) -> NDArray[np.float32]:
    """The same angle in [-π, π)."""
    wrapped: NDArray[np.float32] = ((angle_rad + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)
    return wrapped


ORIGINS: tuple[str, ...] = (
    "pileup",
    "fake",
    "primary",
    "from_b",
    "from_bc",
    "from_c",
    "from_tau",
    "other_secondary",
)
"""``ftagTruthOriginLabel`` 0 to 7."""


@dataclass(frozen=True)
class Jets:
    """N jets with T tracks in total.

    Units are GeV, mm and rad, except that ``tracks`` holds the file's own
    values (``qOverP`` in 1/MeV): the tagger normalises them itself.

    Attributes
    ----------
    pt_gev, eta : (N,) float32
    flavour : (N,) int8, index into ``FLAVOURS``; -1 where there is no label (data)
    weight : (N,) float64
    run, event : (N,) int64, and jet_index : (N,) int32; with the dataset name they are the jet's key
    track_offsets : (N + 1,) int64; tracks of jet i are rows ``track_offsets[i]:track_offsets[i+1]``
    tracks : (T, F) float32, columns named by ``track_fields``
    track_origin : (T,) int8, -1 where unknown
    track_vertex : (T,) int16, truth vertex index within the jet, -2 where unknown
    log_score : (N, K) float64, ln p of an existing tagger in the order of ``score_classes``, or None
    score_classes : names of these K classes, a subset of ``FLAVOURS`` in their order
    row : (N,) int64, row of each jet in its file, or None for jets that come from none
    truth_pt_gev : (N,) float32, pT of the true jet, NaN where there is none, or None where it is unknown
    phi : (N,) float32 in [-π, π), or None where the file does not say
    """

    dataset: str
    pt_gev: NDArray[np.float32]
    eta: NDArray[np.float32]
    flavour: NDArray[np.int8]
    weight: NDArray[np.float64]
    run: NDArray[np.int64]
    event: NDArray[np.int64]
    jet_index: NDArray[np.int32]
    track_offsets: NDArray[np.int64]
    tracks: NDArray[np.float32]
    track_origin: NDArray[np.int8]
    track_vertex: NDArray[np.int16]
    track_fields: tuple[str, ...] = field(default=TRACK_FIELDS)
    log_score: NDArray[np.float64] | None = None
    score_classes: tuple[str, ...] = ()
    row: NDArray[np.int64] | None = None
    truth_pt_gev: NDArray[np.float32] | None = None
    phi: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.pt_gev)

    @property
    def abs_eta(self) -> NDArray[np.float32]:
        return np.abs(self.eta)

    @property
    def n_tracks(self) -> NDArray[np.int64]:
        return np.diff(self.track_offsets)

    @property
    def labelled(self) -> bool:
        return bool(len(self) and (self.flavour != UNLABELLED).all())

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Jets:
        """The chosen jets (boolean mask or indices, in that order) with their tracks."""
        index = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        counts = self.n_tracks[index]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.track_offsets[index] - offsets[:-1], counts)
        return replace(
            self,
            pt_gev=self.pt_gev[index],
            eta=self.eta[index],
            flavour=self.flavour[index],
            weight=self.weight[index],
            run=self.run[index],
            event=self.event[index],
            jet_index=self.jet_index[index],
            track_offsets=offsets,
            tracks=self.tracks[rows],
            track_origin=self.track_origin[rows],
            track_vertex=self.track_vertex[rows],
            log_score=None if self.log_score is None else self.log_score[index],
            row=None if self.row is None else self.row[index],
            truth_pt_gev=None if self.truth_pt_gev is None else self.truth_pt_gev[index],
            phi=None if self.phi is None else self.phi[index],
        )
