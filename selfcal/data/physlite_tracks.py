"""Tracks of PHYSLITE jets: ghost-associated ``InDetTrackParticles`` with their perigee parameters.

d0 refers to the beam line; z0 is taken relative to the hard-scatter vertex (the first of
``vertexType`` 1, otherwise the first), z = z0 + vz - z_vertex, whose own uncertainty is not included.
PHYSLITE keeps few tracks: links to those that were thinned away have the key 0, are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.field_names import missing_fields
from selfcal.data.finite import refuse_not_finite
from selfcal.data.jet_axis import (
    Column,
    pseudorapidity,
    relative_angles,
    signed_d0_significance,
    signed_z0_significance,
    z0_sin_theta_sigma,
)
from selfcal.data.jets import TRACK_FIELDS
from selfcal.data.physlite_layout import Layout
from selfcal.data.root_files import EventBlock, flat_float, flat_int, lengths
from selfcal.data.root_jets import packed_tracks, tracks_of_links
from selfcal.data.units import UnitScales, track_factor
from selfcal.errors import DataError

TRACK_CONTAINER = "InDetTrackParticles"
INDET_KEY = 490246363
"""Hash of ``InDetTrackParticles`` in element links, the same in every xAOD file."""

_PARAMETERS = 5
"""d0, z0, phi, theta, q/p: the order of rows and columns of the covariance matrix."""
_HARD_SCATTER = 1


def ghost_tracks(
    block: EventBlock,
    layout: Layout,
    card: DataCard,
    rows: NDArray[np.int64],
    axis: tuple[Column, Column],
    dropped: Counter[str],
) -> dict[str, Any]:
    """The track attributes of ``Jets`` for the jets at ``rows`` with (eta, phi) ``axis``.

    ``qOverP`` is in 1/MeV, d0 and z0SinTheta in mm. Fields that the file cannot give are left out: the
    significances and uncertainties without covariance, z0SinTheta without vertices, absent hit counts.

    Raises
    ------
    DataError
        If the jets have no ``GhostTrack`` links or the tracks no parameters; damaged links; NaN or
        infinity in a column.
    """
    path = block.table.path
    counts, link, jet = _ghost_links(block, layout, rows, dropped)
    track_counts = lengths(block.read(_required(layout, "d0")))
    event = block.event_of_jet[rows][jet]
    track = tracks_of_links(link, track_counts, event, "GhostTrack links", path)
    beside = (axis[0][jet], axis[1][jet])
    columns = _perigee_columns(block, layout, card, track_counts, track, event, beside)
    return packed_tracks(columns, counts, path)


def _ghost_links(
    block: EventBlock, layout: Layout, rows: NDArray[np.int64], dropped: Counter[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tracks per jet (N,), and per track its index in the event and its jet (position in ``rows``)."""
    name = layout.column(layout.collection, "GhostTrack")
    if name is None:
        raise missing_fields(
            ["GhostTrack"], layout.fields(layout.collection), str(block.table.path), "collection"
        )
    key, index = (ak.flatten(part, axis=1)[rows] for part in layout.links(block, name))
    jet = np.repeat(np.arange(len(rows)), lengths(key))
    keys, indices = flat_int(key), flat_int(index)
    kept = keys == INDET_KEY
    dropped["links to thinned tracks"] += int((keys == 0).sum())
    dropped["links to tracks of other containers"] += int((~kept & (keys != 0)).sum())
    return np.bincount(jet[kept], minlength=len(rows)).astype(np.int64), indices[kept], jet[kept]


def _required(layout: Layout, field: str) -> str:
    column = layout.column(TRACK_CONTAINER, field)
    if column is None:
        where = f"{layout.table.path}, {TRACK_CONTAINER}"
        raise missing_fields([field], layout.fields(TRACK_CONTAINER), where, "fields.tracks")
    return column


