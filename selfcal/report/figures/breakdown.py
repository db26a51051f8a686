"""The uncertainty of scale factors by group: the groups add up in quadrature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.inputs import SCALE_FACTORS, ScaleFactorRow, ScaleFactors
from selfcal.report.style import (
    INK,
    ReportFigure,
    experiment_label,
    flavour_label,
    interval,
    percent,
)

COLOURS = (
    "#5b6672",
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#92dadd",
)
WORKING_POINT = 0.77


def variance_shares(rows: Sequence[ScaleFactorRow]) -> dict[str, np.ndarray]:
    """Of every group the part of the variance of each row; groups that are nowhere 0.1 % are left out."""
    names = ["statistics", *dict.fromkeys(name for row in rows for name in row.syst)]
    total = np.array([row.total or np.nan for row in rows])
    shares = {}
    for name in names:
        sigma = np.array([(row.stat if name == "statistics" else row.syst.get(name)) or 0.0 for row in rows])
        share = (sigma / total) ** 2
        if share.max(initial=0.0) > 1e-3:
            shares[name] = share
    return shares


def breakdown_figure(scale_factors: ScaleFactors) -> ReportFigure:
    """Parts of the variance at the working point nearest 77 %, per flavour, pT and |η| bin.

    Raises
    ------
    DataError
        If no scale factor has an uncertainty by group.
    """
    points = scale_factors.working_points
    point = min(points, key=lambda value: abs(value - WORKING_POINT)) if points else None
    rows = [
        row
        for flavour in scale_factors.flavours
        for row in scale_factors.rows
        if row.flavour == flavour and row.working_point == point and row.total and row.syst and row.value
    ]
    if point is None or not rows:
        raise DataError("no uncertainty by group", where=SCALE_FACTORS)
    shares = variance_shares(rows)
    height = 1.5 + 0.3 * len(rows)
    figure = Figure(figsize=(11, height))
    axes = figure.add_axes((0.18, 0.55 / height, 0.52, 1 - 1.0 / height))
    places, left = np.arange(len(rows))[::-1].astype(float), np.zeros(len(rows))
    for number, (name, share) in enumerate(shares.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(places, 100 * share, 0.72, 100 * left, color=colour, label=name.replace("_", " "))
        left = left + share
    several = len({row.abs_eta for row in rows}) > 1
    axes.set_yticks(places, [_label(row, several=several) for row in rows])
    axes.tick_params(axis="y", which="both", length=0, labelsize=9)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("Part of the variance [%]")
    for place, row in zip(places, rows, strict=True):
        words = f"{row.value:.3f} ± {row.total:.3f}" + ("" if row.status == "measured" else f"  {row.status}")
        axes.text(101.5, place, words, va="center", fontsize=9, color=INK)
    experiment_label(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.83, 0.5))
    return ReportFigure(
        name="breakdown",
        figure=figure,
        caption=(
            f"Uncertainty of the scale factors at the {percent(point)} working point by group. The groups "
            "add up in quadrature to the total, given on the right; the table of the working points has the "
            "numbers of all."
        ),
        sources=(SCALE_FACTORS,),
        description=f"Parts of the variance by group at {percent(point)}",
    )


def _label(row: ScaleFactorRow, *, several: bool) -> str:
    eta = f", |η| {interval(row.abs_eta)}" if several else ""
    return f"{flavour_label(row.flavour)}, {interval(row.pt_gev)} GeV{eta}"
