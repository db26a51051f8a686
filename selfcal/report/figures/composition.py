"""Flavour composition of every region: prior, fitted, truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.inputs import COMPOSITION, Composition
from selfcal.report.style import (
    BEFORE_COLOUR,
    INK,
    ReportFigure,
    experiment_label,
    flavour_colour,
    limits_around,
    plain_text,
)


def composition_figure(composition: Composition) -> ReportFigure:
    """One panel per region: grey bar the prior, coloured point the fit, open diamond the truth.

    Raises
    ------
    DataError
        If there is no region.
    """
    regions = [
        region for region in composition.regions if any(row.region == region for row in composition.rows)
    ]
    if not regions:
        raise DataError("no composition of any region", where=COMPOSITION)
    columns = len(regions) if len(regions) <= 4 else 3
    lines = -(-len(regions) // columns)
    figure = Figure(figsize=(11, 0.7 + 3.2 * lines))
    height = 0.7 + 3.2 * lines
    grid = figure.add_gridspec(
        lines,
        columns,
        left=0.07,
        right=0.985,
        top=1 - 0.5 / height,
        bottom=0.4 / height,
        hspace=0.28,
        wspace=0.2,
    )
    for number, region in enumerate(regions):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        rows = [row for row in composition.rows if row.region == region]
        position = np.arange(len(rows), dtype=float)
        axes.bar(
            position,
            [2 * row.prior_uncertainty for row in rows],
            bottom=[row.prior - row.prior_uncertainty for row in rows],
            width=0.62,
            color=BEFORE_COLOUR,
            alpha=0.4,
            label="prior ± uncertainty",
        )
        axes.hlines([row.prior for row in rows], position - 0.31, position + 0.31, color=BEFORE_COLOUR)
        for place, row in zip(position, rows, strict=True):
            axes.errorbar(
                place - 0.1,
                row.fitted,
                yerr=row.uncertainty,
                fmt="o",
                color=flavour_colour(row.flavour),
                markersize=7,
            )
            if row.truth is not None:
                axes.plot(place + 0.14, row.truth, marker="D", color=INK, mfc="none", ls="none", markersize=6)
        axes.set_xticks(position, [_short(row.flavour) for row in rows])
        axes.tick_params(axis="x", which="both", length=0, labelsize=12)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        edges = [
            bound
            for row in rows
            for bound in (row.prior + row.prior_uncertainty, row.fitted + row.uncertainty)
        ]
        axes.set_ylim(0, limits_around([*edges, *(row.truth or 0 for row in rows)], 0.0, margin=0.3)[1])
        axes.text(
            0.97, 0.95, plain_text(region), transform=axes.transAxes, ha="right", va="top", weight="bold"
        )
        if number % columns == 0:
            axes.set_ylabel("Fraction of jets")
        if number == 0:
            experiment_label(axes)
    _legend(figure, height)
    condition = composition.condition_number
    return ReportFigure(
        name="composition",
        figure=figure,
        caption=(
            "Fraction of each flavour in every region: the data card's prior, the fit and, where the "
            "generator is "
            "ours, the truth."
            + (
                f" Condition number of the composition matrix: {condition:.3g}."
                if condition is not None
                else ""
            )
        ),
        sources=(COMPOSITION,),
        description=f"Prior, fitted and true flavour fractions in {len(regions)} regions",
    )


def _short(flavour: str) -> str:
    return {"tau": "τ"}.get(flavour, plain_text(flavour))


def _legend(figure: Figure, height: float) -> None:
    axes = figure.add_axes((0.4, 1 - 0.5 / height, 0.585, 0.45 / height))
    axes.axis("off")
    handles: list[Any] = [
        axes.bar([0], [0], color=BEFORE_COLOUR, alpha=0.4),
        axes.errorbar([], [], yerr=[], fmt="o", color=INK, markersize=7),
        axes.plot([], [], marker="D", color=INK, mfc="none", ls="none", markersize=6)[0],
    ]
    axes.legend(handles, ["prior ± uncertainty", "fitted", "truth"], loc="center right", ncols=3)
