"""Whether a posterior can be believed: calibration by simulation, coverage, prediction of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.sbi.binned_likelihood import BinnedLikelihood, LaplaceFit
from selfcal.sbi.summaries import HISTOGRAMS

Floats = NDArray[np.float64]
Verdict = Literal["exact", "over-confident", "conservative", "biased"]
PREDICTIVE_DRAWS = 200
RANK_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Simulation-based calibration of one parameter.

    ``uniformity`` is the p-value of a χ² test of the ranks, ``spread`` the variance of the ranks over
    that of even ones (> 1: intervals too short), ``offset`` the mean of the ranks minus one half.
    """

    uniformity: float
    spread: float
    offset: float
    verdict: Verdict


def ranks(truth: Floats, draws: Floats) -> Floats:
    """Share of the draws below the truth: truth (n, D), draws (n, S, D) -> (n, D) in [0, 1].

    Even in [0, 1] if the truths are drawn from the prior and the posterior is exact
    (Talts et al., arXiv 1804.06788). Ties, which exact zeros or copies give, count half.
    """
    below = (draws < truth[:, None, :]).mean(axis=1)
    return np.asarray(below + 0.5 * (draws == truth[:, None, :]).mean(axis=1))


def calibration(rank: Floats, significance: float = 0.01) -> Calibration:
    """Test one parameter's ranks (n,). The verdict names the strongest deviation beyond ``significance``."""
    n = len(rank)
    counts = np.histogram(rank, np.linspace(0, 1, RANK_BINS + 1))[0]
    uniformity = float(stats.chisquare(counts).pvalue)
    spread = float(12 * ((rank - 0.5) ** 2).mean())
    offset = float(rank.mean() - 0.5)
    # For even ranks 12 (r - 1/2)² has mean 1 and variance 4/5, r - 1/2 the variance 1/12.
    z_spread = (spread - 1) / np.sqrt(0.8 / n)
    z_offset = offset / np.sqrt(1 / 12 / n)
    limit = float(stats.norm.isf(significance / 4))
    verdict: Verdict = "exact"
    if abs(z_offset) > limit and abs(z_offset) >= abs(z_spread):
        verdict = "biased"
    elif abs(z_spread) > limit:
        verdict = "over-confident" if z_spread > 0 else "conservative"
    return Calibration(uniformity, spread, offset, verdict)


def expected_coverage(truth: Floats, draws: Floats, seed: int) -> Floats:
    """Credibility at which each truth is reached from a random point, (n,): even if exact.

    Tests of accuracy with random points (TARP, arXiv 2302.03026): the share of draws (n, S, D) that are
    nearer than the truth (n, D) to a reference drawn evenly over the truths' range, in units of their
    spread.
    """
    generator = np.random.default_rng(seed)
    scale = truth.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    reference = generator.uniform(truth.min(axis=0), truth.max(axis=0), truth.shape)
    to_truth = np.linalg.norm((truth - reference) / scale, axis=-1)
    to_draws = np.linalg.norm((draws - reference[:, None, :]) / scale, axis=-1)
    return np.asarray((to_draws < to_truth[:, None]).mean(axis=1))


def predictive_check(likelihood: BinnedLikelihood, fit: LaplaceFit, seed: int) -> list[dict[str, Any]]:
    """Posterior predictive p-values: of every region and histogram, and of everything.

    p is the mean over posterior draws of P(χ²_n >= Σ (n - ν)²/V), with one degree of freedom less for each
    normalised histogram. ``pull`` is the largest of one bin at the best fit.
    """
    generator = np.random.default_rng(seed)
    draws = generator.multivariate_normal(fit.best, fit.covariance, PREDICTIVE_DRAWS)
    draws = np.concatenate([draws, fit.best[None]])
    nu, _ = likelihood.expected(draws)
    pulls = (likelihood.observed - nu) / np.sqrt(fit.variance)
    rows = []
    for index in np.unique(likelihood.histogram):
        inside = likelihood.histogram == index
        histogram = HISTOGRAMS[index % len(HISTOGRAMS)]
        free = int(inside.sum()) - histogram.normalised
        if free > 0:
            described = {"histogram": histogram.name, "category": histogram.category}
            rows.append(
                {"region": int(index // len(HISTOGRAMS)), **described, **_agreement(pulls[:, inside], free)}
            )
    constraints = len(np.unique(likelihood.histogram[likelihood.normalised]))
    total = _agreement(pulls, len(likelihood.observed) - constraints)
    return [{"region": None, "histogram": "all", "category": "all", **total}, *rows]


def _agreement(pulls: Floats, free: int) -> dict[str, Any]:
    chi2 = (pulls**2).sum(axis=1)
    return {
        "chi2": float(chi2[-1]),
        "ndf": free,
        "p_value": float(stats.chi2.sf(chi2[:-1], free).mean()),
        "pull": float(pulls[-1][np.abs(pulls[-1]).argmax()]),
    }
