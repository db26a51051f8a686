"""Core and tails of data relative to simulation, per histogram, beside what the priors allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from selfcal.report.style import AFTER_COLOUR, BEFORE_COLOUR, report_style
from selfcal.run.atomic import atomic_path
from selfcal.sbi.histogram_inference import PARAMETER_NAMES, PRIOR_WIDTHS, HistogramInference

LABELS = {
    "core_scale": "core scale",
    "tail_scale": "tail scale",
    "far_tail_scale": "far-tail scale",
}


def resolution_figure(found: Sequence[HistogramInference]) -> Figure:
    """One panel per parameter: posterior means with σ, the band of the prior; last the ratio beyond 3σ."""
    with report_style():
        figure = Figure(figsize=(9.0, 8.4))
        panels = figure.subplots(len(PARAMETER_NAMES) + 1, 1, sharex=True)
        places = np.arange(len(found))
        for i, (name, width) in enumerate(zip(PARAMETER_NAMES, PRIOR_WIDTHS, strict=True)):
            panels[i].axhspan(1 - width, 1 + width, color=BEFORE_COLOUR, alpha=0.18, lw=0, label="prior, ±1σ")
            means, sigmas = (np.array([part[i] for part in parts]) for parts in _columns(found))
            panels[i].errorbar(places, means, sigmas, fmt="o", color=AFTER_COLOUR, label="posterior")
            panels[i].set_ylabel(LABELS[name])
        panels[0].legend(loc="upper right", ncols=2)
        ratio, error = ([getattr(one, n) for one in found] for n in ("tail_ratio", "tail_ratio_error"))
        panels[-1].errorbar(places, ratio, error, fmt="s", color=AFTER_COLOUR)
        panels[-1].set_ylabel("beyond 3:\ndata / sim.")
        panels[-1].set_xticks(places, [one.name for one in found], rotation=30, ha="right")
        for axes in panels:
            axes.axhline(1.0, color=BEFORE_COLOUR, lw=0.8)
        figure.align_ylabels(panels)
        figure.tight_layout()
    return figure


def _columns(found: Sequence[HistogramInference]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [one.mean for one in found], [one.sigma for one in found]


def draw_resolution(found: Sequence[HistogramInference], path: Path) -> None:
    """Write :func:`resolution_figure` in the format that the name of ``path`` ends with."""
    figure = resolution_figure(found)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "pdf")
