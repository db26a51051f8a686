"""Scale factors against jet pT, per flavour: value, statistical and total band, truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.report.inputs import SCALE_FACTORS, ScaleFactorRow, ScaleFactors
from selfcal.report.style import (
    INK,
    PT_LABEL,
    WARNING_COLOUR,
    ReportFigure,
    experiment_label,
    flavour_colour,
    flavour_label,
    interval,
    limits_around,
    percent,
)

Placed = tuple[float, float, ScaleFactorRow]
"""Left and right edge of a row's band on the x axis, and the row."""


def continuous_bin_labels(working_points: Sequence[float]) -> list[str]:
    """Labels of the pseudo-continuous bins by b efficiency, from failing all to passing all.

    (0.60, 0.77) gives ``["100–77", "77–60", "60–0"]``.
    """
    bounds = [1.0, *sorted(working_points, reverse=True), 0.0]
    return [f"{100 * low:.4g}–{100 * high:.4g}" for low, high in itertools.pairwise(bounds)]


def working_point_figures(scale_factors: ScaleFactors) -> list[ReportFigure]:
    """One figure per flavour and |η| bin, one panel per working point, against pT."""
    figures = []
    for flavour, abs_eta, rows in _groups(scale_factors, "working_point"):
        panels = [
            (
                f"{percent(point)} working point",
                [(*row.pt_gev, row) for row in rows if row.working_point == point],
            )
            for point in sorted({row.working_point for row in rows if row.working_point is not None})
        ]
        figures.append(
            _panel_figure(
                panels,
                flavour=flavour,
                abs_eta=abs_eta,
                name=f"scale_factors_{flavour}",
                x_label=PT_LABEL,
                tick_labels=None,
                what=f"Scale factors of {flavour_label(flavour)} against jet pT, by working point.",
            )
        )
    return figures


def continuous_figures(scale_factors: ScaleFactors) -> list[ReportFigure]:
    """One figure per flavour and |η| bin, one panel per pT bin, against the pseudo-continuous bin."""
    labels = continuous_bin_labels(scale_factors.working_points)
    figures = []
    for flavour, abs_eta, rows in _groups(scale_factors, "continuous"):
        panels: list[tuple[str, list[Placed]]] = [
            (
                rf"{interval(pt_gev)} GeV",
                [
                    (row.bin + 0.1, row.bin + 0.9, row)
                    for row in rows
                    if row.pt_gev == pt_gev and row.bin is not None
                ],
            )
            for pt_gev in sorted({row.pt_gev for row in rows})
        ]
        figures.append(
            _panel_figure(
                panels,
                flavour=flavour,
                abs_eta=abs_eta,
                name=f"scale_factors_continuous_{flavour}",
                x_label="Bin of b efficiency [%]",
                tick_labels=labels,
                what=(
                    f"Continuous scale factors of {flavour_label(flavour)} in pseudo-continuous bins of the "
                    "discriminant (named by the working points that bound them), one panel per pT bin."
                ),
            )
        )
    return figures


def _groups(
    scale_factors: ScaleFactors, kind: str
) -> list[tuple[str, tuple[float, float], list[ScaleFactorRow]]]:
    keys = {(row.flavour, row.abs_eta) for row in scale_factors.rows if row.kind == kind}
    order = {flavour: index for index, flavour in enumerate(scale_factors.flavours)}
    return [
        (
            flavour,
            abs_eta,
            [
                row
                for row in scale_factors.rows
                if (row.flavour, row.abs_eta, row.kind) == (flavour, abs_eta, kind)
            ],
        )
        for flavour, abs_eta in sorted(keys, key=lambda key: (order.get(key[0], len(order)), key))
    ]


def _panel_figure(
    panels: Sequence[tuple[str, Sequence[Placed]]],
    *,
    flavour: str,
    abs_eta: tuple[float, float],
    name: str,
    x_label: str,
    tick_labels: list[str] | None,
    what: str,
) -> ReportFigure:
    figure = Figure(figsize=(11, 3.7))
    grid = figure.add_gridspec(1, len(panels), wspace=0.05, left=0.065, right=0.985, top=0.9, bottom=0.235)
    first: Axes | None = None
    for index, (title, placed) in enumerate(panels):
        axes = figure.add_subplot(grid[0, index], sharey=first)
        first = first or axes
        axes.axhline(1, color=INK, linewidth=0.8, ls=":")
        axes.text(0.05, 0.95, title, transform=axes.transAxes, va="top", weight="bold", fontsize=10.5)
        if tick_labels is not None:
            axes.set_xlim(0, len(tick_labels))
            axes.set_xticks([number + 0.5 for number in range(len(tick_labels))], tick_labels, rotation=35)
            axes.tick_params(axis="x", which="both", length=0, labelsize=9)
        elif placed:
            pt_axis(axes, sorted({edge for left, right, _ in placed for edge in (left, right)}))
        for left, right, row in placed:
            _draw_row(axes, left, right, row)
        if index:
            axes.tick_params(labelleft=False)
    assert first is not None, "a group of rows has at least one panel"
    first.set_ylabel("Scale factor")
    figure.axes[-1].set_xlabel(x_label)
    first.set_ylim(_limits([row for _, placed in panels for _, _, row in placed]))
    experiment_label(first)
    eta = f"{abs_eta[0]:g} ≤ |η| < {abs_eta[1]:g}"
    figure.axes[-1].set_title(f"{flavour_label(flavour)}, {eta}", loc="right")
    _legend(figure, flavour, [row for _, placed in panels for _, _, row in placed])
    eta_name = "" if abs_eta[0] == 0 else f"_eta_{abs_eta[0]:g}"
    return ReportFigure(
        name=f"{name}{eta_name}",
        figure=figure,
        caption=(
            f"{what} Inner band: statistical, outer band: total uncertainty; open diamonds: truth, where "
            "known. "
            "Hatched: extrapolated, not measured. A cross marks an unmeasured bin."
        ),
        sources=(SCALE_FACTORS,),
        description=f"{what} |eta| {interval(abs_eta)}",
    )


