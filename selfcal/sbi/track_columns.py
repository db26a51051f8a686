"""Quantities of tracks that the smearing model and its summaries share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.data.field_names import require_track_fields
from selfcal.data.jets import ORIGINS, Jets

LOW_PT_GEV = 5.0
"""Tracks below it belong to the low band of the smearing parameters."""

PILEUP, FAKE, OTHER = 0, 1, 2
"""What a track is to the smearing model: pile-up, fake, or anything else."""

REQUIRED = ("d0", "z0SinTheta", "lifetimeSignedD0Significance", "lifetimeSignedZ0SinThetaSignificance")
INNERMOST_HITS = "numberOfInnermostPixelLayerHits"
UNLABELLED_PILEUP_Z0 = 5.0
"""Where no origin is known, tracks are taken as pile-up beyond this |z0 significance| ..."""
UNLABELLED_PILEUP_D0 = 3.0
"""... unless their |d0 significance| is larger than this."""


@dataclass(frozen=True)
class TrackColumns:
    """Views of T tracks, float64 where computed.

    Attributes
    ----------
    jet : (T,) index of each track's jet
    d0_significance, z0_significance : (T,) signed by the jet's direction
    high : (T,) whether pT is at least ``LOW_PT_GEV`` (all, where no momentum is known)
    innermost : (T,) whether there is a hit in the innermost layer (all, where unknown)
    """

    jet: NDArray[np.int64]
    d0_significance: NDArray[np.float32]
    z0_significance: NDArray[np.float32]
    high: NDArray[np.bool_]
    innermost: NDArray[np.bool_]


def track_columns(jets: Jets) -> TrackColumns:
    """Read them from ``jets``.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    require_track_fields(jets, REQUIRED, by="the smearing model", instead="switch off 'inference.enabled'")
    jet = np.repeat(np.arange(len(jets)), jets.n_tracks)
    innermost = np.ones(len(jet), dtype=bool)
    if INNERMOST_HITS in jets.track_fields:
        innermost = column(jets, INNERMOST_HITS) > 0
    return TrackColumns(
        jet,
        column(jets, "lifetimeSignedD0Significance"),
        column(jets, "lifetimeSignedZ0SinThetaSignificance"),
        track_pt_gev(jets) >= LOW_PT_GEV,
        innermost,
    )


def column(jets: Jets, name: str) -> NDArray[np.float32]:
    """One field of all tracks, (T,)."""
    values: NDArray[np.float32] = jets.tracks[:, jets.track_fields.index(name)]
    return values


def track_pt_gev(jets: Jets) -> NDArray[np.float64]:
    """1 / (1000 |q/p| cosh(eta)) with q/p in 1/MeV, (T,); infinite where the file has no momentum."""
    if "qOverP" not in jets.track_fields:
        return np.full(len(jets.tracks), np.inf)
    eta = np.repeat(jets.eta.astype(np.float64), jets.n_tracks)
    if "deta" in jets.track_fields:
        eta = eta + column(jets, "deta")
    inverse = 1000.0 * np.abs(column(jets, "qOverP").astype(np.float64)) * np.cosh(eta)
    return 1.0 / np.maximum(inverse, 1e-9)


def track_kind(jets: Jets) -> NDArray[np.int8]:
    """``PILEUP``, ``FAKE`` or ``OTHER`` of every track (T,), from the truth origin where it is known.

    Elsewhere tracks far from the vertex along the beam but not across it are pile-up; fakes are
    not recognised.
    """
    kind = np.full(len(jets.tracks), OTHER, dtype=np.int8)
    unknown = jets.track_origin < 0
    d0 = np.abs(column(jets, "lifetimeSignedD0Significance"))
    z0 = np.abs(column(jets, "lifetimeSignedZ0SinThetaSignificance"))
    far = (z0 > UNLABELLED_PILEUP_Z0) & (d0 < UNLABELLED_PILEUP_D0)
    kind[(jets.track_origin == ORIGINS.index("pileup")) | (unknown & far)] = PILEUP
    kind[jets.track_origin == ORIGINS.index("fake")] = FAKE
    return kind
