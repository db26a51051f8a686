"""Reader of CMS PFNano: NanoAOD with the constituents of jets, the charged ones as tracks.

A constituent is a track if it is charged and has track details (``d0Err`` > 0; below about 0.5 GeV CMS
keeps none and writes -1). d0 and dz refer to the primary vertex, lengths are in cm, and the sign of d0 is
that of :mod:`selfcal.data.jet_axis`. Covariances other than the two errors, and shared or split hits, are
not in the file: those fields are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import refuse_not_finite
from selfcal.data.jet_axis import (
    Column,
    relative_angles,
    require_conventions,
    signed_d0_significance,
    signed_z0_significance,
)
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import TRACK_FIELDS, Jets
from selfcal.data.nanoaod_reader import DEFAULT_COLLECTION, NanoAodReader
from selfcal.data.root_files import EventBlock, flat_int, lengths
from selfcal.data.root_jets import JetColumns, packed_tracks, tracks_of_links
from selfcal.data.units import UnitScales, track_factor
from selfcal.errors import DataError

_NEEDED = ("pt", "eta", "phi", "charge", "d0", "d0Err", "dz", "dzErr")
_VALID_HIT_IN_FIRST_LAYER = -1


class PfNanoReader(NanoAodReader):
    """Jets as in NanoAOD, and their tracks; charged constituents without track details are dropped."""

    tracks_expected = True

    def chunks(self, path: Path, card: DataCard, wanted: Wanted, chunk_jets: int) -> Iterator[Jets]:
        """See :class:`selfcal.data.reading.JetReader`."""
        require_conventions(card, ("primary_vertex",), "PFNano")
        return super().chunks(path, card, wanted, chunk_jets)

    def _tracks(
        self, block: EventBlock, columns: JetColumns, card: DataCard, rows: NDArray[np.int64]
    ) -> dict[str, Any]:
        """The track attributes of ``Jets`` for the jets at ``rows``."""
        prefix = f"{card.collection or DEFAULT_COLLECTION}PFCands_"
        self._require(block, card, prefix)
        candidates = _Candidates(block)
        jet, link = _jets_and_links(block, prefix)
        event = block.event_of_jet[jet]
        row = tracks_of_links(link, candidates.counts, event, f"{prefix}pFCandsIdx", block.table.path)
        charged = candidates.column("charge")[row] != 0
        d0_error = candidates.column("d0Err")[row]
        measured = d0_error > 0
        position = np.full(block.n_jets, -1)
        position[rows] = np.arange(len(rows))
        chosen = position[jet] >= 0
        refuse_not_finite({"PFCands_d0Err": d0_error[charged & chosen]}, block.table.path)
        without_details = charged & ~measured & chosen
        self.dropped["charged constituents without track details"] += int(without_details.sum())
        kept = np.flatnonzero(charged & measured & chosen)
        order = kept[np.argsort(position[jet[kept]], kind="stable")]
        owner, track = position[jet[order]], row[order]
        axis = (
            block.per_jet(columns.eta)[rows].astype(np.float64)[owner],
            block.per_jet(columns.phi)[rows].astype(np.float64)[owner],
        )
        counts = np.bincount(owner, minlength=len(rows)).astype(np.int64)
        return packed_tracks(_track_columns(candidates, card, track, axis), counts, block.table.path)

    @staticmethod
    def _require(block: EventBlock, card: DataCard, prefix: str) -> None:
        """All columns that tracks need, and known names in ``fields.tracks``."""
        table = block.table
        needed = [f"{prefix}jetIdx", f"{prefix}pFCandsIdx", *(f"PFCands_{name}" for name in _NEEDED)]
        absent = [name for name in needed if name not in table]
        if absent:
            present = tuple(name for name in table.columns if "PFCand" in name) or table.columns
            raise missing_fields(absent, present, f"{table.path}, {table.name}", "collection")
        unknown = sorted(set(card.fields.tracks) - set(TRACK_FIELDS))
        if unknown:
            raise missing_fields(unknown, TRACK_FIELDS, f"data card of '{card.name}'", "fields.tracks")


class _Candidates:
    """Columns of ``PFCands``, flat over the events of a block."""

    def __init__(self, block: EventBlock) -> None:
        self._block = block
        self.counts = lengths(block.read("PFCands_d0"))

    def __contains__(self, name: str) -> bool:
        return f"PFCands_{name}" in self._block.table

    def column(self, name: str) -> Column:
        """``PFCands_<name>``."""
        return self.named(f"PFCands_{name}")

    def named(self, column: str) -> Column:
        """A column of candidates by its full name."""
        return self._block.flat(column, self.counts)

    def finite(self, name: str, chosen: NDArray[np.int64]) -> Column:
        """``PFCands_<name>`` of some candidates; an infinite momentum would be a curvature of zero."""
        values = self.column(name)[chosen]
        refuse_not_finite({f"PFCands_{name}": values}, self._block.table.path)
        return values


def _jets_and_links(block: EventBlock, prefix: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each pair of jet and constituent, the jet's row in the block and the candidate in its event."""
    jet_index, candidate = (block.read(f"{prefix}{name}") for name in ("jetIdx", "pFCandsIdx"))
    pairs = lengths(jet_index)
    if not np.array_equal(pairs, lengths(candidate)):
        raise DataError(
            f"{prefix}jetIdx and {prefix}pFCandsIdx differ in length", where=str(block.table.path)
        )
    event = np.repeat(np.arange(len(pairs)), pairs)
    in_event = flat_int(jet_index)
    # Constituents of jets below the file's own cut on jets have no jet to belong to.
    inside = (in_event >= 0) & (in_event < block.counts[event])
    first = np.cumsum(block.counts) - block.counts
    return (first[event] + in_event)[inside], flat_int(candidate)[inside]


