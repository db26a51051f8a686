"""Calibration maps side by side: efficiency in data over calibrated simulation, per flavour."""

from __future__ import annotations

from math import hypot

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.evaluation import Evaluation, EvaluationPlace
from selfcal.report.inputs import EVALUATION
from selfcal.report.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    INK,
    ReportFigure,
    experiment_label,
    flavour_label,
    limits_around,
    percent,
    plain_text,
)


def evaluation_figure(evaluation: Evaluation) -> ReportFigure:
    """One panel per flavour, one line per candidate; control regions open, held-out regions filled.

    Raises
    ------
    DataError
        If no candidate was compared anywhere.
    """
    entries = evaluation.summary
    places = [place for entry in entries for place in entry.places]
    if not places:
        raise DataError("no candidate was compared", where=EVALUATION)
    flavours = list(dict.fromkeys(place.flavour for place in places))
    height = 1.5 + 0.3 * len(entries)
    figure = Figure(figsize=(11, height))
    grid = figure.add_gridspec(
        1, len(flavours), left=0.2, right=0.985, wspace=0.1, top=1 - 0.5 / height, bottom=0.85 / height
    )
    for column, flavour in enumerate(flavours):
        axes = figure.add_subplot(grid[0, column])
        _draw_panel(axes, [[p for p in entry.places if p.flavour == flavour] for entry in entries])
        axes.set_title(flavour_label(flavour), loc="right")
        names = [plain_text(entry.name.replace("_", " ")) for entry in entries] if column == 0 else []
        axes.set_yticks(np.arange(len(entries)), names or [""] * len(entries))
        axes.tick_params(axis="y", which="both", length=0)
        if column == 0:
            experiment_label(axes)
            for label, entry in zip(axes.get_yticklabels(), entries, strict=True):
                label.set_fontweight("bold" if entry.in_use else "normal")
    figure.supxlabel("Efficiency in data / in calibrated simulation", fontsize=12, x=0.985, ha="right")
    _legend(figure, height)
    point = percent(places[0].shown.working_point)
    return ReportFigure(
        name="evaluation",
        figure=figure,
        caption=(
            "Families of calibration maps (the one in use in bold) and references that were told the true "
            f"flavours of the control regions, at the {point} working point. Error bars: bootstrap of data "
            "and simulation, with the spread of the map's replicas where there are any."
        ),
        sources=(EVALUATION,),
        description=f"{len(entries)} calibrations compared for {len(flavours)} flavours",
    )


def _draw_panel(axes: Axes, lines: list[list[EvaluationPlace]]) -> None:
    shown: list[float] = []
    for line, places in enumerate(lines):
        for place in places:
            point, held_out = place.shown, place.held_out
            error = hypot(point.error or 0.0, point.map_uncertainty or 0.0)
            axes.errorbar(
                point.ratio,
                line + (0.14 if held_out else -0.14),
                xerr=error,
                fmt="o",
                mfc=None if held_out else "none",
                color=AFTER_COLOUR if held_out else BEFORE_COLOUR,
            )
            shown += [point.ratio - min(error, 0.5), point.ratio + min(error, 0.5)]
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(*limits_around(shown, 1.0))


def _legend(figure: Figure, height: float) -> None:
    axes = figure.add_axes((0.0, 0.0, 0.5, 0.3 / height))
    axes.axis("off")
    handles = [
        axes.errorbar([], [], xerr=[], fmt="o", mfc="none", color=BEFORE_COLOUR),
        axes.errorbar([], [], xerr=[], fmt="o", color=AFTER_COLOUR),
    ]
    axes.legend(handles, ["the flavour's control region", "held out"], loc="lower left", ncols=2)