def pt_axis(axes: Axes, edges: list[float]) -> None:
    """A logarithmic axis with its ticks at the bin edges."""
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(edges, [f"{edge:g}" for edge in edges])
    axes.set_xticks([], minor=True)
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def _draw_row(axes: Axes, left: float, right: float, row: ScaleFactorRow) -> None:
    colour, width = flavour_colour(row.flavour), right - left
    middle, beside = _places(axes, left, right)
    if row.status == "unmeasured" or row.value is None or row.total is None:
        axes.plot(middle, 1.0, marker="x", color=WARNING_COLOUR, markersize=9, mew=2, ls="none")
    else:
        for spread, alpha in ((row.total, 0.3), (row.stat, 0.55)):
            if spread is not None:
                low = row.value - spread
                axes.bar(left, 2 * spread, width, low, align="edge", color=colour, alpha=alpha, linewidth=0)
        if row.status != "measured":
            axes.bar(
                left,
                2 * row.total,
                width,
                row.value - row.total,
                align="edge",
                color="none",
                hatch="///",
                linewidth=0,
            )
        style = "-" if row.status == "measured" else "--"
        axes.hlines(row.value, left, right, color=colour, ls=style, linewidth=2)
        axes.plot(middle, row.value, "o", color=INK, markersize=4)
    if row.truth is not None:
        axes.errorbar(
            beside,
            row.truth.value,
            yerr=row.truth.error or 0.0,
            fmt="D",
            color=INK,
            mfc="none",
            markersize=5.5,
            elinewidth=1,
        )


def _places(axes: Axes, left: float, right: float) -> tuple[float, float]:
    """Middle of a bin as it is seen on the axis, and a place a little to its right."""
    if axes.get_xscale() == "log":
        return (left * right) ** 0.5, left * (right / left) ** 0.68
    return 0.5 * (left + right), left + 0.68 * (right - left)


def _limits(rows: Sequence[ScaleFactorRow]) -> tuple[float, float]:
    """Limits that hold values and truths, and bands unless they are so wide that nothing else is seen."""
    centres = [row.value for row in rows if row.value is not None] + [
        row.truth.value for row in rows if row.truth
    ]
    spread = max((abs(value - 1) for value in centres), default=0.0)
    reach = 2.5 * spread + 0.05 if spread > 1e-6 else 1.0  # blinded: the bands are all there is to see
    bounds = [
        min(max(row.value + sign * row.total, 1 - reach), 1 + reach)
        for row in rows
        if row.value is not None and row.total is not None
        for sign in (-1.0, 1.0)
    ]
    low, high = limits_around([*centres, *bounds], 1.0)
    return low, high + 0.12 * (high - low)


def _legend(figure: Figure, flavour: str, rows: Sequence[ScaleFactorRow]) -> None:
    axes = figure.add_axes((0.065, 0.0, 0.75, 0.1))
    axes.axis("off")
    colour = flavour_colour(flavour)
    handles: list[Any] = [
        axes.plot([], [], "o-", color=colour, mfc=INK, mec=INK, markersize=4)[0],
        axes.bar([0], [0], color=colour, alpha=0.7),
        axes.bar([0], [0], color=colour, alpha=0.3),
    ]
    labels = ["scale factor", "statistical", "total"]
    if any(row.truth for row in rows):
        handles.append(axes.plot([], [], "D", color=INK, mfc="none")[0])
        labels.append("truth")
    assumed = [name for name in ("extrapolated", "external") if any(row.status == name for row in rows)]
    if assumed:
        handles.append(axes.bar([0], [0], color="none", hatch="///", linewidth=0))
        labels.append(", ".join(assumed))
    if any(row.status == "unmeasured" for row in rows):
        handles.append(axes.plot([], [], "x", color=WARNING_COLOUR, mew=2, markersize=9)[0])
        labels.append("unmeasured")
    axes.legend(handles, labels, loc="lower left", ncols=len(labels), borderaxespad=0)
