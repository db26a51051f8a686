"""Pulls: nuisance parameters of the fit, scale factors against truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.fit_inputs import Fit
from selfcal.report.inputs import AGAINST_TRUTH, FIT, SCALE_FACTORS, AgainstTruth, ScaleFactors
from selfcal.report.style import (
    BEFORE_COLOUR,
    GOOD_COLOUR,
    INK,
    WARNING_COLOUR,
    ReportFigure,
    experiment_label,
    flavour_colour,
    flavour_label,
    plain_text,
)

NUISANCES_SHOWN = 45
NUISANCES_PER_COLUMN = 15


def nuisance_figure(fit: Fit) -> ReportFigure:
    """Post-fit value and uncertainty of each constrained parameter, the largest pulls first.

    Raises
    ------
    DataError
        If the fit has no pulls.
    """
    if not fit.pulls:
        raise DataError("the fit lists no pulls", where=FIT)
    shown = sorted(fit.pulls, key=lambda pull: -abs(pull.value))[:NUISANCES_SHOWN]
    columns = -(-len(shown) // NUISANCES_PER_COLUMN)
    per_column = -(-len(shown) // columns)
    height = 1.5 + 0.27 * per_column
    figure = Figure(figsize=(11, height))
    label_room = 0.2
    width = (0.985 - label_room * columns) / columns
    reach = max(2.6, 1.15 * max(abs(pull.value) + pull.uncertainty for pull in shown))
    for column in range(columns):
        part = shown[column * per_column : (column + 1) * per_column]
        left = label_room + column * (label_room + width)
        axes = figure.add_axes((left, 0.75 / height, width, 1 - 1.2 / height))
        sigma_bands(axes, vertical=True)
        places = np.arange(len(part))[::-1]
        axes.errorbar(
            [pull.value for pull in part], places, xerr=[pull.uncertainty for pull in part], fmt="o",
            color=INK, elinewidth=1.2, markersize=4,
        )  # fmt: skip
        axes.set_yticks(places, [plain_text(pull.name) for pull in part])
        axes.tick_params(axis="y", which="both", length=0, labelsize=8.5)
        axes.set_ylim(len(part) - per_column - 0.7, len(part) - 0.3)
        axes.set_xlim(-reach, reach)
        if column == columns - 1:
            axes.set_xlabel("Post-fit value, in units of the prior's σ")
        if column == 0:
            experiment_label(axes)
    return ReportFigure(
        name="pulls_nuisances",
        figure=figure,
        caption=(
            f"Post-fit values of the {len(shown)} nuisance parameters with the largest pulls, of "
            f"{len(fit.pulls)} in the fit. Bands: ±1 and ±2 standard deviations of the prior."
        ),
        sources=(FIT,),
        description=f"Pulls of {len(shown)} nuisance parameters",
    )


def truth_pull_figure(against_truth: AgainstTruth, scale_factors: ScaleFactors) -> ReportFigure:
    """(scale factor − truth)/σ of every compared row, by flavour, and their distribution.

    Raises
    ------
    DataError
        If there is no pull, or one refers to a row that does not exist.
    """
    pulls = [pull for pull in against_truth.pulls if 0 <= pull.row < len(scale_factors.rows)]
    if not pulls or len(pulls) != len(against_truth.pulls):
        raise DataError(
            "no pulls, or pulls of rows that do not exist", where=f"{AGAINST_TRUTH}, field 'pulls'"
        )
    figure = Figure(figsize=(11, 4.2))
    grid = figure.add_gridspec(
        1, 2, width_ratios=(2.4, 1), wspace=0.12, left=0.065, right=0.985, top=0.9, bottom=0.14
    )
    axes, histogram = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    sigma_bands(axes, vertical=False)
    start = 0
    for flavour in dict.fromkeys(scale_factors.rows[pull.row].flavour for pull in pulls):
        values = [pull.pull for pull in pulls if scale_factors.rows[pull.row].flavour == flavour]
        places = np.arange(start, start + len(values))
        axes.plot(
            places, values, "o", color=flavour_colour(flavour), label=flavour_label(flavour), markersize=6
        )
        start += len(values)
        axes.axvline(start - 0.5, color=INK, linewidth=0.5, ls=":")
    reach = max(3.6, 1.2 * max(abs(pull.pull) for pull in pulls))
    axes.set_xlim(-0.5, start - 0.5)
    axes.set_ylim(-reach, reach * 1.25)
    axes.set_xlabel("Compared scale factor (order of the table)")
    axes.set_ylabel("(scale factor − truth) / σ")
    axes.legend(loc="upper right", ncols=4)
    experiment_label(axes)
    _pull_histogram(histogram, [pull.pull for pull in pulls], against_truth, reach)
    return ReportFigure(
        name="pulls_truth",
        figure=figure,
        caption=(
            f"Pulls of {len(pulls)} scale factors against the truth, and their distribution beside a unit "
            "Gaussian; "
            "grey outline: the uncalibrated simulation (scale factor one) with the same uncertainties. "
            "Pulls of "
            "neighbouring rows are correlated; the χ² at the top takes that into account."
        ),
        sources=(AGAINST_TRUTH, SCALE_FACTORS),
        description=f"Pulls of {len(pulls)} scale factors against truth",
    )


def _pull_histogram(axes: Axes, pulls: Sequence[float], against_truth: AgainstTruth, reach: float) -> None:
    edges = np.linspace(-reach, reach, 19)
    counts, _ = np.histogram(pulls, edges)
    axes.stairs(counts, edges, fill=True, color=GOOD_COLOUR, alpha=0.6, label="calibrated")
    if against_truth.uncalibrated and against_truth.uncalibrated.pulls:
        uncalibrated = np.clip([pull.pull for pull in against_truth.uncalibrated.pulls], edges[0], edges[-1])
        axes.stairs(
            np.histogram(uncalibrated, edges)[0],
            edges,
            color=BEFORE_COLOUR,
            label="uncalibrated",
            linewidth=1.5,
        )
    line = np.linspace(-reach, reach, 121)
    axes.plot(
        line,
        np.exp(-0.5 * line**2) / np.sqrt(2 * np.pi) * len(pulls) * (edges[1] - edges[0]),
        color=INK,
        label="unit Gaussian",
        linewidth=1.2,
    )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 1.45 * max(axes.get_ylim()[1], 1.0))
    axes.set_xlabel("Pull")
    axes.set_ylabel("Rows / bin")
    axes.legend(loc="upper right")


def sigma_bands(axes: Axes, *, vertical: bool) -> None:
    """One and two standard deviations around zero, along x if ``vertical``."""
    span = axes.axvspan if vertical else axes.axhspan
    line = axes.axvline if vertical else axes.axhline
    span(-2, 2, color=WARNING_COLOUR, alpha=0.12, linewidth=0)
    span(-1, 1, color=GOOD_COLOUR, alpha=0.28, linewidth=0)
    line(0, color=INK, linewidth=0.8)
