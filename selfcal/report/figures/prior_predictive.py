"""Data over simulation of published histograms beside what the priors of the detector predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selfcal.report.style import AFTER_COLOUR, BEFORE_COLOUR, report_style
from selfcal.run.atomic import atomic_path
from selfcal.sbi.prior_predictive import PriorPredictive


def prior_predictive_figure(found: Sequence[PriorPredictive]) -> Figure:
    """Core and tail of every category: data as points, 68 and 95 % of the prior's draws as bars."""
    with report_style():
        figure = Figure(figsize=(9.0, 5.6))
        panels = figure.subplots(2, 1, sharex=True)
        places = np.arange(len(found))
        for axes, name, label in (
            (panels[0], "core", "core (68.3 % quantile)\ndata / simulation"),
            (panels[1], "tail", "fraction beyond 3σ\ndata / simulation"),
        ):
            draws = [getattr(one, f"{name}_draws") for one in found]
            for low, high, alpha, share in ((2.5, 97.5, 0.16, "95 %"), (16.0, 84.0, 0.30, "68 %")):
                ends = [np.percentile(part, (low, high)) for part in draws]
                bottom = np.array([end[0] for end in ends])
                height = np.array([end[1] for end in ends]) - bottom
                axes.bar(
                    places, height, 0.7, bottom, color=BEFORE_COLOUR, alpha=alpha, label=f"prior, {share}"
                )
            values = [getattr(one, name) for one in found]
            axes.plot(places, values, "o", color=AFTER_COLOUR, label="data")
            axes.axhline(1.0, color=BEFORE_COLOUR, lw=0.8)
            axes.set_ylabel(label)
        panels[0].legend(loc="upper right", ncols=3)
        panels[1].set_xticks(places, [one.name for one in found], rotation=30, ha="right")
        figure.align_ylabels(panels)
        figure.tight_layout()
    return figure


def draw_prior_predictive(found: Sequence[PriorPredictive], path: Path) -> None:
    """Write :func:`prior_predictive_figure` in the format that the name of ``path`` ends with."""
    figure = prior_predictive_figure(found)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "pdf")
