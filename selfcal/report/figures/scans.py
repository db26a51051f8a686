"""Likelihood scans of scale factors."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import PchipInterpolator

from selfcal.errors import DataError
from selfcal.report.fit_inputs import ProfileScan, Scans
from selfcal.report.inputs import SCALE_FACTORS, SCANS, ScaleFactors
from selfcal.report.style import (
    BEFORE_COLOUR,
    INK,
    ReportFigure,
    experiment_label,
    flavour_colour,
    flavour_label,
    interval,
    percent,
)

LINES = ("-", "--", ":", "-.")
RISE_MAX = 9.5
"""Top of the axis of −2 Δ ln L: three standard deviations and a margin."""


def scan_figures(scans: Scans, scale_factors: ScaleFactors) -> list[ReportFigure]:
    """One figure per working point and |η| bin, one panel per flavour, one curve per pT bin.

    Raises
    ------
    DataError
        If no scan was finished, or one is of a row that does not exist.
    """
    drawn = [one for one in scans.scans if one.error is None and one.best is not None]
    if not drawn or any(not 0 <= one.row < len(scale_factors.rows) for one in drawn):
        raise DataError("no finished scan, or scans of rows that do not exist", where=SCANS)
    rows = scale_factors.rows
    groups = sorted({(rows[one.row].working_point or 0.0, rows[one.row].abs_eta) for one in drawn})
    return [
        _figure(
            [
                one
                for one in drawn
                if (rows[one.row].working_point, rows[one.row].abs_eta) == (point, abs_eta)
            ],
            scale_factors,
            point,
            abs_eta,
        )
        for point, abs_eta in groups
    ]


def rise_curve(scan: ProfileScan) -> tuple[np.ndarray, np.ndarray]:
    """Twice the rise of −ln L on a fine grid: its signed root is interpolated, a line for a parabola."""
    points, rise = np.array(scan.points), np.maximum(np.array(scan.rise), 0.0)
    root = np.sign(points - (scan.best or 0.0)) * np.sqrt(rise)
    fine = np.linspace(points[0], points[-1], 181)
    return fine, np.asarray(PchipInterpolator(points, root)(fine)) ** 2


def _figure(
    drawn: list[ProfileScan], scale_factors: ScaleFactors, point: float, abs_eta: tuple[float, float]
) -> ReportFigure:
    rows = scale_factors.rows
    flavours = [
        name for name in scale_factors.flavours if any(rows[one.row].flavour == name for one in drawn)
    ]
    figure = Figure(figsize=(11, 3.9))
    grid = figure.add_gridspec(1, len(flavours), left=0.06, right=0.985, top=0.9, bottom=0.15, wspace=0.08)
    for place, flavour in enumerate(flavours):
        axes = figure.add_subplot(grid[place])
        own = [one for one in drawn if rows[one.row].flavour == flavour]
        _panel(axes, own, scale_factors)
        axes.set_title(flavour_label(flavour), loc="right")
        if place:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("−2 Δ ln L")
            experiment_label(axes)
    figure.axes[-1].set_xlabel(f"Scale factor at the {percent(point)} working point")
    eta = "" if abs_eta[0] == 0 else f"_eta_{abs_eta[0]:g}"
    return ReportFigure(
        name=f"scan_{100 * point:.4g}{eta}",
        figure=figure,
        caption=(
            f"Profile likelihood of the scale factors at the {percent(point)} working point, |η| "
            f"{interval(abs_eta)}, per pT bin. Grey: the parabola of the quoted σ without the part that "
            "comes from the simulation's own efficiency, which no data constrain. Dashed lines: one and two "
            "standard deviations."
        ),
        sources=(SCANS, SCALE_FACTORS),
        description=f"Likelihood scans at {percent(point)}, |eta| {interval(abs_eta)}",
    )


def _panel(axes: Axes, own: list[ProfileScan], scale_factors: ScaleFactors) -> None:
    for number, one in enumerate(own):
        line = LINES[number % len(LINES)]
        points, rise = rise_curve(one)
        colour = flavour_colour(scale_factors.rows[one.row].flavour)
        label = f"{interval(scale_factors.rows[one.row].pt_gev)} GeV"
        axes.plot(
            points, ((points - (one.best or 0.0)) / (one.sigma or 1.0)) ** 2, color=BEFORE_COLOUR, lw=0.8
        )
        axes.plot(points, rise, ls=line, color=colour, label=label)
        axes.plot(one.points, one.rise, "o", color=colour, markersize=3)
    for level in (1.0, 4.0):
        axes.axhline(level, color=INK, linewidth=0.7, ls=(0, (4, 4)))
    axes.set_ylim(0, RISE_MAX)
    axes.legend(loc="upper center", ncols=1)
