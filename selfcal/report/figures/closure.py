"""Closure per region and flavour: data over simulation, uncalibrated and calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.inputs import CLOSURE, Closure, ClosureRow
from selfcal.report.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    INK,
    ReportFigure,
    experiment_label,
    flavour_label,
    limits_around,
    plain_text,
)


def significance(row: ClosureRow, *, calibrated: bool) -> float | None:
    """|ratio − 1| / σ; σ is statistical, and with the map's uncertainty for the calibrated ratio."""
    ratio = row.ratio_calibrated if calibrated else row.ratio_uncalibrated
    if ratio is None or not row.error:
        return None
    error = hypot(row.error, row.map_uncertainty or 0.0) if calibrated else row.error
    return abs(ratio - 1) / error


def held_out_first(rows: Sequence[ClosureRow]) -> list[ClosureRow]:
    """The rows in their order, those of held-out regions before the others."""
    return sorted(rows, key=lambda row: not row.held_out)


def closure_figure(closure: Closure) -> ReportFigure:
    """One line of panels per region, one panel per flavour, ratio against working point.

    Raises
    ------
    DataError
        If there are no rows.
    """
    if not closure.rows:
        raise DataError("no rows", where=CLOSURE)
    regions = list(dict.fromkeys((row.region, row.held_out) for row in held_out_first(closure.rows)))
    flavours = list(dict.fromkeys(row.flavour for row in closure.rows))
    height = 1.1 + 2.1 * len(regions)
    figure = Figure(figsize=(11, height))
    grid = figure.add_gridspec(
        len(regions), len(flavours), left=0.065, right=0.985, hspace=0.14, wspace=0.16,
        top=1 - 0.6 / height, bottom=0.55 / height,
    )  # fmt: skip
    for line, (region, held_out) in enumerate(regions):
        for column, flavour in enumerate(flavours):
            axes = figure.add_subplot(grid[line, column])
            rows = sorted(
                (row for row in closure.rows if (row.region, row.flavour) == (region, flavour)),
                key=lambda row: row.working_point,
            )
            _draw_panel(axes, rows)
            axes.tick_params(labelbottom=line == len(regions) - 1)
            if line == 0:
                axes.set_title(flavour_label(flavour), loc="right")
            if column == 0:
                label = plain_text(region) + (" (held out)" if held_out else "")
                axes.text(0.04, 0.94, label, transform=axes.transAxes, va="top", weight="bold", fontsize=10)
                axes.set_ylabel("Data / sim.", loc="center")
            if line == 0 and column == 0:
                experiment_label(axes)
    figure.axes[-1].set_xlabel("Working point (b efficiency)")
    _legend(figure, height)
    return ReportFigure(
        name="closure",
        figure=figure,
        caption=(
            "Efficiency in data over efficiency in simulation per region, flavour and working point, "
            "before and after "
            "the calibration. Error bars: statistical, and for the calibrated ratio with the map's "
            "uncertainty."
        ),
        sources=(CLOSURE,),
        description=f"Closure in {len(regions)} regions for {len(flavours)} flavours",
    )


def _draw_panel(axes: Axes, rows: list[ClosureRow]) -> None:
    shown: list[float] = []
    for index, row in enumerate(rows):
        error = row.error or 0.0
        if row.ratio_uncalibrated is not None:
            axes.errorbar(
                index - 0.12, row.ratio_uncalibrated, error, fmt="o", mfc="none", color=BEFORE_COLOUR
            )
            shown.append(row.ratio_uncalibrated)
        if row.ratio_calibrated is not None:
            total = hypot(error, row.map_uncertainty or 0.0)
            axes.errorbar(index + 0.12, row.ratio_calibrated, total, fmt="o", color=AFTER_COLOUR)
            shown += [
                row.ratio_calibrated,
                row.ratio_calibrated - min(total, 0.5),
                row.ratio_calibrated + min(total, 0.5),
            ]
    axes.axhline(1, color=INK, linewidth=0.8)
    axes.set_xlim(-0.6, max(len(rows), 1) - 0.4)
    axes.set_xticks(np.arange(len(rows)), [f"{100 * row.working_point:.4g} %" for row in rows])
    axes.tick_params(axis="x", which="both", length=0)
    low, high = limits_around(shown, 1.0)
    axes.set_ylim(low, high + 0.25 * (high - low))


def _legend(figure: Figure, height: float) -> None:
    axes = figure.add_axes((0.0, 0.0, 0.5, 0.3 / height))
    axes.axis("off")
    handles: list[Any] = [
        axes.errorbar([], [], yerr=[], fmt="o", mfc="none", color=BEFORE_COLOUR),
        axes.errorbar([], [], yerr=[], fmt="o", color=AFTER_COLOUR),
    ]
    axes.legend(handles, ["uncalibrated", "calibrated"], loc="lower left", ncols=2)
