"""The numbers of a study: one panel per column, one line per point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.report.study_inputs import SUMMARY, StudyRow, StudySummary, numbers_of
from selfcal.report.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    GOOD_COLOUR,
    ReportFigure,
    experiment_label,
    limits_around,
    plain_text,
)

PANELS = 4
"""Columns that stand side by side in one figure."""


def study_figures(summary: StudySummary) -> list[ReportFigure]:
    """As many figures as it takes for all columns with numbers; none where no point has any."""
    rows = [row for row in summary.rows if row.values is not None]
    names = [
        name
        for name in summary.shown_columns()
        if any(numbers_of((row.values or {}).get(name)) for row in rows)
    ]
    groups = [names[start : start + PANELS] for start in range(0, len(names), PANELS)]
    return [_figure(summary, rows, group, number) for number, group in enumerate(groups, start=1)]


def _figure(
    summary: StudySummary, rows: Sequence[StudyRow], names: Sequence[str], number: int
) -> ReportFigure:
    height = 1.7 + 0.3 * len(rows)
    figure = Figure(figsize=(11, height))
    grid = figure.add_gridspec(
        1, max(len(names), 2), left=0.29, right=0.985, wspace=0.12, top=1 - 0.55 / height, bottom=0.9 / height
    )
    for column, name in enumerate(names):
        axes = figure.add_subplot(grid[0, column])
        _draw_limits(axes, summary, name)
        _draw_column(axes, rows, name)
        labels = [plain_text(row.run) for row in rows] if column == 0 else [""] * len(rows)
        axes.set_yticks(np.arange(len(rows)), labels, fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", which="both", length=0)
        axes.set_xlabel(plain_text(name.rpartition(".")[2] if "[" not in name else name), fontsize=10)
        axes.locator_params(axis="x", nbins=4)
        # A factor 10^n at the end of the axis would lie on its label.
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        if column == 0:
            experiment_label(axes)
    return ReportFigure(
        name=f"study_{number}",
        figure=figure,
        caption=(
            "One line per point: the number with its uncertainty where there is one; several dots where a "
            "column is a list. Shaded: what a check allows for every number of the column."
        ),
        sources=(SUMMARY,),
        description=f"Numbers of {len(rows)} points: {', '.join(names)}.",
    )


def _draw_limits(axes: Axes, summary: StudySummary, name: str) -> None:
    for check in summary.checks:
        if check.value == name and check.plain and check.min is not None and check.max is not None:
            axes.axvspan(check.min, check.max, color=GOOD_COLOUR, alpha=0.15, lw=0)
        elif check.value == name and check.plain:
            for limit in (check.min, check.max):
                if limit is not None:
                    axes.axvline(limit, color=GOOD_COLOUR, lw=1.0, ls="--")


def _draw_column(axes: Axes, rows: Sequence[StudyRow], name: str) -> None:
    ends: list[float] = []
    for place, row in enumerate(rows):
        values = row.values or {}
        found = numbers_of(values.get(name))
        errors = numbers_of(values.get(f"{name}_error"))
        size = errors if len(errors) == len(found) else None
        widths = size or [0.0] * len(found)
        ends += [one + sign * width for one, width in zip(found, widths, strict=True) for sign in (-1, 1)]
        axes.errorbar(found, [place] * len(found), xerr=size, fmt="o", color=AFTER_COLOUR)
        axes.axhline(place, color=BEFORE_COLOUR, lw=0.4, alpha=0.4)
    axes.set_xlim(*limits_around(ends, ends[0]))
