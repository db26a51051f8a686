"""Working points, rejections and ROC curves of a discriminant.

A jet passes a threshold t if D >= t, which is also how templates are binned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.errors import DataError

Doubles = NDArray[np.float64]


def thresholds(discriminant: Doubles, weight: Doubles, efficiencies: Sequence[float]) -> Doubles:
    """Threshold of each wanted efficiency: exact weighted quantiles.

    The threshold is the largest value t among the jets' own with

        sum(w [D >= t]) / sum(w) >= efficiency.

    Jets with equal D pass together, so the efficiency reached is never below the
    wanted one, and above it by less than the weight of the jets tied at t. With
    signed weights, the first crossing from the tight side counts.

    Parameters
    ----------
    discriminant, weight : (N,), of the signal jets

    Raises
    ------
    DataError
        If there is no jet or no positive total weight.

    >>> discriminant = np.array([4.0, 3.0, 2.0, 1.0])
    >>> print(thresholds(discriminant, np.ones(4), (0.75, 0.5)))
    [2. 3.]
    """
    total = float(weight.sum())
    if len(discriminant) == 0 or total <= 0:
        raise DataError(
            "no signal jets to define working points with",
            expected="jets of the signal flavour with positive total weight",
            fix="choose another working-point region, or provide more simulation",
        )
    order = np.argsort(-discriminant, kind="stable")
    values = discriminant[order]
    passed = np.cumsum(weight[order])
    last_of_tie = np.append(values[1:] != values[:-1], True)
    values, passed = values[last_of_tie], passed[last_of_tie]
    # Summation rounds: a relative 1e-12 must not push the threshold to the next jet.
    reached = passed[:, None] >= total * np.asarray(efficiencies)[None] * (1 - 1e-12)
    result: Doubles = np.where(reached.any(axis=0), values[reached.argmax(axis=0)], values[-1])
    return result


@dataclass(frozen=True)
class Efficiency:
    """Share of jets that pass, with its binomial error from the effective number of jets."""

    value: float
    error: float
    jets: int

    @property
    def rejection(self) -> float | None:
        """1 / value; None if no jet passes."""
        return 1.0 / self.value if self.value > 0 else None

    @property
    def rejection_error(self) -> float | None:
        """error / value^2; None if no jet passes."""
        return self.error / self.value**2 if self.value > 0 else None


def efficiency(discriminant: Doubles, weight: Doubles, threshold: float) -> Efficiency:
    """Efficiency e of D >= threshold; error sqrt(e (1 - e) / n), n = (sum w)^2 / sum w^2.

    Raises
    ------
    DataError
        If there is no jet.

    >>> passing = efficiency(np.array([4.0, 3.0, 2.0, 1.0]), np.ones(4), 2.5)
    >>> passing.value, passing.error
    (0.5, 0.25)
    """
    if len(discriminant) == 0:
        raise DataError("efficiency of no jets asked for", expected="at least one jet")
    value = float(weight[discriminant >= threshold].sum() / weight.sum())
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    return Efficiency(value, float(np.sqrt(max(value * (1 - value), 0.0) / effective)), len(discriminant))


@dataclass(frozen=True)
class RocCurve:
    """Efficiencies (P,) of signal and background at the same thresholds (P,), tight to loose."""

    threshold: Doubles
    signal: Doubles
    background: Doubles


def roc_curve(
    signal: Doubles,
    background: Doubles,
    signal_weight: Doubles,
    background_weight: Doubles,
    points: int = 200,
) -> RocCurve:
    """ROC at ``points`` evenly spaced signal efficiencies from 1 / points to 1."""
    wanted = np.arange(1, points + 1) / points
    cuts = thresholds(signal, signal_weight, list(wanted))
    return RocCurve(
        cuts, _passing(signal, signal_weight, cuts), _passing(background, background_weight, cuts)
    )


def _passing(discriminant: Doubles, weight: Doubles, cuts: Doubles) -> Doubles:
    """sum(w [D >= t]) / sum(w) for every cut t."""
    order = np.argsort(discriminant, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(weight[order])])
    first = np.searchsorted(discriminant[order], cuts, side="left")
    result: Doubles = 1.0 - below[first] / below[-1]
    return result


def area_under_curve(
    signal: Doubles, background: Doubles, signal_weight: Doubles, background_weight: Doubles
) -> float:
    """P(D_signal > D_background) + P(equal) / 2, weighted: the area under the exact ROC curve.

    Raises
    ------
    DataError
        If there is no signal or no background.
    """
    if len(signal) == 0 or len(background) == 0:
        raise DataError("area under a ROC curve without signal or without background asked for")
    order = np.argsort(background, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(background_weight[order])])
    lower = below[np.searchsorted(background[order], signal, side="left")]
    upper = below[np.searchsorted(background[order], signal, side="right")]
    return float((signal_weight * (lower + upper)).sum() / (2 * signal_weight.sum() * below[-1]))
