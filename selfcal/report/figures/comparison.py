"""Scale factors of two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.report.figures.scale_factors import pt_axis
from selfcal.report.inputs import SCALE_FACTORS, ScaleFactorRow
from selfcal.report.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    INK,
    PT_LABEL,
    ReportFigure,
    experiment_label,
    flavour_label,
    interval,
    limits_around,
    percent,
)

Pair = tuple[ScaleFactorRow, ScaleFactorRow]
"""The same scale factor of the first and of the second run."""

_COLOURS = (BEFORE_COLOUR, AFTER_COLOUR)


def comparison_figures(pairs: Sequence[Pair], names: tuple[str, str]) -> list[ReportFigure]:
    """One figure per flavour and |η| bin, one panel per working point, against pT."""
    measured = [pair for pair in pairs if pair[0].kind == "working_point" and _known(pair)]
    groups = list(dict.fromkeys((one.flavour, one.abs_eta) for one, _ in measured))
    return [
        _figure(
            [pair for pair in measured if (pair[0].flavour, pair[0].abs_eta) == group], *group, names=names
        )
        for group in groups
    ]


def _known(pair: Pair) -> bool:
    return all(row.value is not None and row.total is not None for row in pair)


def _figure(
    pairs: Sequence[Pair], flavour: str, abs_eta: tuple[float, float], *, names: tuple[str, str]
) -> ReportFigure:
    points = sorted({one.working_point for one, _ in pairs if one.working_point is not None})
    figure = Figure(figsize=(11, 3.7))
    grid = figure.add_gridspec(1, len(points), wspace=0.05, left=0.065, right=0.985, top=0.9, bottom=0.235)
    first: Axes | None = None
    for index, point in enumerate(points):
        axes = figure.add_subplot(grid[0, index], sharey=first)
        first = first or axes
        axes.axhline(1, color=INK, linewidth=0.8, ls=":")
        title = f"{percent(point)} working point"
        axes.text(0.05, 0.95, title, transform=axes.transAxes, va="top", weight="bold", fontsize=10.5)
        chosen = [pair for pair in pairs if pair[0].working_point == point]
        _draw(axes, chosen, names)
        axes.tick_params(labelleft=index == 0)
    assert first is not None, "a group of pairs has at least one working point"
    bounds = [
        row.value + sign * row.total
        for pair in pairs
        for row in pair
        if row.value is not None and row.total is not None
        for sign in (-1.0, 1.0)
    ]
    low, high = limits_around(bounds, 1.0)
    first.set_ylim(low, high + 0.2 * (high - low))
    first.set_ylabel("Scale factor")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.06, 0.0), ncols=2, frameon=False)
    figure.axes[-1].set_xlabel(PT_LABEL)
    experiment_label(first)
    figure.axes[-1].set_title(f"{flavour_label(flavour)}, {interval(abs_eta)} in |η|", loc="right")
    suffix = "" if abs_eta[0] == 0 else f"_eta_{abs_eta[0]:g}"
    what = f"Scale factors of {flavour_label(flavour)} in both runs, with their total uncertainties."
    return ReportFigure(
        name=f"comparison_{flavour}{suffix}",
        figure=figure,
        caption=what,
        sources=(f"A/{SCALE_FACTORS}", f"B/{SCALE_FACTORS}"),
        description=what,
    )


def _draw(axes: Axes, pairs: Sequence[Pair], names: tuple[str, str]) -> None:
    pt_axis(axes, sorted({edge for one, _ in pairs for edge in one.pt_gev}))
    for side, (name, colour, marker, place) in enumerate(
        zip(names, _COLOURS, ("o", "s"), (0.4, 0.6), strict=True)
    ):
        rows = [pair[side] for pair in pairs]
        axes.errorbar(
            [row.pt_gev[0] * (row.pt_gev[1] / row.pt_gev[0]) ** place for row in rows],
            [row.value or 0.0 for row in rows],
            yerr=[row.total or 0.0 for row in rows],
            fmt=marker,
            color=colour,
            label=name,
        )
