"""Reader of the ATLAS flavour-tagging HDF5 layout, in both naming generations, chunk by chunk."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import refuse_not_finite, whole_numbers
from selfcal.data.flavours import FLAVOURS, SCORE_SUFFIXES, UNLABELLED, flavour_from_cone_label
from selfcal.data.hdf5 import (
    LABEL_FIELD,
    UNKNOWN_ORIGIN,
    UNKNOWN_VERTEX,
)
from selfcal.data.hdf5_file import open_native, refuse_links, require_dataset, require_numbers
from selfcal.data.jet_reader import Contents, Wanted
from selfcal.data.jets import TRACK_FIELDS, Jets, wrapped_angle
from selfcal.data.score_values import log_scores
from selfcal.data.selection import selected
from selfcal.data.units import UnitScales, track_factor
from selfcal.errors import DataError

JET_FIELDS: dict[str, tuple[str, ...]] = {
    "pt": ("pt_btagJes", "pt"),
    "eta": ("eta_btagJes", "eta"),
    "phi": ("phi_btagJes", "phi"),
    "label": (LABEL_FIELD, "HadronConeExclExtendedTruthLabelID"),
    "run": ("runNumber",),
    "event": ("eventNumber",),
    "jet_index": ("jet_rank",),
    "weight": ("mcEventWeight",),
    "truth_pt": ("ptTruth", "ptFromTruthDressedWZJet"),
}
"""Fields of ``jets`` that are looked for, best name first."""

_OLDER_TRACK_NAMES = {
    "lifetimeSignedD0Significance": ("IP3D_signed_d0_significance",),
    "lifetimeSignedZ0SinThetaSignificance": ("IP3D_signed_z0_significance",),
    "z0SinTheta": ("z0RelativeToBeamspotSinTheta", "IP3D_z0SinTheta"),
    "d0": ("IP3D_d0",),
}
_BLOCK = 8192


class FtagHdf5Reader:
    """``jets (N,)`` and ``tracks (N, slots)`` as salt, puma and umami-preprocessing write them.

    Without ``runNumber`` the run is 0, without ``mcEventWeight`` the weight 1, without ``jet_rank``
    the index counts the jets of an event, without ``eventNumber`` every jet is an event of its own.
    ``valid`` need not be a prefix. Track fields that are absent are left out of ``track_fields``.

    Attributes
    ----------
    dropped : stays empty: all tracks of the file are read
    """

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def recognises(self, path: Path) -> bool:
        """Whether it is HDF5 with a structured dataset ``jets``."""
        if not h5py.is_hdf5(path):
            return False
        with open_native(path) as file:
            refuse_links(file, ("jets",), path)
            jets = file.get("jets")
            return isinstance(jets, h5py.Dataset) and jets.dtype.names is not None

    def count(self, path: Path, card: DataCard) -> int:  # noqa: ARG002 - one collection only
        """Number of rows of ``jets``."""
        with open_native(path) as file:
            return int(require_dataset(file, "jets", path).shape[0])

    def contents(self, path: Path, collection: str | None = None) -> Contents:  # noqa: ARG002
        """Names, taggers and labels, from the headers alone."""
        with open_native(path) as file:
            jets = require_dataset(file, "jets", path)
            refuse_links(file, ("tracks",), path)
            tracks = file.get("tracks")
            names = jets.dtype.names
            return Contents(
                format="ftag_hdf5",
                n_jets=int(jets.shape[0]),
                jet_fields=names,
                track_fields=tuple(tracks.dtype.names or ()) if isinstance(tracks, h5py.Dataset) else (),
                taggers=tuple(sorted(name[:-3] for name in names if name.endswith("_pb"))),
                labelled=any(name in names for name in JET_FIELDS["label"]),
                datasets=tuple(file),
            )

    def chunks(self, path: Path, card: DataCard, wanted: Wanted, chunk_jets: int) -> Iterator[Jets]:
        """See :class:`selfcal.data.reading.JetReader`."""
        with open_native(path) as file:
            jets = require_dataset(file, "jets", path)
            names = _jet_names(jets, card, path)
            cuts = {cut.field for cut in card.selection} & set(jets.dtype.names)
            require_numbers(jets.dtype, {*names.values(), *cuts}, f"{path}, dataset jets")
            tracks = _track_columns(file, path, card, wanted.labels) if wanted.tracks else None
            position = _EventPosition()
            for start in range(0, max(1, len(jets)), chunk_jets):
                table = jets[start : start + chunk_jets]
                chunk = _jet_chunk(table, names, card, wanted, path, start, position)
                if tracks is not None:
                    chunk = replace(chunk, **_read_tracks(tracks, path, start, len(table)))
                yield chunk.select(selected(table, card.selection, path)) if card.selection else chunk


def read_jets(path: Path, dataset: str, *, with_tracks: bool = True, with_labels: bool = True) -> Jets:
    """The whole of one native file; ``dataset`` is the name under which the jets' keys are known.

    Raises
    ------
    DataError
        See :func:`selfcal.data.reading.read_dataset`.
    """
    card = DataCard(name=dataset, role="simulation", region="any", files=(str(path),))
    wanted = Wanted(tracks=with_tracks, labels=with_labels)
    reader = FtagHdf5Reader()
    (jets,) = reader.chunks(path, card, wanted, max(1, reader.count(path, card)))
    return jets


def _jet_names(jets: h5py.Dataset, card: DataCard, path: Path) -> dict[str, str]:
    """The file's name of each of our quantities that it has.

    Raises
    ------
    DataError
        If pT or eta, or a field that the card names, is not there.
    """
    stored = jets.dtype.names
    found: dict[str, str] = {}
    for quantity, candidates in JET_FIELDS.items():
        given = getattr(card.fields, quantity)
        name = next((one for one in ([given] if given else candidates) if one in stored), None)
        if name is not None:
            found[quantity] = name
        elif given or quantity in ("pt", "eta"):
            wanted = given or candidates[0]
            raise missing_fields([wanted], stored, f"{path}, dataset jets", f"fields.{quantity}")
    return found


class _EventPosition:
    """Index of each jet within its event, where an event may continue from one chunk to the next."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], int] = {}

    def ranks(self, run: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.int32]:
        """Position of each jet among those of its event, in file order, (N,)."""
        order = np.lexsort((event, run))
        new = np.ones(len(event), dtype=bool)
        new[1:] = (np.diff(event[order]) != 0) | (np.diff(run[order]) != 0)
        position = np.arange(len(event))
        within = position - np.maximum.accumulate(np.where(new, position, 0))
        rank = np.empty(len(event), dtype=np.int32)
        rank[order] = within
        # Jets of one event stand side by side: only the last event of a chunk can go on in the next.
        if len(event):
            first = (int(run[0]), int(event[0]))
            same = (run == first[0]) & (event == first[1])
            rank[same] += self._seen.get(first, 0)
            last = (int(run[-1]), int(event[-1]))
            self._seen = {last: int(rank[(run == last[0]) & (event == last[1])].max()) + 1}
        return rank


