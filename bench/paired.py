"""Rejections of two taggers trained in pairs and tested on the same jets: their ratio and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jets import Jets
from selfcal.tagger.discriminants import discriminant_b
from selfcal.training.evaluation import rejections

WORKING_POINTS = (0.60, 0.70, 0.77, 0.85)
BACKGROUNDS = ("light", "c")
REPLICAS = 200
Scores = NDArray[np.float64]
"""ln p of the classes (N, 4)."""


def unweighted(path: Path) -> Jets:
    """The jets of a native file, each counting once, as data cards count them unless they say otherwise.

    The event weights of a dijet file undo the bias of its generation and leave next to nothing of it; salt's
    loss knows no weights at all.
    """
    jets = read_jets(path, path.stem)
    return replace(jets, weight=np.ones(len(jets)))


def compare_rejections(
    first: Sequence[Scores],
    second: Sequence[Scores],
    flavour: NDArray[np.integer],
    event: NDArray[np.integer],
) -> list[dict[str, Any]]:
    """Rejections of two taggers (geometric means over trainings), and first over second, on N jets.

    Parameters
    ----------
    first, second : the scores of each training (N, 4); equal places have equal seeds
    flavour, event : of each jet (N,)

    Returns
    -------
    One row per working point and background. ``jets_error`` is the relative error of the ratio from the
    number of jets (bootstrap over events, the same replicas for both), ``trainings_error`` that from the
    number of trainings (standard error over the pairs; None for one pair).
    """
    _, number = np.unique(event, return_inverse=True)
    a, b = (_log_rejections(scores, flavour, np.ones(len(flavour))) for scores in (first, second))
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(REPLICAS):
        weight = generator.poisson(1.0, number.max() + 1)[number].astype(np.float64)
        kept = weight > 0
        mine, theirs = (
            _log_rejections([log_p[kept] for log_p in scores], flavour[kept], weight[kept])
            for scores in (first, second)
        )
        drawn.append((mine - theirs).mean(axis=0))
    jets_error = np.std(drawn, axis=0, ddof=1)
    change = a - b
    several = len(change) > 1
    trainings_error = change.std(axis=0, ddof=1) / np.sqrt(len(change)) if several else None
    return [
        {
            "efficiency": point,
            "background": name,
            "first": float(np.exp(a[:, i, j].mean())),
            "second": float(np.exp(b[:, i, j].mean())),
            "ratio": float(np.exp(change[:, i, j].mean())),
            "jets_error": float(jets_error[i, j]),
            "trainings_error": None if trainings_error is None else float(trainings_error[i, j]),
            "ratios": np.exp(change[:, i, j]).round(3).tolist(),
        }
        for i, point in enumerate(WORKING_POINTS)
        for j, name in enumerate(BACKGROUNDS)
    ]


def _log_rejections(
    scores: Sequence[Scores], flavour: NDArray[np.integer], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """ln of the rejections (trainings, working points, backgrounds); infinite where no jet passes."""
    found = np.empty((len(scores), len(WORKING_POINTS), len(BACKGROUNDS)))
    for k, log_p in enumerate(scores):
        rows = rejections(discriminant_b(log_p), flavour, weight, WORKING_POINTS)
        with np.errstate(divide="ignore"):
            found[k] = [[-np.log(row[name]["efficiency"]) for name in BACKGROUNDS] for row in rows]
    return found


def cross_entropy(scores: Sequence[Scores], flavour: NDArray[np.integer]) -> NDArray[np.float64]:
    """-ln p of the true flavour, mean over trainings, (N,)."""
    each: NDArray[np.float64] = np.mean(
        [-log_p[np.arange(len(flavour)), flavour] for log_p in scores], axis=0
    )
    return each


def cross_entropy_change(
    first: Sequence[Scores], second: Sequence[Scores], flavour: NDArray[np.integer]
) -> tuple[float, float]:
    """Cross entropy of the first less that of the second, and its error from the number of jets."""
    change = cross_entropy(first, flavour) - cross_entropy(second, flavour)
    return float(change.mean()), float(change.std() / np.sqrt(len(change)))


def show(title: str, first: str, second: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    print(f"\n{title}\n  b eff.  against {first:>8}{second:>9}    ratio ± jets ± trainings     each pair")
    for row in rows:
        of_trainings = "" if row["trainings_error"] is None else f" ± {row['trainings_error']:.3f}"
        print(
            f"  {row['efficiency']:.2f}    {row['background']:<7}{row['first']:>8.2f}{row['second']:>9.2f}"
            f"{row['ratio']:>9.3f} ± {row['jets_error']:.3f}{of_trainings}     {row['ratios']}",
            flush=True,
        )
