"""From columns of a ROOT file to ``Jets``: what PHYSLITE, NanoAOD and PFNano have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import refuse_not_finite, whole_numbers
from selfcal.data.flavours import UNLABELLED
from selfcal.data.hdf5 import UNKNOWN_ORIGIN, UNKNOWN_VERTEX
from selfcal.data.jets import TRACK_FIELDS, Jets, wrapped_angle
from selfcal.data.root_files import EventBlock
from selfcal.data.selection import selected
from selfcal.data.units import UnitScales
from selfcal.errors import DataError


@dataclass(frozen=True)
class JetColumns:
    """Columns of the file that hold our quantities.

    ``jet_index`` is the position in the event where None; ``label`` is None where there are no labels,
    ``weight`` where every jet counts one. ``cuts``: column of each field of the card's selection.
    """

    pt: str
    eta: str
    phi: str
    event: str
    jet_index: str | None
    label: str | None
    weight: str | None
    cuts: Mapping[str, str]


def resolve_columns(
    card: DataCard,
    defaults: Mapping[str, str | None],
    find: Callable[[str], str | None],
    names: tuple[str, ...],
    where: str,
) -> JetColumns:
    """The columns of a card: those that it names, otherwise ``defaults`` (None: not needed).

    ``find`` gives the column of a field name as a user writes it, or None; ``names`` are those to choose
    from.

    Raises
    ------
    DataError
        If a field is not there: pT, eta, phi and event number, and all that the card names.
    """
    columns: dict[str, str | None] = {}
    for quantity, default in defaults.items():
        given = getattr(card.fields, quantity, None)
        field = given or default
        columns[quantity] = find(field) if field is not None else None
        needed = given is not None or quantity in ("pt", "eta", "phi", "event")
        if columns[quantity] is None and needed:
            raise missing_fields([field or quantity], names, where, f"fields.{quantity}")
    cuts = {cut.field: find(cut.field) for cut in card.selection}
    absent = [field for field, column in cuts.items() if column is None]
    if absent:
        raise missing_fields(absent, names, where, "selection")
    return JetColumns(
        pt=str(columns["pt"]),
        eta=str(columns["eta"]),
        phi=str(columns["phi"]),
        event=str(columns["event"]),
        jet_index=columns["jet_index"],
        label=columns["label"],
        weight=columns["weight"],
        cuts={field: str(column) for field, column in cuts.items()},
    )


def chosen_jets(block: EventBlock, columns: JetColumns, card: DataCard, path: Path) -> NDArray[np.int64]:
    """Rows of the block's jets that pass the selection of the card, (n,)."""
    if not card.selection:
        return np.arange(block.n_jets)
    fields = {field: block.per_jet(column) for field, column in columns.cuts.items()}
    return np.flatnonzero(selected(fields, card.selection, path))


def bare_jets(
    block: EventBlock,
    columns: JetColumns,
    rows: NDArray[np.int64],
    card: DataCard,
    run: NDArray[np.int64],
    first_row: int,
) -> Jets:
    """The jets at ``rows``, without labels, scores and tracks; ``run`` is per event, (E,).

    Raises
    ------
    DataError
        NaN or infinity in pT, eta, phi or weight; numbers of jets or events that are no whole ones.
    """
    scales = UnitScales.of(card)
    event_of_jet = block.event_of_jet[rows]
    pt_gev = (block.per_jet(columns.pt)[rows] * scales.momentum_gev).astype(np.float32)
    eta = block.per_jet(columns.eta)[rows].astype(np.float32)
    phi = block.per_jet(columns.phi)[rows].astype(np.float64) * scales.angle_rad
    used: dict[str, NDArray[np.floating]] = {columns.pt: pt_gev, columns.eta: eta, columns.phi: phi}
    weight = np.ones(len(rows))
    if columns.weight is not None:
        weight = block.per_event(columns.weight).astype(np.float64)[event_of_jet]
        used[columns.weight] = weight
    refuse_not_finite(used, block.table.path)
    index = block.index_in_event if columns.jet_index is None else block.per_jet(columns.jet_index)
    return Jets(
        dataset=card.name,
        pt_gev=pt_gev,
        eta=eta,
        flavour=np.full(len(rows), UNLABELLED, dtype=np.int8),
        weight=weight,
        run=run[event_of_jet].astype(np.int64),
        event=whole_numbers(block.per_event(columns.event), columns.event, block.table.path)[event_of_jet],
        jet_index=whole_numbers(index[rows], str(columns.jet_index), block.table.path).astype(np.int32),
        row=first_row + rows,
        phi=wrapped_angle(phi),
        **packed_tracks({}, np.zeros(len(rows), np.int64), block.table.path),
    )


def packed_tracks(
    columns: Mapping[str, NDArray[Any]], counts: NDArray[np.int64], path: Path
) -> dict[str, Any]:
    """The track attributes of ``Jets`` from columns in the order of the jets; ``counts`` tracks per jet.

    Raises
    ------
    DataError
        NaN or infinity in a column, with the count of each.
    """
    names = tuple(name for name in TRACK_FIELDS if name in columns)
    total = int(counts.sum())
    matrix = np.empty((total, len(names)), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused below
        for position, name in enumerate(names):
            matrix[:, position] = columns[name]
    if not np.isfinite(matrix).all():
        refuse_not_finite({name: matrix[:, i] for i, name in enumerate(names)}, path)
    return {
        "track_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "tracks": matrix,
        "track_origin": np.full(total, UNKNOWN_ORIGIN, dtype=np.int8),
        "track_vertex": np.full(total, UNKNOWN_VERTEX, dtype=np.int16),
        "track_fields": names,
    }


def tracks_of_links(
    link: NDArray[np.int64], track_counts: NDArray[np.int64], event: NDArray[np.int64], what: str, path: Path
) -> NDArray[np.int64]:
    """Rows (L,) in the flat track table of L links (event, index within the event).

    Raises
    ------
    DataError
        If a link points beyond the tracks of its event.
    """
    beyond = (link < 0) | (link >= track_counts[event])
    if beyond.any():
        raise DataError(
            f"{int(beyond.sum())} of {len(link)} {what} point beyond the tracks of their event",
            where=str(path),
            fix="the file is damaged or was skimmed inconsistently",
        )
    first = np.cumsum(track_counts) - track_counts
    rows: NDArray[np.int64] = first[event] + link
    return rows
