"""What the tagger can do: rejection against b efficiency before and after the joint stage, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.errors import DataError
from selfcal.report.inputs import METRICS, ROC, ROC_BEFORE_AFTER
from selfcal.report.style import (
    AFTER_COLOUR,
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

ROC_EFFICIENCY_MIN = 0.5
ROC_POINTS = 101
TRAINING_STAGES = ("tagger", "train")
LOSS_COLOURS = (AFTER_COLOUR, WARNING_COLOUR, GOOD_COLOUR, BEFORE_COLOUR)


def roc_figure(arrays: Mapping[str, NDArray[np.float64]], *, tagger: str) -> ReportFigure:
    """Rejection 1/ε of light and c jets against b efficiency, with the ratio after/before below.

    Raises
    ------
    DataError
        If one of the five curves is missing.
    """
    names = ("efficiency_b", "before/light", "before/c", "after/light", "after/c")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"no array '{missing[0]}'", where=ROC_BEFORE_AFTER, expected=", ".join(names))
    figure = Figure(figsize=(8, 5.8))
    grid = figure.add_gridspec(
        2, 1, height_ratios=(3, 1.1), hspace=0.05, left=0.11, right=0.97, top=0.92, bottom=0.1
    )
    upper = figure.add_subplot(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    efficiency = arrays["efficiency_b"]
    for flavour in ("light", "c"):
        before, after = arrays[f"before/{flavour}"], arrays[f"after/{flavour}"]
        shown = np.isfinite(before) & np.isfinite(after) & (before > 0) & (after > 0)
        colour, label = flavour_colour(flavour), flavour_label(flavour)
        upper.plot(efficiency[shown], before[shown], "--", color=colour, label=f"{label}, before joint stage")
        upper.plot(efficiency[shown], after[shown], color=colour, label=f"{label}, after joint stage")
        lower.plot(efficiency[shown], after[shown] / before[shown], color=colour)
    upper.set_yscale("log")
    upper.set_ylabel(r"Rejection $1/\varepsilon$")
    upper.tick_params(labelbottom=False)
    upper.minorticks_on()
    upper.legend(loc="upper right")
    lower.axhline(1, color=INK, linewidth=0.8)
    lower.set_ylabel("After / before", loc="center")
    lower.set_xlabel("b-jet efficiency")
    lower.set_xlim(float(efficiency.min()), float(efficiency.max()))
    experiment_label(upper, right=plain_text(tagger))
    return ReportFigure(
        name="roc_before_after",
        figure=figure,
        caption=(
            "Rejection of light and c jets against b efficiency on simulation, before and after the stage in "
            "which the tagger sees the data-versus-simulation penalty. Below one in the lower panel is the "
            "price paid for that stage."
        ),
        sources=(ROC_BEFORE_AFTER,),
        description="Rejection against b efficiency for light and c jets, before and after the joint stage",
    )


def trained_roc_figure(arrays: Mapping[str, NDArray[np.float64]], *, tagger: str) -> ReportFigure:
    """Rejection of every background against b efficiency, from ``<flavour>_signal`` and ``_background``.

    Raises
    ------
    DataError
        If there is no pair of curves.
    """
    flavours = [name for name in FLAVOURS if f"{name}_signal" in arrays and f"{name}_background" in arrays]
    if not flavours:
        raise DataError("no arrays '<flavour>_signal' and '<flavour>_background'", where=ROC)
    figure = Figure(figsize=(8, 4.6))
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.78))
    places = np.linspace(ROC_EFFICIENCY_MIN, 1.0, ROC_POINTS)
    for flavour in flavours:
        signal, background = arrays[f"{flavour}_signal"], arrays[f"{flavour}_background"]
        order = np.argsort(signal)
        passing = np.interp(places, signal[order], background[order])
        shown = passing > 0
        axes.plot(
            places[shown], 1 / passing[shown], color=flavour_colour(flavour), label=flavour_label(flavour)
        )
    axes.set_yscale("log")
    axes.minorticks_on()
    axes.set_xlim(ROC_EFFICIENCY_MIN, 1.0)
    axes.set_xlabel("b-jet efficiency")
    axes.set_ylabel(r"Rejection $1/\varepsilon$")
    axes.legend(loc="upper right")
    experiment_label(axes, right=plain_text(tagger))
    return ReportFigure(
        name="roc",
        figure=figure,
        caption="Rejection against b efficiency of the tagger before the joint stage, on simulation.",
        sources=(ROC,),
        description=f"Rejection against b efficiency for {', '.join(flavours)}",
    )


def training_figure(lines: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Losses per epoch of the tagger's training: each ``train_*loss`` with its ``validation_*loss``.

    Read are the rows with an ``epoch`` of stage ``tagger`` or ``train``; an epoch that was trained
    again after an interruption replaces the earlier one.

    Raises
    ------
    DataError
        If there is no row with an epoch and a training loss.
    """
    epochs: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line.get("stage") in TRAINING_STAGES and "epoch" in line and _losses(line):
            epochs[int(line["epoch"])] = line
    if not epochs:
        raise DataError("no row of the training with 'epoch' and 'train_loss'", where=METRICS)
    ordered = [epochs[epoch] for epoch in sorted(epochs)]
    figure = Figure(figsize=(8, 4.2))
    axes = figure.add_axes((0.11, 0.14, 0.86, 0.75))
    last = []
    for number, key in enumerate(_losses(ordered[-1])):
        colour = LOSS_COLOURS[number % len(LOSS_COLOURS)]
        name = key.removeprefix("train_").removesuffix("loss").replace("_", " ").strip() or "total"
        validation = f"validation_{key.removeprefix('train_')}"
        for kind, column, style in (("training", key, "--"), ("validation", validation, "-")):
            shown = [line for line in ordered if isinstance(line.get(column), int | float)]
            if shown:
                places = [line["epoch"] + 1 for line in shown]
                axes.plot(
                    places, [line[column] for line in shown], style, color=colour, label=f"{name}, {kind}"
                )
                last.append(f"{name} {kind} {shown[-1][column]:.4f}")
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Loss per jet")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.03, y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2)
    experiment_label(axes)
    return ReportFigure(
        name="training",
        figure=figure,
        caption=(
            f"Training of the tagger on the train fold. Losses at the last of {len(epochs)} epochs: "
            f"{', '.join(last)}."
        ),
        sources=(METRICS,),
        description=f"Loss against epoch, {len(epochs)} epochs",
    )


def _losses(line: Mapping[str, Any]) -> list[str]:
    found = [key for key in line if key.startswith("train_") and key.endswith("loss")]
    return sorted(
        (key for key in found if isinstance(line[key], int | float)), key=lambda key: "total" not in key
    )
