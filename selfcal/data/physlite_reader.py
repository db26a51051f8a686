"""Reader of ATLAS PHYSLITE, as TTree (``CollectionTree``) and as RNTuple (``EventData``).

Fields are named as in the event data model, without container and prefix (``pt``, ``GN2v01_pb``,
``HadronConeExclTruthLabelID``), so that one data card reads both kinds of file. Momenta are in MeV,
lengths in mm. Tracks are the ``InDetTrackParticles`` to which the jets' ``GhostTrack`` links point;
see :mod:`selfcal.data.physlite_tracks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import whole_numbers
from selfcal.data.flavours import FLAVOURS, SCORE_SUFFIXES, flavour_from_cone_label
from selfcal.data.jet_axis import require_conventions
from selfcal.data.jet_reader import Contents, Wanted
from selfcal.data.jets import Jets
from selfcal.data.physlite_layout import Layout
from selfcal.data.physlite_tracks import TRACK_CONTAINER, ghost_tracks
from selfcal.data.root_files import (
    EventBlock,
    EventTable,
    events_if_any,
    flat_int,
    lengths,
    open_events,
)
from selfcal.data.root_jets import JetColumns, bare_jets, chosen_jets, resolve_columns
from selfcal.data.score_values import log_scores
from selfcal.errors import DataError

TREES = ("CollectionTree", "EventData")
DEFAULT_COLLECTION = "AnalysisJets"
LABELS = ("HadronConeExclTruthLabelID", "HadronConeExclExtendedTruthLabelID")
_SIMULATION_BIT = 1
"""Bit 0 of ``eventTypeBitmask``: IS_SIMULATION."""
_ABSENT_SCORE = -1.0


class PhysliteReader:
    """Jets of one collection (``AnalysisJets`` unless the card says otherwise) of PHYSLITE events.

    *Key*: the run is ``runNumber`` in data; in simulation it is ``mcChannelNumber`` 2^32 + ``runNumber``,
    because event numbers there are unique only within a generated sample, and the run number says which
    data-taking period is simulated. *Weight*: ``mcEventWeights[0]``, where there is one.

    Attributes
    ----------
    dropped : what was left out of tracks while reading, by reason, with counts
    """

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def recognises(self, path: Path) -> bool:
        """Whether it has ``CollectionTree`` or ``EventData`` with a collection of jets."""
        with events_if_any(path, TREES) as table:
            return table is not None and bool(_collections(table, _separator(table)))

    def count(self, path: Path, card: DataCard) -> int:
        """Number of jets, from the column of pT alone."""
        with open_events(path, TREES) as table:
            layout = _layout(table, card.collection)
            return table.count_jets(str(layout.column(layout.collection, "pt")))

    def contents(self, path: Path, collection: str | None = None) -> Contents:
        """Names, taggers and labels; only the numbers of jets are read."""
        with open_events(path, TREES) as table:
            layout = _layout(table, collection)
            fields = layout.fields(layout.collection)
            scores = {name for holder in _score_holders(layout) for name in layout.fields(holder)}
            return Contents(
                format="physlite",
                n_jets=table.count_jets(str(layout.column(layout.collection, "pt"))),
                jet_fields=fields,
                track_fields=layout.fields(TRACK_CONTAINER),
                taggers=tuple(sorted(name[:-3] for name in scores if name.endswith("_pb"))),
                labelled=any(label in fields for label in LABELS),
                collections=_collections(table, layout.separator),
            )

    def chunks(self, path: Path, card: DataCard, wanted: Wanted, chunk_jets: int) -> Iterator[Jets]:
        """See :class:`selfcal.data.reading.JetReader`; the row of a jet counts over the file."""
        require_conventions(card, ("beamline", "beamspot"), "PHYSLITE")
        with open_events(path, TREES) as table:
            layout = _layout(table, card.collection)
            columns = _columns(layout, card)
            first_row = 0
            for start, stop in table.ranges(columns.pt, chunk_jets):
                block = EventBlock(table, start, stop, columns.pt)
                yield self._jets(block, layout, columns, card, wanted, first_row)
                first_row += block.n_jets

    def _jets(
        self,
        block: EventBlock,
        layout: Layout,
        columns: JetColumns,
        card: DataCard,
        wanted: Wanted,
        first_row: int,
    ) -> Jets:
        path = block.table.path
        rows = chosen_jets(block, columns, card, path)
        jets = bare_jets(block, columns, rows, card, _run(block, layout, card), first_row)
        if wanted.labels and columns.label is not None:
            labels = whole_numbers(block.per_jet(columns.label)[rows], columns.label, path)
            jets = replace(jets, flavour=flavour_from_cone_label(labels, f"{path}, {columns.label}"))
        elif wanted.labels and card.role == "simulation":
            raise missing_fields([LABELS[0]], layout.fields(layout.collection), str(path), "fields.label")
        if wanted.scores:
            probabilities, classes = _probabilities(block, layout, card, rows)
            jets = replace(
                jets, log_score=log_scores(probabilities, classes, f"{path}, scores"), score_classes=classes
            )
        if wanted.tracks:
            axis = (
                block.per_jet(columns.eta)[rows].astype(np.float64),
                block.per_jet(columns.phi)[rows].astype(np.float64),
            )
            jets = replace(jets, **ghost_tracks(block, layout, card, rows, axis, self.dropped))
        return jets


def _separator(table: EventTable) -> str:
    return ":" if any("AuxDyn:" in name for name in table.columns) else "."


def _collections(table: EventTable, separator: str) -> tuple[str, ...]:
    """Containers with what a jet has: pt, eta and a truth label or a link to b tagging."""
    layout = Layout(table, "", separator)
    marks = (*LABELS, "btaggingLink", "GhostTrack")
    return tuple(
        container
        for container in layout.containers("pt")
        if layout.column(container, "eta") and any(layout.column(container, mark) for mark in marks)
    )


def _layout(table: EventTable, collection: str | None) -> Layout:
    separator = _separator(table)
    layout = Layout(table, collection or DEFAULT_COLLECTION, separator)
    if layout.column(layout.collection, "pt") is None:
        found = _collections(table, separator)
        raise missing_fields([layout.collection], found, f"{table.path}, {table.name}", "collection")
    return layout


def _columns(layout: Layout, card: DataCard) -> JetColumns:
    defaults = {
        "pt": "pt",
        "eta": "eta",
        "phi": "phi",
        "event": "eventNumber",
        "jet_index": None,
        "label": next((label for label in LABELS if layout.column(layout.collection, label)), None),
        "weight": "mcEventWeights",
    }
    names = (*layout.fields(layout.collection), *layout.fields("EventInfo"))
    where = f"{layout.table.path}, {layout.collection} and EventInfo"
    return resolve_columns(card, defaults, layout.find, names, where)


def _run(block: EventBlock, layout: Layout, card: DataCard) -> NDArray[np.int64]:
    """The run part of the key, (E,); see :class:`PhysliteReader`."""
    field = card.fields.run or "runNumber"
    column = layout.column("EventInfo", field)
    if column is None:
        raise missing_fields([field], layout.fields("EventInfo"), str(block.table.path), "fields.run")
    run = whole_numbers(block.per_event(column), column, block.table.path)
    channel = layout.column("EventInfo", "mcChannelNumber")
    if card.fields.run is not None or channel is None:
        return run
    bits = layout.column("EventInfo", "eventTypeBitmask")
    simulated = block.per_event(bits) & _SIMULATION_BIT if bits else np.ones(len(run), dtype=np.int64)
    return run + np.where(simulated, block.per_event(channel).astype(np.int64) << 32, 0)


def _score_holders(layout: Layout) -> tuple[str, ...]:
    """Containers in which scores may stand: the jets themselves and those of b tagging."""
    ending = f"AuxDyn{layout.separator}"
    names = [name.split(ending)[0] for name in layout.table.columns if ending in name]
    return (layout.collection, *dict.fromkeys(name for name in names if name.startswith("BTagging_")))


def _probabilities(
    block: EventBlock, layout: Layout, card: DataCard, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Class probabilities (N, K) of the jets at ``rows`` and their classes; -1 where a jet has no scores."""
    path = block.table.path
    if card.scores is None:
        raise DataError(f"the card of '{card.name}' names no 'scores'", where=str(path))
    tagger = card.scores.tagger
    fields: dict[str, str] = {str(flavour): name for flavour, name in card.scores.fields.items()} or {
        flavour: f"{tagger}_{suffix}" for flavour, suffix in zip(FLAVOURS, SCORE_SUFFIXES, strict=True)
    }
    holders = _score_holders(layout)
    if not card.scores.fields and not any(layout.column(one, fields["tau"]) for one in holders):
        fields.pop("tau")
    holder = _holder(layout, holders, fields, path)
    classes = tuple(name for name in FLAVOURS if name in fields)
    columns = [str(layout.column(holder, fields[name])) for name in classes]
    link = layout.column(layout.collection, "btaggingLink")
    if holder == layout.collection or link is None:
        return np.column_stack([block.per_jet(name)[rows].astype(np.float64) for name in columns]), classes
    counts = lengths(block.read(columns[0]))
    position = _linked_position(block, layout, link, counts)[rows]
    found = np.full((len(rows), len(classes)), _ABSENT_SCORE)
    for k, name in enumerate(columns):
        found[position >= 0, k] = block.flat(name, counts)[position[position >= 0]]
    return found, classes


