"""Discriminant in every region: data over stacked flavours, before and after the calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.errors import DataError
from selfcal.report.inputs import DISCRIMINANTS
from selfcal.report.style import (
    INK,
    ReportFigure,
    experiment_label,
    flavour_colour,
    flavour_label,
    plain_text,
)

Histogram = NDArray[np.float64]
RATIO_HALF_WIDTH_MAX = 0.95
"""The panel of ratios shows one plus or minus this at most."""
KINDS = ("data", "nominal", "calibrated", "nominal_variance", "calibrated_variance") + (
    "calibrated_up",
    "calibrated_down",
)


@dataclass(frozen=True)
class RegionHistograms:
    """Histograms of one region, B bins between ``edges`` (B + 1,).

    ``before`` and ``after`` map a flavour to its expected counts (B,); ``band_before`` and
    ``band_after`` are (2, B): expected counts lowered and raised by the uncertainty;
    ``variance_before`` and ``variance_after`` (B,) come from the size of the simulation alone.
    """

    region: str
    edges: Histogram
    data: Histogram
    before: Mapping[str, Histogram]
    after: Mapping[str, Histogram]
    variance_before: Histogram
    variance_after: Histogram
    band_before: Histogram
    band_after: Histogram


def regions_of(arrays: Mapping[str, Histogram]) -> list[str]:
    """Names of the regions, in alphabetical order."""
    return sorted(key.removeprefix("data/") for key in arrays if key.startswith("data/"))


def region_histograms(arrays: Mapping[str, Histogram], region: str) -> RegionHistograms:
    """Collect what belongs to ``region``.

    Raises
    ------
    DataError
        If a histogram of the region is missing or has another number of bins.
    """
    if "edges" not in arrays:
        raise DataError("no array 'edges'", where=DISCRIMINANTS)
    edges = arrays["edges"]
    for kind in KINDS:
        for key in (name for name in arrays if f"{name}/".startswith(f"{kind}/{region}/")):
            if len(arrays[key]) != len(edges) - 1:
                raise DataError(
                    f"'{key}' has {len(arrays[key])} bins",
                    where=DISCRIMINANTS,
                    expected=f"{len(edges) - 1}, one fewer than 'edges'",
                )

    def stack(kind: str) -> dict[str, Histogram]:
        names = {name: f"{kind}/{region}/{name}" for name in FLAVOURS}
        found = {name: arrays[key] for name, key in names.items() if key in arrays}
        if not found:
            raise DataError(f"no array '{kind}/{region}/<flavour>'", where=DISCRIMINANTS)
        return found

    def variance(kind: str) -> Histogram | None:
        start = f"{kind}_variance/{region}/"
        parts = [value for key, value in arrays.items() if f"{key}/".startswith(start)]
        return np.sum(parts, axis=0) if parts else None

    before, after = stack("nominal"), stack("calibrated")
    total_before, total_after = np.sum(list(before.values()), axis=0), np.sum(list(after.values()), axis=0)
    found = variance("nominal")
    variance_before = found if found is not None else np.zeros(len(edges) - 1)
    # the map moves jets and keeps their weights: without its own variance, the nominal one stands in
    found = variance("calibrated")
    variance_after = found if found is not None else variance_before
    spread_before, spread_after = np.sqrt(variance_before), np.sqrt(variance_after)
    band_after = np.stack(
        [
            arrays.get(f"calibrated_down/{region}", total_after - spread_after),
            arrays.get(f"calibrated_up/{region}", total_after + spread_after),
        ]
    )
    return RegionHistograms(
        region=region,
        edges=edges,
        data=arrays[f"data/{region}"],
        before=before,
        after=after,
        variance_before=variance_before,
        variance_after=variance_after,
        band_before=np.stack([total_before - spread_before, total_before + spread_before]),
        band_after=np.stack([band_after.min(axis=0), band_after.max(axis=0)]),
    )


def chi_square(data: Histogram, expected: Histogram, variance: Histogram) -> tuple[float, int]:
    r"""χ² = Σ (n − ν)² / (ν + σ²_MC) over the bins with ν + σ²_MC > 0, and their number.

    Statistical errors of data and simulation only, so that before and after compare alike.
    """
    spread = expected + variance
    used = spread > 0
    return float(np.sum((data[used] - expected[used]) ** 2 / spread[used])), int(used.sum())


def discriminant_figure(histograms: RegionHistograms, *, name: str) -> ReportFigure:
    """Two columns, before and after, each a stack with data points above a data/simulation ratio."""
    figure = Figure(figsize=(11, 5.8))
    grid = figure.add_gridspec(
        2, 2, height_ratios=(3, 1.15), hspace=0.05, wspace=0.05, left=0.075, right=0.985, top=0.92, bottom=0.1
    )
    columns = (
        ("before calibration", histograms.before, histograms.variance_before, histograms.band_before),
        ("after calibration", histograms.after, histograms.variance_after, histograms.band_after),
    )
    totals = [np.sum(list(column[1].values()), axis=0) for column in columns]
    half_width = _ratio_half_width(histograms.data, totals)
    upper_axes: list[Axes] = []
    words: list[str] = []
    for index, (title, stack, variance, band) in enumerate(columns):
        upper = figure.add_subplot(grid[0, index], sharey=upper_axes[0] if upper_axes else None)
        lower = figure.add_subplot(grid[1, index], sharex=upper)
        upper_axes.append(upper)
        _draw_stack(upper, histograms, stack, band)
        _draw_ratio(lower, histograms, totals[index], band, half_width)
        chi2, bins = chi_square(histograms.data, totals[index], variance)
        words.append(f"{title} χ²/bins = {chi2:.1f}/{bins}")
        upper.text(0.04, 0.95, title.capitalize(), transform=upper.transAxes, va="top", weight="bold")
        upper.text(
            0.04, 0.885, f"χ²/bins = {chi2:.1f}/{bins}", transform=upper.transAxes, va="top", fontsize=10
        )
        upper.tick_params(labelbottom=False)
        upper.minorticks_on()
        lower.set_xlabel(r"Discriminant $D_b$")
        if index:
            upper.tick_params(labelleft=False)
            lower.tick_params(labelleft=False)
        else:
            upper.set_ylabel("Jets / bin")
            lower.set_ylabel("Data / sim.", loc="center")
    _legend_and_limits(upper_axes, histograms, totals)
    experiment_label(upper_axes[0])
    upper_axes[1].set_title(f"Region: {plain_text(histograms.region)}", loc="right")
    return ReportFigure(
        name=name,
        figure=figure,
        caption=(
            f"Region {histograms.region}: discriminant of the measure fold before (left) and after (right) "
            "the calibration map; simulation scaled to data with the fitted composition, jets outside the "
            "range in the first or last bin. Band: on the left the statistics of the simulation, on the "
            "right the total uncertainty. "
            f"With statistical errors alone, {words[0]}, {words[1]}."
        ),
        sources=(DISCRIMINANTS,),
        description=f"Discriminant in region {histograms.region}: {'; '.join(words)}",
    )


def _draw_stack(
    axes: Axes, histograms: RegionHistograms, stack: Mapping[str, Histogram], band: Histogram
) -> None:
    base = np.zeros(len(histograms.data))
    for flavour in sorted(stack, key=lambda name: float(stack[name].sum())):
        top = base + stack[flavour]
        axes.stairs(
            top,
            histograms.edges,
            baseline=base,
            fill=True,
            color=flavour_colour(flavour),
            label=flavour_label(flavour),
        )
        base = top
    axes.stairs(base, histograms.edges, color=INK, linewidth=0.9)
    _draw_band(axes, histograms.edges, band)
    centres = 0.5 * (histograms.edges[1:] + histograms.edges[:-1])
    filled = histograms.data > 0
    axes.errorbar(
        centres[filled],
        histograms.data[filled],
        yerr=np.sqrt(histograms.data[filled]),
        fmt="o",
        markersize=4,
        color=INK,
        elinewidth=1.1,
        label="data",
    )


def _draw_band(axes: Axes, edges: Histogram, band: Histogram) -> None:
    axes.stairs(
        band[1], edges, baseline=band[0], fill=True, facecolor="none", edgecolor=INK, hatch="////",
        linewidth=0, alpha=0.55, label="uncertainty",
    )  # fmt: skip


def _draw_ratio(
    axes: Axes, histograms: RegionHistograms, total: Histogram, band: Histogram, half_width: float
) -> None:
    filled = (total > 0) & (histograms.data > 0)
    safe = np.where(total > 0, total, 1.0)
    relative = np.where(total > 0, band / safe, 1.0)
    axes.stairs(relative[1], histograms.edges, baseline=relative[0], fill=True, color="#8b93a0", alpha=0.45)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    centres = (0.5 * (histograms.edges[1:] + histograms.edges[:-1]))[filled]
    ratio = histograms.data[filled] / safe[filled]
    error = np.sqrt(histograms.data[filled]) / safe[filled]
    axes.errorbar(centres, ratio, yerr=error, fmt="o", markersize=4, color=INK, elinewidth=1.1)
    low, high = 1 - half_width, 1 + half_width
    for outside, marker, edge in ((ratio > high, "^", 0.94), (ratio < low, "v", 0.06)):
        axes.scatter(
            centres[outside], np.full(int(outside.sum()), edge), marker=marker, s=26, color="#d9534f",
            transform=axes.get_xaxis_transform(), zorder=5,
        )  # fmt: skip
    axes.set_ylim(low, high)
    axes.set_xlim(histograms.edges[0], histograms.edges[-1])


def _ratio_half_width(data: Histogram, totals: Sequence[Histogram]) -> float:
    """One width for both panels, from the bins with enough data to mean something."""
    largest = 0.15
    for total in totals:
        used = (total > 0) & (data >= 10)
        if used.any():
            largest = max(largest, float(np.max(np.abs(data[used] / total[used] - 1))))
    return min(1.25 * largest, RATIO_HALF_WIDTH_MAX)


def _legend_and_limits(
    upper_axes: Sequence[Axes], histograms: RegionHistograms, totals: Sequence[Histogram]
) -> None:
    highest = max(float(values.max(initial=0.0)) for values in (histograms.data, *totals)) or 1.0
    positive = np.concatenate([values[values > 0] for values in (histograms.data, *totals)])
    lowest = max(float(positive.min()) if len(positive) else 0.1, 1e-4 * highest)
    upper_axes[0].set_yscale("log")
    upper_axes[0].set_ylim(0.4 * lowest, highest * (highest / (0.4 * lowest)) ** 0.45)
    handles, labels = upper_axes[1].get_legend_handles_labels()
    wanted = ["data", *(flavour_label(flavour) for flavour in FLAVOURS), "uncertainty"]
    order = sorted(range(len(labels)), key=lambda index: wanted.index(labels[index]))
    upper_axes[1].legend(
        [handles[index] for index in order], [labels[index] for index in order], loc="upper right", ncols=2
    )