def _jet_chunk(
    table: NDArray[Any],
    names: Mapping[str, str],
    card: DataCard,
    wanted: Wanted,
    path: Path,
    start: int,
    position: _EventPosition,
) -> Jets:
    """The jets of a block of rows, without tracks."""
    n = len(table)
    row = np.arange(start, start + n)
    scales = UnitScales.of(card)
    pt_gev = (table[names["pt"]] * scales.momentum_gev).astype(np.float32)
    eta = table[names["eta"]].astype(np.float32)
    weight = table[names["weight"]].astype(np.float64) if "weight" in names else np.ones(n)
    phi = (table[names["phi"]] * scales.angle_rad).astype(np.float64) if "phi" in names else None
    used: dict[str, NDArray[np.floating]] = {names["pt"]: pt_gev, names["eta"]: eta}
    if phi is not None:
        used[names["phi"]] = phi
    refuse_not_finite(used | ({names["weight"]: weight} if "weight" in names else {}), path)
    flavour = np.full(n, UNLABELLED, dtype=np.int8)
    if wanted.labels and "label" in names:
        labels = whole_numbers(table[names["label"]], names["label"], path)
        flavour = flavour_from_cone_label(labels, where=f"{path}, jets/{names['label']}")
    keys = {
        name: whole_numbers(table[names[name]], names[name], path)
        for name in ("run", "event", "jet_index")
        if name in names
    }
    run = keys.get("run", np.zeros(n, dtype=np.int64))
    event = keys.get("event", row + _file_number(path))
    rank = keys["jet_index"].astype(np.int32) if "jet_index" in keys else position.ranks(run, event)
    truth_pt_gev = None
    if wanted.labels and "truth_pt" in names:
        stored_pt = table[names["truth_pt"]] * scales.momentum_gev
        # NaN stands for "no true jet" here as zero and below do: no training looks at it.
        refuse_not_finite({names["truth_pt"]: np.where(np.isnan(stored_pt), 0.0, stored_pt)}, path)
        truth_pt_gev = np.where(stored_pt > 0, stored_pt, np.nan).astype(np.float32)
    score, classes = _scores(table, card, path) if wanted.scores else (None, ())
    return Jets(
        dataset=card.name, pt_gev=pt_gev, eta=eta, flavour=flavour, weight=weight, run=run, event=event,
        jet_index=rank, **_no_tracks(n), log_score=score, score_classes=classes, row=row,
        truth_pt_gev=truth_pt_gev, phi=None if phi is None else wrapped_angle(phi),
    )  # fmt: skip


def _file_number(path: Path) -> int:
    """CRC-32 of the name, times 2^31: keeps rows of different files apart where they stand for events."""
    return zlib.crc32(path.name.encode()) << 31


