"""Impacts and pulls of the nuisance parameters on chosen scale factors, ranked."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.figures.pulls import sigma_bands
from selfcal.report.fit_inputs import ImpactsOfRow, ImpactTable
from selfcal.report.inputs import IMPACTS, SCALE_FACTORS, ScaleFactors
from selfcal.report.style import (
    INK,
    WARNING_COLOUR,
    ReportFigure,
    experiment_label,
    flavour_colour,
    flavour_label,
    interval,
    percent,
    plain_text,
)

WORKING_POINT = 0.77


def impact_figures(table: ImpactTable, scale_factors: ScaleFactors) -> list[ReportFigure]:
    """One figure per flavour: of its measured scale factor at the working point nearest 77 % with most jets.

    Raises
    ------
    DataError
        If the table lists no scale factor, or one that does not exist.
    """
    if not table.scale_factors or any(
        not 0 <= entry.row < len(scale_factors.rows) for entry in table.scale_factors
    ):
        raise DataError("no impacts, or impacts on rows that do not exist", where=IMPACTS)
    figures = []
    for flavour in scale_factors.flavours:
        entry = _chosen(table, scale_factors, flavour)
        if entry is not None and entry.impacts:
            figures.append(_figure(entry, scale_factors))
    return figures


def _chosen(table: ImpactTable, scale_factors: ScaleFactors, flavour: str) -> ImpactsOfRow | None:
    def rank(entry: ImpactsOfRow) -> tuple[bool, float, float]:
        row = scale_factors.rows[entry.row]
        distance = abs((row.working_point or 0.0) - WORKING_POINT)
        return row.status != "measured", distance, -(row.expected_passing or 0.0)

    of_flavour = [
        entry
        for entry in table.scale_factors
        if (row := scale_factors.rows[entry.row]).flavour == flavour and row.kind == "working_point"
    ]
    return min(of_flavour, key=rank, default=None)


def _figure(entry: ImpactsOfRow, scale_factors: ScaleFactors) -> ReportFigure:
    row, ranked = scale_factors.rows[entry.row], entry.impacts
    height = 1.4 + 0.3 * len(ranked)
    figure = Figure(figsize=(11, height))
    grid = figure.add_gridspec(
        1, 2, left=0.27, right=0.985, top=1 - 0.45 / height, bottom=0.95 / height, wspace=0.06
    )
    places = np.arange(len(ranked))[::-1].astype(float)
    pulls, impacts = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    sigma_bands(pulls, vertical=True)
    pulls.errorbar(
        [one.pull for one in ranked],
        places,
        xerr=[one.constraint for one in ranked],
        fmt="o",
        color=INK,
        elinewidth=1.2,
        markersize=4,
    )
    reach = max(2.6, 1.15 * max(abs(one.pull) + one.constraint for one in ranked))
    pulls.set_xlim(-reach, reach)
    pulls.set_yticks(places, [plain_text(one.parameter) for one in ranked])
    pulls.set_xlabel("Pull, in units of the prior's σ")
    up = np.array([one.refit.up if one.refit else one.impact for one in ranked])
    down = np.array([one.refit.down if one.refit else -one.impact for one in ranked])
    impacts.barh(places, up, 0.62, color=flavour_colour(row.flavour), alpha=0.75, label="+1σ")
    impacts.barh(places, down, 0.62, color="none", edgecolor=WARNING_COLOUR, linewidth=1.2, label="−1σ")
    refitted = np.array([one.refit is not None for one in ranked])
    if refitted.any():
        beyond = 1.06 * max(np.abs(up).max(), np.abs(down).max())
        impacts.plot(np.full(refitted.sum(), beyond), places[refitted], "x", color=INK, ms=5, label="refit")
    impacts.axvline(0, color=INK, linewidth=0.8)
    impacts.set_xlim(*(sign * 1.15 * max(np.abs(up).max(), np.abs(down).max()) for sign in (-1, 1)))
    impacts.set_xlabel("Impact on the scale factor")
    impacts.set_yticks([])
    impacts.ticklabel_format(axis="x", style="plain", useOffset=False)
    for axes in (pulls, impacts):
        axes.tick_params(axis="y", which="both", length=0, labelsize=9)
        axes.set_ylim(-0.7, len(ranked) - 0.3)
    experiment_label(pulls)
    point = percent(row.working_point or 0.0)
    where = f"{flavour_label(row.flavour)}, {point} working point, pT {interval(row.pt_gev)} GeV"
    value = f"{row.value:.3f} ± {entry.total:.3f}" if row.value is not None else ""
    impacts.set_title(f"{where}: {value}", loc="right")
    legend = figure.add_axes((0.02, 0.0, 0.24, 0.8 / height))
    legend.axis("off")
    legend.legend(*impacts.get_legend_handles_labels(), loc="center left", ncols=3)
    return ReportFigure(
        name=f"impacts_{row.flavour}",
        figure=figure,
        caption=(
            f"The {len(ranked)} nuisance parameters with the largest impact on the scale factor of {where}: "
            "post-fit value and uncertainty, and what the scale factor changes by when the parameter is held "
            "at ±1 post-fit σ and all others are fitted again (to first order; crosses mark those that were "
            "fitted again)."
        ),
        sources=(IMPACTS, SCALE_FACTORS),
        description=f"Ranked impacts and pulls for {where}",
    )
