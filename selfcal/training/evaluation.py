"""How good a tagger is on labelled jets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS, LIGHT, B
from selfcal.tagger.batching import TensorJets, sorted_batches
from selfcal.tagger.network import FlavourTagger
from selfcal.tagger.scoring import EVALUATION_BATCH, device_of
from selfcal.tagger.working_points import area_under_curve, efficiency, thresholds
from selfcal.training.objectives import mean_losses


def validation_losses(model: FlavourTagger, jets: TensorJets) -> dict[str, float]:
    """Mean loss of every head over all jets, tracks or pairs (see objectives), where its truth is known."""
    was_training, device = model.training, device_of(model)
    model.eval()
    sums: dict[str, NDArray[np.float64]] = {}
    with torch.no_grad():
        for index in sorted_batches(jets.n_tracks, EVALUATION_BATCH):
            batch = jets.batch(index).to(device)
            output = model(batch)
            for name, mean in mean_losses(output, batch).items():
                parts = np.array([float(mean.numerator), float(mean.denominator)])
                sums[name] = sums.get(name, np.zeros(2)) + parts
    model.train(was_training)
    return {name: float(above / below) if below else 0.0 for name, (above, below) in sums.items()}


def rejections(
    discriminant: NDArray[np.float64],
    flavour: NDArray[np.integer],
    weight: NDArray[np.float64],
    working_points: Sequence[float],
    signal: int = B,
) -> list[dict[str, Any]]:
    """Threshold and, per flavour, efficiency and rejection with binomial errors at each working point.

    A working point is an efficiency of ``signal``, of which ``discriminant`` is the
    discriminant. One row per working point; a flavour without jets is left out, and a
    rejection is None where no jet passes.
    """
    chosen_signal = flavour == signal
    cuts = thresholds(discriminant[chosen_signal], weight[chosen_signal], working_points)
    rows: list[dict[str, Any]] = []
    for point, cut in zip(working_points, cuts, strict=True):
        row: dict[str, Any] = {"working_point": point, "threshold": float(cut)}
        for index, name in enumerate(FLAVOURS):
            chosen = flavour == index
            if not chosen.any():
                continue
            passing = efficiency(discriminant[chosen], weight[chosen], float(cut))
            row[name] = {
                "efficiency": passing.value,
                "efficiency_error": passing.error,
                "rejection": passing.rejection,
                "rejection_error": passing.rejection_error,
                "jets": passing.jets,
            }
        rows.append(row)
    return rows


def add_bootstrap_errors(
    rows: list[dict[str, Any]],
    discriminant: NDArray[np.float64],
    flavour: NDArray[np.integer],
    weight: NDArray[np.float64],
    event: NDArray[np.integer],
    signal: int = B,
    *,
    replicas: int = 100,
    seed: int = 0,
) -> None:
    """Add ``rejection_bootstrap_error`` to what :func:`rejections` gave for the same jets.

    Each replica draws a Poisson(1) weight for every event (N,) and finds its own
    thresholds: unlike the binomial error, this one knows that the threshold is uncertain
    too, and that jets of one event are not independent. The error is that of the
    efficiency over its square, so that replicas in which no jet passes do no harm.
    """
    points = [row["working_point"] for row in rows]
    generator = np.random.default_rng(seed)
    _, number = np.unique(event, return_inverse=True)
    drawn: dict[tuple[int, str], list[float]] = {}
    for _ in range(replicas):
        poisson = weight * generator.poisson(1.0, number.max(initial=-1) + 1)[number]
        kept = poisson > 0
        if not (kept & (flavour == signal)).any():
            continue
        again = rejections(discriminant[kept], flavour[kept], poisson[kept], points, signal)
        for place, row in enumerate(again):
            for name in FLAVOURS:
                if name in row:
                    drawn.setdefault((place, name), []).append(row[name]["efficiency"])
    for (place, name), values in drawn.items():
        passing = rows[place][name]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        defined = spread is not None and passing["efficiency"] > 0
        passing["rejection_bootstrap_error"] = spread / passing["efficiency"] ** 2 if defined else None


def summary(
    discriminant: NDArray[np.float64], log_probability: NDArray[np.float64], flavour: NDArray[np.integer]
) -> dict[str, float | None]:
    """Accuracy, AUC of b against light, and rejections at 70 % b efficiency; None where undefined."""
    ones = np.ones(len(flavour))
    b, light = flavour == B, flavour == LIGHT
    result: dict[str, float | None] = {
        "accuracy": float((log_probability.argmax(axis=1) == flavour).mean()) if len(flavour) else None,
        "auc_b_light": None,
        "charm_rejection_70": None,
        "light_rejection_70": None,
    }
    if b.any() and light.any():
        result["auc_b_light"] = area_under_curve(discriminant[b], discriminant[light], ones[b], ones[light])
    if b.any():
        row = rejections(discriminant, flavour, ones, [0.70])[0]
        for index, name in ((1, "charm"), (2, "light")):
            if FLAVOURS[index] in row:
                result[f"{name}_rejection_70"] = row[FLAVOURS[index]]["rejection"]
    return result