def _scores(table: NDArray[Any], card: DataCard, path: Path) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """ln p of the tagger that the card names, and its classes; three-class taggers have no tau."""
    if card.scores is None:
        raise DataError(f"the card of '{card.name}' names no 'scores'", where=str(path))
    tagger = card.scores.tagger
    stored = tuple(table.dtype.names or ())
    usual = dict(zip(FLAVOURS, (f"{tagger}_{suffix}" for suffix in SCORE_SUFFIXES), strict=True))
    if usual["tau"] not in stored:
        del usual["tau"]
    fields: dict[str, str] = {str(flavour): name for flavour, name in card.scores.fields.items()} or usual
    absent = [name for name in fields.values() if name not in stored]
    if absent:
        raise missing_fields(absent, stored, f"{path}, dataset jets", "scores")
    classes = tuple(name for name in FLAVOURS if name in fields)
    require_numbers(table.dtype, fields.values(), f"{path}, dataset jets")
    probabilities = np.column_stack([table[fields[name]].astype(np.float64) for name in classes])
    return log_scores(probabilities, classes, f"{path}, scores of {tagger}"), classes


def _no_tracks(n_jets: int) -> dict[str, Any]:
    return {
        "track_offsets": np.zeros(n_jets + 1, dtype=np.int64),
        "tracks": np.zeros((0, 0), dtype=np.float32),
        "track_origin": np.zeros(0, dtype=np.int8),
        "track_vertex": np.zeros(0, dtype=np.int16),
        "track_fields": (),
    }


@dataclass(frozen=True)
class _TrackColumns:
    """The dataset of tracks, and for each column its stored name and the factor to our units."""

    dataset: h5py.Dataset
    names: tuple[str, ...]
    stored: tuple[str, ...]
    factors: tuple[float, ...]
    labelled: bool


def _track_columns(file: h5py.File, path: Path, card: DataCard, labels: bool) -> _TrackColumns:
    dataset = require_dataset(file, "tracks", path, ("valid",))
    n_jets = file["jets"].shape[0]
    if dataset.shape[0] != n_jets:
        raise DataError(f"{dataset.shape[0]} rows of tracks for {n_jets} jets", where=str(path))
    stored = set(dataset.dtype.names)
    given = card.fields.tracks
    unknown = sorted(set(given) - set(TRACK_FIELDS))
    if unknown:
        raise missing_fields(unknown, TRACK_FIELDS, f"data card of '{card.name}'", "fields.tracks")
    absent = [name for name in given.values() if name not in stored]
    if absent:
        raise missing_fields(absent, dataset.dtype.names, f"{path}, dataset tracks", "fields.tracks")
    found = {
        name: next(
            (one for one in (given.get(name, name), *_OLDER_TRACK_NAMES.get(name, ())) if one in stored), None
        )
        for name in TRACK_FIELDS
    }
    names = tuple(name for name in TRACK_FIELDS if found[name] is not None)
    truth = {"ftagTruthOriginLabel", "ftagTruthVertexIndex"} & stored if labels else set()
    require_numbers(
        dataset.dtype, {*map(str, filter(None, found.values())), "valid", *truth}, f"{path}, dataset tracks"
    )
    scales = UnitScales.of(card)
    return _TrackColumns(
        dataset=dataset,
        names=names,
        stored=tuple(str(found[name]) for name in names),
        factors=tuple(track_factor(name, scales) for name in names),
        labelled=labels and "ftagTruthOriginLabel" in stored,
    )


def _read_tracks(columns: _TrackColumns, path: Path, start: int, n: int) -> dict[str, Any]:
    """The packed tracks of rows ``start`` to ``start + n``; padding is left out."""
    counts = np.zeros(n, dtype=np.int64)
    parts, origins, vertices = [], [], []
    has_vertex = columns.labelled and "ftagTruthVertexIndex" in columns.dataset.dtype.names
    for first in range(0, n, _BLOCK):
        last = min(first + _BLOCK, n)
        block = columns.dataset[start + first : start + last]
        valid = block["valid"].astype(bool)
        counts[first:last] = valid.sum(axis=1)
        rows = block[valid]
        part = np.empty((len(rows), len(columns.names)), dtype=np.float32)
        for index, (name, factor) in enumerate(zip(columns.stored, columns.factors, strict=True)):
            part[:, index] = rows[name] if factor == 1.0 else rows[name] * factor
        parts.append(part)
        origins.append(_or_unknown(rows, "ftagTruthOriginLabel", columns.labelled, UNKNOWN_ORIGIN))
        vertices.append(_or_unknown(rows, "ftagTruthVertexIndex", has_vertex, UNKNOWN_VERTEX))
    if not parts:
        empty = np.zeros((0, len(columns.names)), dtype=np.float32)
        return _no_tracks(n) | {"track_fields": columns.names, "tracks": empty}
    tracks = np.concatenate(parts)
    if not np.isfinite(tracks).all():
        refuse_not_finite({name: tracks[:, i] for i, name in enumerate(columns.stored)}, path)
    return {
        "track_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "tracks": tracks,
        "track_origin": np.concatenate(origins).astype(np.int8),
        "track_vertex": np.concatenate(vertices).astype(np.int16),
        "track_fields": columns.names,
    }


def _or_unknown(rows: NDArray[Any], name: str, present: bool, unknown: int) -> NDArray[np.int16]:
    return rows[name].astype(np.int16) if present else np.full(len(rows), unknown, dtype=np.int16)
