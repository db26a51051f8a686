"""What the priors of core and tails say of published histograms, before any fit.

Two numbers of the negative side of an impact-parameter significance S: its core, the 68.3 % quantile of the
size of S, and its tail, the fraction of tracks beyond three. Detectors drawn from the prior smear the
simulation's histogram; their ratios to the simulation are the prior's prediction for data over simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.sbi.histogram_inference import (
    PRIOR_WIDTHS,
    TAIL_BEGINS,
    check_histograms,
    histogram_pairs,
    joined_bins,
    smeared_histogram,
)

Floats = NDArray[np.float64]
CORE = 0.6827
"""The half width of the core holds this share."""
DRAWS = 400
INTERVAL = (0.025, 0.975)
"""Quantiles of the draws between which 95 % of them lie."""


@dataclass(frozen=True)
class PriorPredictive:
    """Data over simulation of one category: ``core`` and ``tail``; and of n draws of the prior, (n,) each."""

    name: str
    core: float
    tail: float
    core_draws: Floats
    tail_draws: Floats

    @property
    def intervals(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where 95 % of the draws lie: of the core, of the tail."""
        core, tail = (np.quantile(part, INTERVAL).tolist() for part in (self.core_draws, self.tail_draws))
        return (core[0], core[1]), (tail[0], tail[1])

    @property
    def covered(self) -> tuple[bool, bool]:
        """Whether data lie within them."""
        core, tail = self.intervals
        return core[0] <= self.core <= core[1], tail[0] <= self.tail <= tail[1]


def core_and_tail(content: Floats, edges: Floats) -> tuple[float, float]:
    """68.3 % quantile, bins evenly filled, and fraction beyond three."""
    cumulative = np.concatenate([[0.0], np.cumsum(content)]) / content.sum()
    beyond = content[edges[:-1] >= TAIL_BEGINS - 1e-9].sum() / content.sum()
    return float(np.interp(CORE, cumulative, edges)), float(beyond)


def prior_predictive(
    name: str,
    data: Floats,
    simulation: Floats,
    edges: Floats,
    *,
    seed: int = 1,
    draws: int = DRAWS,
    prior_widths: Floats = PRIOR_WIDTHS,
) -> PriorPredictive:
    """Ratios of data, and of ``draws`` detectors with core, tail and far tail from the prior.

    Raises
    ------
    DataError
        If the edges are not even from zero, or a histogram is empty or has negative contents.
    """
    check_histograms(name, data, simulation, edges)
    data, simulation, edges = joined_bins(data, simulation, edges)
    theta = np.random.default_rng(seed).normal(1.0, prior_widths, (draws, len(prior_widths)))
    theta = np.clip(theta, (0.3, 0.0, 0.0), None)
    reference = np.array(core_and_tail(simulation, edges))
    predicted = np.array([core_and_tail(smeared_histogram(simulation, edges, one), edges) for one in theta])
    core, tail = np.array(core_and_tail(data, edges)) / reference
    ratios = predicted / reference
    return PriorPredictive(name, float(core), float(tail), ratios[:, 0], ratios[:, 1])


def prior_predictive_of_files(data: Path, simulation: Path, seed: int = 1) -> list[PriorPredictive]:
    """One comparison per histogram that both ROOT files hold under the same name.

    Raises
    ------
    DataError
        If a file cannot be read or they have no one-dimensional histogram in common.
    """
    return [
        prior_predictive(name, observed, simulated, edges, seed=seed)
        for name, observed, simulated, edges in histogram_pairs(data, simulation)
    ]
