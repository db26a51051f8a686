"""Corner plot of the detector's posterior."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from selfcal.errors import DataError
from selfcal.report.inputs import POSTERIOR, Posterior
from selfcal.report.style import AFTER_COLOUR, BEFORE_COLOUR, INK, ReportFigure, experiment_label

SHOWN_MAX = 8
"""More parameters than that make labels too small to read; the table has all of them."""
REACH = 3.5
"""Half width of an axis, in posterior standard deviations."""


def shown_parameters(posterior: Posterior) -> list[int]:
    """Indices of the parameters that the data determine best, in the order of the file."""
    order = np.argsort([-row.contraction for row in posterior.parameters], kind="stable")
    return sorted(int(i) for i in order[:SHOWN_MAX])


def corner_figure(posterior: Posterior) -> ReportFigure:
    """Regions of one and two σ of pairs of parameters, on the diagonal densities and priors.

    Raises
    ------
    DataError
        If the covariance does not belong to the parameters.
    """
    size = len(posterior.parameters)
    covariance = np.array(posterior.covariance)
    if covariance.shape != (size, size):
        raise DataError(f"covariance of shape {covariance.shape} for {size} parameters", where=POSTERIOR)
    chosen = shown_parameters(posterior)
    n = len(chosen)
    figure = Figure(figsize=(11.0, 10.4))
    panels = figure.subplots(n, n, squeeze=False)
    figure.subplots_adjust(left=0.11, right=0.98, top=0.95, bottom=0.11, wspace=0.08, hspace=0.08)
    for row, i in enumerate(chosen):
        for place, j in enumerate(chosen):
            axes = panels[row][place]
            if place > row:
                axes.set_visible(False)
                continue
            _limits(axes, posterior, j, i, diagonal=place == row)
            if place == row:
                _density(axes, posterior, i)
            else:
                _ellipses(axes, posterior, covariance, j, i)
            _labels(axes, posterior, (row, place, n), (j, i))
    experiment_label(panels[0][0])
    return ReportFigure(
        name="posterior",
        figure=figure,
        caption=f"Posterior of the {n} detector parameters that the data determine best: regions of one "
        "and two σ, and on the diagonal the density (blue) with the prior (grey). Lines: the simulation as "
        "it is.",
        sources=(POSTERIOR,),
        description=f"Corner plot of {n} detector parameters",
    )


def _range(posterior: Posterior, i: int) -> tuple[float, float]:
    row = posterior.parameters[i]
    low, high = row.mean - REACH * row.uncertainty, row.mean + REACH * row.uncertainty
    # The nominal value stays in view unless that would squeeze the posterior to a line.
    if abs(row.nominal - row.mean) < 4 * REACH * row.uncertainty:
        room = 0.5 * row.uncertainty
        low, high = min(low, row.nominal - room), max(high, row.nominal + room)
    return low, high


def _limits(axes: Axes, posterior: Posterior, j: int, i: int, *, diagonal: bool) -> None:
    axes.set_xlim(*_range(posterior, j))
    if not diagonal:
        axes.set_ylim(*_range(posterior, i))


def _density(axes: Axes, posterior: Posterior, i: int) -> None:
    row = posterior.parameters[i]
    x = np.linspace(*axes.get_xlim(), 200)

    def gauss(centre: float, width: float) -> NDArray[np.float64]:
        return np.asarray(np.exp(-0.5 * ((x - centre) / width) ** 2))

    axes.fill_between(x, gauss(row.mean, row.uncertainty), color=AFTER_COLOUR, alpha=0.5, linewidth=0)
    axes.plot(x, gauss(row.nominal, row.prior_width), color=BEFORE_COLOUR, linestyle="--")
    axes.axvline(row.nominal, color=INK, linewidth=0.8)
    axes.set_ylim(0, 1.1)


def _ellipses(axes: Axes, posterior: Posterior, covariance: NDArray[np.float64], j: int, i: int) -> None:
    block = covariance[np.ix_([j, i], [j, i])]
    # In units of the standard deviations: the angle would mean nothing with two different units.
    sigma = np.sqrt(np.diag(block))
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    root = np.linalg.cholesky(block / np.outer(sigma, sigma) + 1e-9 * np.eye(2))
    centre = [posterior.parameters[k].mean for k in (j, i)]
    for reach, alpha in ((2, 0.25), (1, 0.55)):
        x, y = (reach * (root @ circle)) * sigma[:, None] + np.array(centre)[:, None]
        axes.fill(x, y, color=AFTER_COLOUR, alpha=alpha, linewidth=0)
    axes.axvline(posterior.parameters[j].nominal, color=INK, linewidth=0.8)
    axes.axhline(posterior.parameters[i].nominal, color=INK, linewidth=0.8)


def _labels(axes: Axes, posterior: Posterior, place: tuple[int, int, int], names: tuple[int, int]) -> None:
    row, column, n = place
    axes.locator_params(nbins=3)
    # A power of ten beside an axis would lie on its neighbour.
    axes.ticklabel_format(style="plain", useOffset=False)
    axes.tick_params(labelsize=7.5, length=3)
    if row == n - 1:
        axes.set_xlabel(_label(posterior, names[0]), fontsize=8.5, loc="center")
        axes.tick_params(axis="x", rotation=40)
    else:
        axes.set_xticklabels([])
    if column == 0 and row > 0:
        axes.set_ylabel(_label(posterior, names[1]), fontsize=8.5, loc="center")
    else:
        axes.set_yticklabels([])


def _label(posterior: Posterior, i: int) -> str:
    row = posterior.parameters[i]
    words = row.name.removesuffix("_mm").split("_")
    text = " ".join(words) + (f" [{row.unit}]" if row.unit else "")
    middle = text.find(" ", len(text) // 2 - 2)
    return text if middle < 0 or len(text) < 16 else text[:middle] + "\n" + text[middle + 1 :]
