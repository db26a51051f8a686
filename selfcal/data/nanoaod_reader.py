"""Reader of CMS NanoAOD (v9 to v15): jets, labels and scores; PFNano files are read too, without tracks.

Fields have the file's own names (``Jet_pt``, ``Jet_btagPNetB``, ``genWeight``). Momenta are in GeV. In a
selection, a field with one number per event holds for all its jets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.cms_scores import probabilities, score_scheme, taggers_in
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import whole_numbers
from selfcal.data.flavours import LIGHT, TAU, B, C
from selfcal.data.jet_reader import Contents, Wanted
from selfcal.data.jets import Jets
from selfcal.data.root_files import EventBlock, EventTable, events_if_any, open_events
from selfcal.data.root_jets import JetColumns, bare_jets, chosen_jets, resolve_columns
from selfcal.data.score_values import log_scores
from selfcal.errors import DataError

TREES = ("Events",)
DEFAULT_COLLECTION = "Jet"
CANDIDATE_INDEX = "JetPFCands_pFCandsIdx"
"""Its presence makes a NanoAOD file a PFNano file."""

HADRON_FLAVOUR = {5: B, 4: C, 0: LIGHT}
TAU_MATCH_DELTA_R = 0.3
TAU_PT_GEV = 5.0
"""A light jet with a generated, hadronically decaying tau of at least this visible pT within
``TAU_MATCH_DELTA_R`` of its axis is a tau jet: the rule of the generated samples, which NanoAOD's own
``hadronFlavour`` (b, c or neither) does not have."""


class NanoAodReader:
    """Jets of one collection (``Jet`` unless the card says otherwise) of NanoAOD events.

    *Key*: the run part is ``run`` 2^32 + ``luminosityBlock``, because event numbers of simulation (where the
    run is 1 throughout) need not be unique without the block. *Labels*: ``hadronFlavour`` 5, 4, 0, and tau
    for light jets that match a ``GenVisTau``; in files without ``GenVisTau`` tau jets count as light.
    *Weight*: ``genWeight``, where there is one.

    Attributes
    ----------
    dropped : what was left out of tracks while reading, by reason, with counts
    """

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    tracks_expected = False
    """Whether tracks are there to be read."""

    def recognises(self, path: Path) -> bool:
        """Whether it has ``Events`` with jets, run, block and event, and no constituents of jets."""
        with events_if_any(path, TREES) as table:
            if table is None:
                return False
            keyed = all(name in table for name in ("run", "luminosityBlock", "event"))
            constituents = CANDIDATE_INDEX in table
            return keyed and bool(_collections(table)) and constituents == self.tracks_expected

    def count(self, path: Path, card: DataCard) -> int:
        """Number of jets, from their counts alone."""
        with open_events(path, TREES) as table:
            return table.count_jets(_counts_column(table, card.collection))

    def contents(self, path: Path, collection: str | None = None) -> Contents:
        """Names, taggers and labels; only the numbers of jets are read."""
        with open_events(path, TREES) as table:
            counts = _counts_column(table, collection)
            prefix = f"{collection or DEFAULT_COLLECTION}_"
            return Contents(
                format="pfnano" if CANDIDATE_INDEX in table else "nanoaod",
                n_jets=table.count_jets(counts),
                jet_fields=tuple(name for name in table.columns if name.startswith(prefix)),
                track_fields=tuple(name for name in table.columns if name.startswith("PFCands_")),
                taggers=taggers_in(f"{prefix}btag", table.columns),
                labelled=f"{prefix}hadronFlavour" in table,
                collections=_collections(table),
            )

    def chunks(self, path: Path, card: DataCard, wanted: Wanted, chunk_jets: int) -> Iterator[Jets]:
        """See :class:`selfcal.data.reading.JetReader`; the row of a jet counts over the file."""
        with open_events(path, TREES) as table:
            _counts_column(table, card.collection)
            columns = _columns(table, card)
            first_row = 0
            for start, stop in table.ranges(columns.pt, chunk_jets):
                block = EventBlock(table, start, stop, columns.pt)
                rows = chosen_jets(block, columns, card, path)
                run = _run(block, card)
                jets = bare_jets(block, columns, rows, card, run, first_row)
                if wanted.labels:
                    jets = replace(jets, flavour=_labels(block, columns, card, rows))
                if wanted.scores:
                    jets = replace(jets, **_scores(block, card, rows))
                if wanted.tracks:
                    jets = replace(jets, **self._tracks(block, columns, card, rows))
                yield jets
                first_row += block.n_jets

    def _tracks(
        self,
        block: EventBlock,
        columns: JetColumns,  # noqa: ARG002 - PFNano, which has tracks, needs them
        card: DataCard,
        rows: NDArray[np.int64],  # noqa: ARG002
    ) -> dict[str, Any]:
        raise DataError(
            f"NanoAOD holds no tracks, but they are asked for of '{card.name}'",
            where=str(block.table.path),
            expected="'tagger: {kind: scores}', which calibrates the scores in the file",
            fix="with constituents of jets in the file (PFNano), write 'format: pfnano'",
        )


def _collections(table: EventTable) -> tuple[str, ...]:
    """Names X with X_pt, X_eta and X_hadronFlavour or a b-tagging score."""
    names = [name for name in table.columns if name[:1].isupper() and not name.startswith("Gen")]
    candidates = {name.split("_btag")[0] for name in names if "_btag" in name}
    candidates |= {name.removesuffix("_hadronFlavour") for name in names if name.endswith("_hadronFlavour")}
    return tuple(sorted(c for c in candidates if f"{c}_pt" in table and f"{c}_eta" in table))


def _counts_column(table: EventTable, collection: str | None) -> str:
    """The column of the number of jets per event, or of pT where there is none."""
    name = collection or DEFAULT_COLLECTION
    if f"{name}_pt" not in table:
        raise missing_fields([name], _collections(table), f"{table.path}, {table.name}", "collection")
    return f"n{name}" if f"n{name}" in table else f"{name}_pt"


def _columns(table: EventTable, card: DataCard) -> JetColumns:
    prefix = f"{card.collection or DEFAULT_COLLECTION}_"
    defaults = {
        "pt": f"{prefix}pt",
        "eta": f"{prefix}eta",
        "phi": f"{prefix}phi",
        "event": "event",
        "jet_index": None,
        "label": f"{prefix}hadronFlavour",
        "weight": "genWeight",
    }
    names = tuple(name for name in table.columns if name.startswith(prefix)) + tuple(
        name for name in table.columns if "_" not in name
    )
    return resolve_columns(
        card, defaults, lambda name: name if name in table else None, names, f"{table.path}, {table.name}"
    )


def _run(block: EventBlock, card: DataCard) -> NDArray[np.int64]:
    """The run part of the key, (E,); see :class:`NanoAodReader`."""
    if card.fields.run is not None:
        return whole_numbers(block.per_event(card.fields.run), card.fields.run, block.table.path)
    run, lumi = (
        whole_numbers(block.per_event(name), name, block.table.path) for name in ("run", "luminosityBlock")
    )
    return (run << 32) + lumi


def _labels(
    block: EventBlock, columns: JetColumns, card: DataCard, rows: NDArray[np.int64]
) -> NDArray[np.int8]:
    path = block.table.path
    if columns.label is None:
        if card.role == "simulation":
            prefix = f"{card.collection or DEFAULT_COLLECTION}_"
            present = tuple(name for name in block.table.columns if name.startswith(prefix))
            raise missing_fields([f"{prefix}hadronFlavour"], present, str(path), "fields.label")
        return np.full(len(rows), -1, dtype=np.int8)
    stored = whole_numbers(block.per_jet(columns.label)[rows], columns.label, path)
    flavour = np.full(len(rows), -1, dtype=np.int8)
    for label, index in HADRON_FLAVOUR.items():
        flavour[stored == label] = index
    unknown = np.unique(stored[flavour < 0])
    if len(unknown):
        raise DataError(
            f"unknown truth label(s) {[int(one) for one in unknown]}",
            where=f"{path}, {columns.label}",
            expected=f"one of {sorted(HADRON_FLAVOUR)}",
            fix="drop these jets with a selection in the data card, or map the label field",
        )
    if "GenVisTau_eta" in block.table:
        flavour[(flavour == LIGHT) & _near_tau(block, columns)[rows]] = TAU
    return flavour


def _near_tau(block: EventBlock, columns: JetColumns) -> NDArray[np.bool_]:
    """Whether a generated hadronic tau is near each jet of the block, (N,)."""
    tau = {name: block.read(f"GenVisTau_{name}") for name in ("pt", "eta", "phi")}
    hard = tau["pt"] >= TAU_PT_GEV
    deta = block.jagged(columns.eta)[:, :, None] - tau["eta"][hard][:, None, :]
    dphi = block.jagged(columns.phi)[:, :, None] - tau["phi"][hard][:, None, :]
    dphi = (dphi + np.pi) % (2 * np.pi) - np.pi
    near = ak.any(deta**2 + dphi**2 < TAU_MATCH_DELTA_R**2, axis=2)
    return np.asarray(ak.to_numpy(ak.flatten(near))).astype(np.bool_)


def _scores(block: EventBlock, card: DataCard, rows: NDArray[np.int64]) -> dict[str, Any]:
    path = block.table.path
    if card.scores is None:
        raise DataError(f"the card of '{card.name}' names no 'scores'", where=str(path))
    where = f"{path}, scores of {card.scores.tagger}"
    prefix = f"{card.collection or DEFAULT_COLLECTION}_btag"
    scheme = score_scheme(card.scores, prefix, block.table.columns, where)
    values = {part: block.per_jet(field)[rows].astype(np.float64) for part, field in scheme.fields.items()}
    found = probabilities(scheme, values, where)
    return {"log_score": log_scores(found, scheme.classes, where), "score_classes": scheme.classes}
