"""The native file: the ATLAS flavour-tagging HDF5 layout that salt, puma and umami-preprocessing read.

``jets (N,)`` and ``tracks (N, 40)`` are structured datasets; ``valid`` says which
of the 40 slots hold a track. Momenta are in MeV, ``qOverP`` in 1/MeV, lengths in mm.
Nothing here opens the dataset that holds the truth of pseudo-data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOUR_TO_CONE_LABEL
from selfcal.data.hdf5_file import new_hdf5
from selfcal.data.jets import Jets
from selfcal.errors import DataError

TRACK_SLOTS = 40
LABEL_FIELD = "HadronConeExclTruthLabelID"
TRUTH_DATASET = "closure_truth"
FLAVOUR_CLASS_NAMES = ("bjets", "cjets", "ujets", "taujets")
UNKNOWN_ORIGIN, UNKNOWN_VERTEX = -1, -2
_BLOCK = 4096
_JET_CHUNK, _TRACK_CHUNK = 4096, 512


def write_jets(
    path: Path,
    jets: Jets,
    *,
    labels: bool,
    closure_truth: NDArray[np.int8] | None = None,
    jet_fields: Mapping[str, NDArray[Any]] | None = None,
    attributes: Mapping[str, str] | None = None,
) -> int:
    """Write ``jets`` whole or not at all; returns the number of tracks dropped.

    A jet keeps at most 40 tracks, those of largest |d0 significance| in their
    order; the rest is counted in the returned value and the file's attribute
    ``tracks_dropped``.

    Parameters
    ----------
    labels : write ``HadronConeExclTruthLabelID`` and the tracks' truth origin and vertex.
    closure_truth : (N,) flavours of pseudo-data, kept in a dataset of its own.
    jet_fields : further (N,) fields of ``jets``, by name.
    attributes : further text attributes of the file.

    Raises
    ------
    DataError
        If labels are asked for jets that have none, lengths differ, or the file cannot be written.
    """
    if labels and len(jets) and not jets.labelled:
        raise DataError("labels are asked for, but some jets have none", where=str(path))
    for name, values in {**(jet_fields or {}), TRUTH_DATASET: closure_truth}.items():
        if values is not None and len(values) != len(jets):
            raise DataError(f"'{name}' has {len(values)} entries for {len(jets)} jets", where=str(path))
    slots, dropped = _track_slots(jets)
    with new_hdf5(path) as file:
        file.attrs.update({"energy_unit": "MeV", "length_unit": "mm", **(attributes or {})})
        file.attrs["tracks_dropped"] = dropped
        table = _jet_table(jets, labels, jet_fields or {})
        dataset = _create(file, "jets", table.shape, table.dtype, (_JET_CHUNK,))
        dataset[...] = table
        dataset.attrs["flavour_label"] = list(FLAVOUR_CLASS_NAMES)
        _write_tracks(file, jets, slots, labels)
        if closure_truth is not None:
            truth = np.zeros(len(jets), dtype=[(LABEL_FIELD, "<i4")])
            truth[LABEL_FIELD] = _cone_labels(closure_truth)
            _create(file, TRUTH_DATASET, truth.shape, truth.dtype, (_JET_CHUNK,))[...] = truth
    return dropped


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...]) -> Any:
    if 0 in shape:
        return file.create_dataset(name, shape, dtype)  # neither chunks nor filters without content
    fitted = tuple(max(1, min(c, s)) for c, s in zip(chunks, shape, strict=True))
    return file.create_dataset(
        name, shape, dtype, chunks=fitted, compression="gzip", compression_opts=1, fletcher32=True
    )


def _cone_labels(flavour: NDArray[np.int8]) -> NDArray[np.int32]:
    label_of = np.array([FLAVOUR_TO_CONE_LABEL[i] for i in range(len(FLAVOUR_TO_CONE_LABEL))], dtype=np.int32)
    return label_of[flavour]


def _jet_table(jets: Jets, labels: bool, extra: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    columns: dict[str, NDArray[Any]] = {
        "pt_btagJes": jets.pt_gev * np.float32(1000.0),
        "eta_btagJes": jets.eta,
        "n_tracks": jets.n_tracks.astype(np.int32),
        "mcEventWeight": jets.weight.astype(np.float32),
        "runNumber": jets.run,
        "eventNumber": jets.event,
        "jet_rank": jets.jet_index,
    }
    if jets.phi is not None:
        columns["phi"] = jets.phi
    if labels:
        columns[LABEL_FIELD] = _cone_labels(jets.flavour)
    columns |= dict(extra)
    table = np.zeros(
        len(jets), dtype=[(name, values.dtype.newbyteorder("<")) for name, values in columns.items()]
    )
    for name, values in columns.items():
        table[name] = values
    return table


def _track_slots(jets: Jets) -> tuple[NDArray[np.int64], int]:
    """Slot of every track within its jet, -1 for those that are dropped, and the number of these."""
    counts = jets.n_tracks
    slot = np.arange(len(jets.tracks)) - np.repeat(jets.track_offsets[:-1], counts)
    if "lifetimeSignedD0Significance" in jets.track_fields:
        significance = np.abs(jets.tracks[:, jets.track_fields.index("lifetimeSignedD0Significance")])
    else:
        significance = -slot.astype(np.float32)
    for jet in np.flatnonzero(counts > TRACK_SLOTS):
        start, stop = jets.track_offsets[jet], jets.track_offsets[jet + 1]
        best = np.sort(np.argsort(-significance[start:stop], kind="stable")[:TRACK_SLOTS])
        slot[start:stop] = -1
        slot[start + best] = np.arange(TRACK_SLOTS)
    return slot, int((slot < 0).sum())


def _write_tracks(file: h5py.File, jets: Jets, slots: NDArray[np.int64], labels: bool) -> None:
    dtype = [(name, "u1" if name.startswith("numberOf") else "<f4") for name in jets.track_fields]
    if labels:
        dtype += [("ftagTruthOriginLabel", "i1"), ("ftagTruthVertexIndex", "<i2")]
    dtype += [("valid", "?")]
    dataset = _create(file, "tracks", (len(jets), TRACK_SLOTS), dtype, (_TRACK_CHUNK, TRACK_SLOTS))
    padding = np.zeros((), dtype=dtype)
    if labels:
        padding["ftagTruthOriginLabel"], padding["ftagTruthVertexIndex"] = UNKNOWN_ORIGIN, UNKNOWN_VERTEX
    jet_of_track = np.repeat(np.arange(len(jets)), jets.n_tracks)
    for start in range(0, len(jets), _BLOCK):
        stop = min(start + _BLOCK, len(jets))
        rows = np.arange(jets.track_offsets[start], jets.track_offsets[stop])
        rows = rows[slots[rows] >= 0]
        where = (jet_of_track[rows] - start, slots[rows])
        block = np.full((stop - start, TRACK_SLOTS), padding, dtype=dtype)
        for column, name in enumerate(jets.track_fields):
            block[name][where] = jets.tracks[rows, column]
        if labels:
            block["ftagTruthOriginLabel"][where] = jets.track_origin[rows]
            block["ftagTruthVertexIndex"][where] = jets.track_vertex[rows]
        block["valid"][where] = True
        dataset[start:stop] = block