def _track_columns(
    candidates: _Candidates, card: DataCard, track: NDArray[np.int64], axis: tuple[Column, Column]
) -> dict[str, Column]:
    """Columns by native name: lengths in mm, ``qOverP`` in 1/MeV.

    q/p = charge / (pT cosh(eta)), sin(theta) = 1 / cosh(eta); the uncertainty of dz sin(theta) is
    dzErr sin(theta), the direction being known so much better than dz.
    """
    scales = UnitScales.of(card)
    pt, eta, phi, charge, d0, d0_error, dz, dz_error = (candidates.finite(name, track) for name in _NEEDED)
    phi = phi * scales.angle_rad
    deta, dphi = relative_angles(eta, phi, *axis)
    sin_theta = 1.0 / np.cosh(eta)
    columns = {
        "d0": d0 * scales.length_mm,
        "z0SinTheta": dz * sin_theta * scales.length_mm,
        "deta": deta,
        "dphi": dphi,
        "qOverP": charge * sin_theta / (pt * scales.momentum_gev * 1e3),
        "lifetimeSignedD0Significance": signed_d0_significance(d0, d0_error, dphi),
        "lifetimeSignedZ0SinThetaSignificance": signed_z0_significance(
            dz * sin_theta, dz_error * sin_theta, deta
        ),
    }
    if "numberOfPixelHits" in candidates:
        pixel_hits = candidates.column("numberOfPixelHits")[track]
        columns["numberOfPixelHits"] = pixel_hits
        if "numberOfHits" in candidates:  # pixel and strip layers together
            columns["numberOfSCTHits"] = candidates.column("numberOfHits")[track] - pixel_hits
    if "lostInnerHits" in candidates:
        innermost = candidates.finite("lostInnerHits", track) == _VALID_HIT_IN_FIRST_LAYER
        columns["numberOfInnermostPixelLayerHits"] = innermost.astype(np.float64)
    for name, own in card.fields.tracks.items():
        columns[name] = candidates.named(own)[track] * track_factor(name, scales)
    return columns
