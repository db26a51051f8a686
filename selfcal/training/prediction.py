"""Scores of a finished tagger written back into files: a copy with more fields, or a friend file.

The fields are ``<tagger>_p{b,c,u,tau}`` of the dataset ``jets``, in the order of the file's jets, as
puma and the working-point tools of ``ftag`` read them, and, if the tagger regresses the true pT, that
as ``<tagger>_pt`` in the unit of the file's momenta. The tools also ask for ``pt`` and ``eta``, which a
copy gets where the file has only ``pt_btagJes`` and ``eta_btagJes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import SCORE_SUFFIXES
from selfcal.data.hdf5_file import new_hdf5, open_native, refuse_links, require_dataset
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import Jets
from selfcal.data.reading import read_dataset
from selfcal.data.units import UnitScales
from selfcal.errors import DataError
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.scoring import regressed_pt_gev, score_jets

CHUNK_JETS = 20_000
_CHUNK_ROWS = 4096
_ALIASES = {"pt": "pt_btagJes", "eta": "eta_btagJes"}


def predicted_fields(config: TaggerConfig) -> tuple[str, ...]:
    """Names of the fields that a tagger adds: its scores, in class order, and its pT if it has that head."""
    scores = tuple(f"{config.name}_{suffix}" for suffix in SCORE_SUFFIXES)
    return (*scores, f"{config.name}_pt") if config.regress_pt else scores


def write_copy(
    bundle: TaggerBundle, card: DataCard, source: Path, output: Path, on_chunk: Callable[[int], None]
) -> int:
    """Copy an HDF5 file with the scores as further fields of ``jets``; returns the number of jets.

    Everything else, attributes and further datasets included, is copied as it is.

    Raises
    ------
    DataError
        If the file cannot be read, lacks an input of the tagger, or has a field of that name.
    """
    names = predicted_fields(bundle.config)
    with new_hdf5(output) as new, open_native(source) as old:
        refuse_links(old, old, source)
        jets = require_dataset(old, "jets", source)
        present = [name for name in names if name in jets.dtype.names]
        if present:
            raise DataError(
                f"the file has the field(s) {', '.join(present)} already",
                where=f"{source}, dataset jets",
                fix="write a friend file (--friend), or give the tagger another name",
            )
        new.attrs.update(old.attrs)
        for name in old:
            if name != "jets":
                old.copy(name, new)
        stored_types = [(name, jets.dtype[name]) for name in jets.dtype.names]
        aliases = {
            alias: name
            for alias, name in _ALIASES.items()
            if alias not in jets.dtype.names and name in jets.dtype.names
        }
        added = [*((alias, "<f4") for alias in aliases), *((name, "<f8") for name in names)]
        dtype = np.dtype([*stored_types, *added])
        table = _create(new, len(jets), dtype)
        table.attrs.update(jets.attrs)
        done = 0
        for chunk, columns in _scored_chunks(bundle, card, source, UnitScales.of(card).momentum_gev):
            block = np.zeros(len(chunk), dtype=dtype)
            stored = jets[done : done + len(chunk)]
            for name in jets.dtype.names:
                block[name] = stored[name]
            for alias, name in aliases.items():
                block[alias] = stored[name]
            for name, values in columns.items():
                block[name] = values
            table[done : done + len(chunk)] = block
            done += len(chunk)
            on_chunk(done)
    return done


def write_friend(
    bundle: TaggerBundle,
    card: DataCard,
    source: Path,
    n_jets: int,
    output: Path,
    on_chunk: Callable[[int], None],
) -> int:
    """Write keys, kinematics and scores of the jets of a file of any format; returns their number.

    Row i of ``jets`` is jet i of the source; ``runNumber``, ``eventNumber`` and ``jet_rank`` join them
    again. Momenta are in MeV.

    Raises
    ------
    DataError
        If the file has another number of jets than ``n_jets``.
    """
    types: dict[str, str] = {
        "runNumber": "<i8", "eventNumber": "<i8", "jet_rank": "<i4",
        "pt_btagJes": "<f4", "eta_btagJes": "<f4",
        **dict.fromkeys(predicted_fields(bundle.config), "<f8"),
    }  # fmt: skip
    with new_hdf5(output) as new:
        new.attrs.update({"energy_unit": "MeV", "friend_of": source.name})
        table = _create(new, n_jets, np.dtype(list(types.items())))
        done = 0
        for chunk, columns in _scored_chunks(bundle, card, source, unit_gev=1e-3):
            block = np.zeros(len(chunk), dtype=table.dtype)
            block["runNumber"], block["eventNumber"] = chunk.run, chunk.event
            block["jet_rank"], block["eta_btagJes"] = chunk.jet_index, chunk.eta
            block["pt_btagJes"] = chunk.pt_gev * np.float32(1000.0)
            for name, values in columns.items():
                block[name] = values
            table[done : done + len(chunk)] = block
            done += len(chunk)
            on_chunk(done)
    if done != n_jets:
        raise DataError(f"{done} jets were read where {n_jets} were announced", where=str(source))
    return done


def _create(file: h5py.File, n_jets: int, dtype: np.dtype[Any]) -> h5py.Dataset:
    if not n_jets:
        return file.create_dataset("jets", (0,), dtype)
    rows = min(_CHUNK_ROWS, n_jets)
    return file.create_dataset(
        "jets", (n_jets,), dtype, chunks=(rows,), compression="gzip", compression_opts=1, fletcher32=True
    )


def _scored_chunks(
    bundle: TaggerBundle, card: DataCard, source: Path, unit_gev: float
) -> Iterator[tuple[Jets, dict[str, NDArray[np.float64]]]]:
    """The jets of a file chunk by chunk, each with what the tagger adds; momenta in units of ``unit_gev``."""
    names = predicted_fields(bundle.config)
    for jets in read_dataset(card, [source], Wanted(labels=False), chunk_jets=CHUNK_JETS):
        scores = score_jets(bundle, jets)
        # Scores are float32 numbers; exp(ln p) alone is off by rounding, and fits of maps magnify that.
        values = list(np.exp(scores.log_probability).astype(np.float32).astype(np.float64).T)
        if scores.log_response is not None:
            values.append(regressed_pt_gev(jets, scores) / unit_gev)
        yield jets, dict(zip(names, values, strict=True))
