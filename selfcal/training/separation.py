"""What a tagger still says about flavour, so that no penalty can teach it to say nothing.

Data and simulation agree perfectly in scores that are constant, in scores whose flavours have been
exchanged in both, and in scores that tell the region instead of the flavour. No penalty sees any of
them. What all three lose is the separation of flavours *within* a region, which is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.tagger.working_points import area_under_curve

KEPT_MIN = 0.8
"""Part of AUC - ½ of any two flavours within regions that must be left of what was there before."""

SIGNIFICANT = 5.0
"""Standard deviations by which AUC - ½ must have been above zero before, to be held to it."""

CONSTANT_BELOW = 1e-6
"""Spread of ln(p_i / p_j) under which scores count as constant."""


@dataclass(frozen=True)
class PairSeparation:
    """AUC of ln(p_i / p_j) for flavour i against flavour j, over all jets and within regions.

    ``within`` is the probability that a jet of flavour i has the larger value than one of flavour j of
    the same region; ``error`` its standard deviation if there were no separation.
    """

    pooled: float
    within: float
    error: float


@dataclass(frozen=True)
class Separation:
    """Separations by pair of flavours ("b against light"), cross entropy, largest spread of ln(p_i / p_j)."""

    pairs: dict[str, PairSeparation]
    cross_entropy: float
    spread: float

    def as_row(self) -> dict[str, float]:
        """For the metrics: cross entropy and the separation of every pair within regions."""
        return {"cross_entropy": self.cross_entropy} | {
            f"auc within regions, {name}": pair.within for name, pair in self.pairs.items()
        }


def measure_separation(
    log_probability: NDArray[np.floating],
    flavour: NDArray[np.integer],
    region: NDArray[np.integer],
    weight: NDArray[np.float64],
) -> Separation:
    """Separation of all pairs of flavours that share a region.

    Parameters
    ----------
    log_probability : (N, F), ln p in the order of ``FLAVOURS``
    flavour, region, weight : (N,); the weights are those of simulation and must not be negative in sum
    """
    log_p = np.asarray(log_probability, np.float64)
    pairs, spread = {}, 0.0
    for i, j in combinations(range(log_p.shape[1]), 2):
        ratio = log_p[:, i] - log_p[:, j]
        spread = max(spread, float(ratio.std()))
        found = _pair(ratio, flavour == i, flavour == j, region, weight)
        if found is not None:
            pairs[f"{FLAVOURS[i]} against {FLAVOURS[j]}"] = found
    of_truth = log_p[np.arange(len(log_p)), flavour]
    return Separation(pairs, float(-(weight * of_truth).sum() / weight.sum()), spread)


def lost_information(before: Separation, after: Separation) -> list[str]:
    """What ``after`` no longer says, in words; empty if nothing is amiss.

    A pair of flavours counts if its separation within regions was significant before. The message
    names the check: constant scores, exchanged flavours, region told instead of flavour, or lost
    separation.
    """
    if after.spread < CONSTANT_BELOW:
        return ["constant scores: all jets have the same probabilities"]
    messages = []
    for name, old in before.pairs.items():
        new = after.pairs[name]
        if old.within - 0.5 < SIGNIFICANT * old.error or new.within - 0.5 >= KEPT_MIN * (old.within - 0.5):
            continue
        if new.within < 0.5 - SIGNIFICANT * new.error:
            cause = "exchanged flavours"
        elif new.pooled - 0.5 >= KEPT_MIN * (old.pooled - 0.5):
            cause = "region told instead of flavour"
        else:
            cause = "lost separation"
        messages.append(
            f"{cause}: {name} has AUC {new.within:.3f} within regions and {new.pooled:.3f} over all, "
            f"{old.within:.3f} and {old.pooled:.3f} before"
        )
    return messages


def _pair(
    ratio: NDArray[np.float64],
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    region: NDArray[np.integer],
    weight: NDArray[np.float64],
) -> PairSeparation | None:
    values, sizes, variances = [], [], []
    for index in np.unique(region):
        i, j = first & (region == index), second & (region == index)
        if not i.any() or not j.any() or weight[i].sum() <= 0 or weight[j].sum() <= 0:
            continue
        values.append(area_under_curve(ratio[i], ratio[j], weight[i], weight[j]))
        n, m = int(i.sum()), int(j.sum())
        variances.append((n + m + 1) / (12.0 * n * m))
        sizes.append(float(weight[i].sum() * weight[j].sum()) / float(weight[i].sum() + weight[j].sum()))
    if not values:
        return None
    share = np.array(sizes) / np.sum(sizes)
    pooled = area_under_curve(ratio[first], ratio[second], weight[first], weight[second])
    error = float(np.sqrt((share**2 * np.array(variances)).sum()))
    return PairSeparation(pooled, float(share @ np.array(values)), error)