def _holder(layout: Layout, holders: tuple[str, ...], fields: Mapping[str, str], path: Path) -> str:
    """The container that has all score fields."""
    having = [one for one in holders if all(layout.column(one, field) for field in fields.values())]
    if len(having) > 1 and layout.collection == DEFAULT_COLLECTION:
        having = [one for one in having if "AntiKt4EMPFlow" in one] or having  # what AnalysisJets are
    if not having:
        present = tuple(dict.fromkeys(name for one in holders for name in layout.fields(one)))
        absent = [name for name in fields.values() if name not in present]
        raise missing_fields(absent or list(fields.values()), present, str(path), "scores")
    if len(having) > 1:
        raise DataError(
            f"scores {', '.join(fields.values())} stand in several containers: {', '.join(having)}",
            where=str(path),
            expected=f"one container of b tagging for {layout.collection}",
        )
    return having[0]


def _linked_position(
    block: EventBlock, layout: Layout, link: str, counts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Position of each jet's entry in the flattened columns of b tagging, (N,); -1 without a link.

    ``counts`` (E,): entries of b tagging per event.
    """
    key, index = (flat_int(part) for part in layout.links(block, link))
    if len(key) != block.n_jets:
        raise DataError(f"{len(key)} links to b tagging for {block.n_jets} jets", where=str(block.table.path))
    if len(np.unique(key[key != 0])) > 1:
        raise DataError("the jets link to several containers of b tagging", where=str(block.table.path))
    if ((key != 0) & (index >= counts[block.event_of_jet])).any():
        raise DataError("links to b tagging point beyond its entries", where=str(block.table.path))
    return np.where(key != 0, (np.cumsum(counts) - counts)[block.event_of_jet] + index, -1)
