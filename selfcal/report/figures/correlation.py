"""Correlation matrix of the scale factors."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from selfcal.errors import DataError
from selfcal.report.inputs import SCALE_FACTORS, ScaleFactorRow, ScaleFactors, covariance_of_rows
from selfcal.report.style import INK, ReportFigure, experiment_label, flavour_label, interval, percent


def correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """C_ij / √(C_ii C_jj), (S, S); rows and columns of zero variance are zero."""
    spread = np.sqrt(np.clip(np.diagonal(covariance), 0.0, None))
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    return covariance * inverse[:, None] * inverse[None, :]


def correlation_figure(scale_factors: ScaleFactors) -> ReportFigure:
    """Correlation of the working-point rows (of all rows if there are no such), flavour by flavour.

    Raises
    ------
    DataError
        If the file holds no covariance, or none of a row with an uncertainty.
    """
    found = covariance_of_rows(scale_factors)
    if found is None:
        raise DataError("no covariance matrix", where=f"{SCALE_FACTORS}, field 'covariance'")
    row_numbers, covariance = found
    chosen = [place for place in range(len(row_numbers)) if covariance[place, place] > 0]
    of_points = [place for place in chosen if scale_factors.rows[row_numbers[place]].kind == "working_point"]
    order = {flavour: index for index, flavour in enumerate(scale_factors.flavours)}
    chosen = sorted(
        of_points or chosen, key=lambda place: _sort_key(scale_factors.rows[row_numbers[place]], order)
    )
    if not chosen:
        raise DataError("every variance is zero", where=f"{SCALE_FACTORS}, field 'covariance'")
    rows = [scale_factors.rows[row_numbers[place]] for place in chosen]
    matrix = correlation(covariance[np.ix_(chosen, chosen)])

    figure = Figure(figsize=(9.4, 8.2))
    axes = figure.add_axes((0.17, 0.12, 0.7, 0.81))
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="none", aspect="auto")
    labels = [_row_label(row) for row in rows]
    size = 8.5 if len(rows) <= 40 else 5.5
    axes.set_yticks(np.arange(len(rows)), labels, fontsize=size)
    axes.set_xticks(np.arange(len(rows)), labels, rotation=90, fontsize=size)
    axes.tick_params(which="both", length=0)
    axes.minorticks_off()
    for place in range(1, len(rows)):
        if rows[place].flavour != rows[place - 1].flavour:
            axes.axhline(place - 0.5, color=INK, linewidth=1.2)
            axes.axvline(place - 0.5, color=INK, linewidth=1.2)
    bar = figure.colorbar(image, cax=figure.add_axes((0.89, 0.12, 0.025, 0.81)))
    bar.set_label("Correlation")
    experiment_label(
        axes, right=", ".join(flavour_label(name) for name in dict.fromkeys(row.flavour for row in rows))
    )
    return ReportFigure(
        name="correlation",
        figure=figure,
        caption=f"Correlation of {len(rows)} scale factors: flavour, working point and pT range in GeV.",
        sources=(SCALE_FACTORS,),
        description=f"Correlation matrix of {len(rows)} scale factors",
    )


def _sort_key(row: ScaleFactorRow, order: dict[str, int]) -> tuple[float, ...]:
    point = row.working_point if row.working_point is not None else float(row.bin or 0)
    return (order.get(row.flavour, len(order)), row.abs_eta[0], point, row.pt_gev[0])


def _row_label(row: ScaleFactorRow) -> str:
    short = {"tau": "τ"}.get(row.flavour, row.flavour)
    point = percent(row.working_point) if row.working_point is not None else f"bin {row.bin}"
    return f"{short} {point} {interval(row.pt_gev)}"