def _perigee_columns(
    block: EventBlock,
    layout: Layout,
    card: DataCard,
    counts: NDArray[np.int64],
    track: NDArray[np.int64],
    event: NDArray[np.int64],
    axis: tuple[Column, Column],
) -> dict[str, Column]:
    """Columns by native name, one value per track of a jet; ``counts`` tracks per event in the file."""
    scales = UnitScales.of(card)
    d0, z0, phi, theta, q_over_p = (
        _finite(name, block.flat(_required(layout, name), counts)[track], block)
        for name in ("d0", "z0", "phi", "theta", "qOverP")
    )
    phi, theta = phi * scales.angle_rad, theta * scales.angle_rad
    deta, dphi = relative_angles(pseudorapidity(theta), phi, *axis)
    columns = {"deta": deta, "dphi": dphi}
    columns["d0"] = d0 * scales.length_mm
    columns["qOverP"] = q_over_p * track_factor("qOverP", scales)
    vertex = _vertex_z(block, layout)
    if vertex is not None:
        shift = layout.column(TRACK_CONTAINER, "vz")
        z0 = z0 + (block.flat(shift, counts)[track] if shift else 0.0) - vertex[event]
        columns["z0SinTheta"] = z0 * np.sin(theta) * scales.length_mm
    covariance = _covariance(block, layout, counts, track)
    if covariance is not None:
        variance = {i: _finite(f"variance {i}", covariance[i, i], block) for i in range(_PARAMETERS)}
        with np.errstate(invalid="ignore"):  # a negative variance gives NaN, which is refused
            for name, i in (("phi", 2), ("theta", 3), ("qOverP", 4)):
                native = f"{name}Uncertainty"
                columns[native] = np.sqrt(variance[i]) * track_factor(native, scales)
            columns["lifetimeSignedD0Significance"] = signed_d0_significance(d0, np.sqrt(variance[0]), dphi)
        if vertex is not None:
            sigma = z0_sin_theta_sigma(z0, theta, variance[1], variance[3], covariance[3, 1])
            columns["lifetimeSignedZ0SinThetaSignificance"] = signed_z0_significance(
                z0 * np.sin(theta), sigma, deta
            )
    for name in TRACK_FIELDS:
        own = card.fields.tracks.get(name)
        stored = _required(layout, own) if own else layout.column(TRACK_CONTAINER, name)
        if own or (name.startswith("numberOf") and stored):
            columns[name] = block.flat(str(stored), counts)[track] * track_factor(name, scales)
    _require_known(card)
    return columns


def _finite(name: str, values: Column, block: EventBlock) -> Column:
    """The values as they are; an infinite variance would be a significance of zero."""
    refuse_not_finite({name: values}, block.table.path)
    return values


def _require_known(card: DataCard) -> None:
    unknown = sorted(set(card.fields.tracks) - set(TRACK_FIELDS))
    if unknown:
        raise missing_fields(unknown, TRACK_FIELDS, f"data card of '{card.name}'", "fields.tracks")


def _vertex_z(block: EventBlock, layout: Layout) -> Column | None:
    """z of the hard-scatter vertex, (E,), NaN in events without any; None without vertices in the file."""
    z_column, type_column = (layout.column("PrimaryVertices", name) for name in ("z", "vertexType"))
    if z_column is None:
        return None
    z = block.read(z_column)
    if type_column is not None:
        kind = block.read(type_column)
        if not np.array_equal(lengths(kind), lengths(z)):
            raise DataError(f"'{type_column}' and '{z_column}' differ in length", where=str(block.table.path))
        is_hard = kind == _HARD_SCATTER
        z = ak.where(ak.any(is_hard, axis=1), ak.firsts(z[is_hard]), ak.firsts(z))
    else:
        z = ak.firsts(z)
    return np.asarray(ak.to_numpy(ak.fill_none(z, np.nan))).astype(np.float64)


def _covariance(
    block: EventBlock, layout: Layout, counts: NDArray[np.int64], track: NDArray[np.int64]
) -> dict[tuple[int, int], Column] | None:
    """Elements (i, i) and (3, 1) of the covariance of the five parameters for each track.

    Two forms are in use: the lower triangle row by row (15 numbers), or variances (5 numbers) and
    correlations, again the lower triangle row by row (10 numbers).
    """
    whole = layout.column(TRACK_CONTAINER, "definingParametersCovMatrix")
    if whole is not None:
        triangle = _matrix(block, whole, counts, _PARAMETERS * (_PARAMETERS + 1) // 2)[track]
        place = {(i, j): i * (i + 1) // 2 + j for i in range(_PARAMETERS) for j in range(i + 1)}
        return {
            element: triangle[:, place[element]]
            for element in [*((i, i) for i in range(_PARAMETERS)), (3, 1)]
        }
    diagonal, below = (
        layout.column(TRACK_CONTAINER, f"definingParametersCovMatrix{part}") for part in ("Diag", "OffDiag")
    )
    if diagonal is None or below is None:
        return None
    variances = _matrix(block, diagonal, counts, _PARAMETERS)[track]
    correlation = _matrix(block, below, counts, _PARAMETERS * (_PARAMETERS - 1) // 2)[track][:, 4]
    elements: dict[tuple[int, int], Column] = {(i, i): variances[:, i] for i in range(_PARAMETERS)}
    with np.errstate(invalid="ignore", over="ignore"):
        elements[3, 1] = correlation * np.sqrt(variances[:, 3] * variances[:, 1])
    return elements


def _matrix(block: EventBlock, column: str, counts: NDArray[np.int64], width: int) -> Column:
    """A column of ``width`` numbers per track as (tracks, width)."""
    array = ak.flatten(block.read(column), axis=1)
    if len(array) != counts.sum() or not ak.all(ak.num(array) == width):
        where = str(block.table.path)
        raise DataError(f"'{column}' does not have {width} numbers for every track", where=where)
    return flat_float(array).reshape(-1, width)
