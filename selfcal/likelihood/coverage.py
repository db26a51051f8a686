"""Do the intervals of the scale factors cover the truth as often as they say? Likelihood toys, and a verdict.

In a toy the truth is SF(θ, η): the parameters θ from which counts and auxiliary measurements are drawn, and
the independent fluctuation η ~ N(0, 1) of the nominal simulation. The estimate is SF(θ̂, 0) with

    σ² = J C Jᵀ + J_η J_ηᵀ

and covers at 68 (95) % if |SF(θ̂, 0) − SF(θ, η)|/σ < 1 (1.96). The pull is taken where counts are closest to
Gaussian, in the odds o = SF/(1 − SF ε⁰) of the efficiency SF ε⁰,

    pull = [ln o(SF(θ̂, 0)) − ln o(SF(θ, η))] / σ_ln o,   σ_ln o = σ / [SF (1 − SF ε⁰)];

in SF itself σ grows with the estimate, and n counts known without any bias have a mean pull of −1/(2√n).
Score of the HiggsML uncertainty challenge (arXiv:2410.02867)
with the mean width w = ⟨2σ⟩ of the 68 % interval and the coverage c of N toys, σ_c² = 0.6827·0.3173/N:

    score = −ln[(w + 10⁻³) f(c)],   f = 1 within 2σ_c of 0.6827, 1 + d⁴ below, 1 + d³ above,

d being how far c is outside, in σ_c.

The verdict accounts for looking at many rows: a right uncertainty is outside of each limit with a known
probability (binomial for coverages, Gaussian for the mean and χ² for the width of pulls). Their sum over the
judged rows is the number expected by chance; more flagged rows than a Poisson number of that mean exceeds in
one study of a hundred are a failure. Rows that count the same bins are one row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm, poisson
from torch import Tensor

from selfcal.likelihood.efficiencies import EfficiencyRatios
from selfcal.likelihood.toy_fits import ToyFits, fit_toys

ONE_SIGMA, TWO_SIGMA = 0.6827, 0.95
QUANTILE_95 = 1.959964
JETS_MIN = 25
"""Rows with fewer expected jets inside or outside of their bins are not judged: their errors are far from
Gaussian."""
CHANCE = 0.01
"""Part of the studies of right uncertainties that may fail."""
ODDS_MIN = 1e-9
"""Smallest part of the jets on one side of a threshold that enters the odds."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """What 1,000 toys must give per scale factor, and over the average of all; wider for fewer toys."""

    coverage_68: tuple[float, float] = (0.63, 0.735)
    coverage_95: tuple[float, float] = (0.925, 0.972)
    average_68: tuple[float, float] = (0.66, 0.705)
    pull_mean: float = 0.12
    pull_width: tuple[float, float] = (0.91, 1.09)
    failed_share: float = 0.005

    def for_toys(self, number: int) -> Limits:
        """Distances from the nominal values grow as 1/√number below 1,000 toys."""
        grow = max(1.0, (1000 / max(number, 1)) ** 0.5)

        def stretched(low_high: tuple[float, float], nominal: float) -> tuple[float, float]:
            low, high = (nominal + grow * (edge - nominal) for edge in low_high)
            return low, high

        return Limits(
            stretched(self.coverage_68, ONE_SIGMA),
            stretched(self.coverage_95, TWO_SIGMA),
            stretched(self.average_68, ONE_SIGMA),
            grow * self.pull_mean,
            stretched(self.pull_width, 1.0),
            self.failed_share,
        )

    def chance(self, number: int) -> float:
        """Probability that a row of ``number`` toys is flagged though its uncertainty is right, at most."""

        def covers(low_high: tuple[float, float], nominal: float) -> float:
            low, high = np.ceil(low_high[0] * number), np.floor(low_high[1] * number)
            return float(binom.cdf(low - 1, number, nominal) + binom.sf(high, number, nominal))

        narrow, wide = ((number - 1) * edge**2 for edge in self.pull_width)
        width = chi2.cdf(max(narrow, 0.0), number - 1) + chi2.sf(wide, number - 1)
        mean = 2 * norm.sf(self.pull_mean * number**0.5)
        return covers(self.coverage_68, ONE_SIGMA) + covers(self.coverage_95, TWO_SIGMA) + float(width + mean)


@dataclass(frozen=True)
class ToyScaleFactors:
    """Estimate, truth and uncertainty of S scale factors in T toys, each (T, S), and the failed toys."""

    estimate: Array
    truth: Array
    sigma: Array
    failed: int


def toy_scale_factors(
    ratios: EfficiencyRatios, theta: Float[Tensor, " D"], number: int, seed: int
) -> ToyScaleFactors:
    """Fit ``number`` toys of the model around ``theta``."""
    batches = fit_toys(ratios.model, theta, number, seed)
    return collect_toys(ratios, ((toys, theta.expand(len(toys.passed), -1)) for toys in batches), seed)


def collect_toys(
    ratios: EfficiencyRatios,
    batches: Iterable[tuple[ToyFits, Float[Tensor, "T D"]]],
    seed: int,
    added: Float[Tensor, " S"] | float = 0.0,
) -> ToyScaleFactors:
    """Scale factors of fitted toys and of the parameters they were drawn from.

    ``added`` is variance that the estimates have beside that of their fit.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    estimate, truth, sigma, failed = [], [], [], 0
    for toys, true in batches:
        failed += toys.failed
        eta = torch.randn((len(toys.passed), ratios.eta_size), generator=generator, dtype=torch.float64)
        for t in torch.nonzero(toys.passed)[:, 0].tolist():
            by_theta, by_eta = ratios.jacobians(toys.best_fit[t])
            variance = ((by_theta @ toys.covariance[t]) * by_theta).sum(1) + (by_eta**2).sum(1) + added
            estimate.append(ratios.values(toys.best_fit[t]).numpy())
            truth.append(ratios.values(true[t], eta[t]).numpy())
            sigma.append(variance.sqrt().numpy())
    shape = (-1, len(ratios.measured))
    tables = [np.array(part, dtype=np.float64).reshape(shape) for part in (estimate, truth, sigma)]
    return ToyScaleFactors(tables[0], tables[1], tables[2], failed)


def odds_pulls(estimate: Array, truth: Array, sigma: Array, efficiency: Array) -> Array:
    """Pulls in the logarithm of the odds, see above; ``efficiency`` is that of the nominal simulation, ε⁰."""

    def parts(value: Array) -> tuple[Array, Array]:
        return np.maximum(value, ODDS_MIN), np.maximum(1 - value * efficiency, ODDS_MIN)

    (inside, outside), (true_inside, true_outside) = parts(estimate), parts(truth)
    difference = np.log(inside / outside) - np.log(true_inside / true_outside)
    return np.asarray(difference * inside * outside / sigma)


def interval_score(width: float, covered: float, number: int) -> float:
    """The score above for mean width ``width`` and coverage ``covered`` of ``number`` toys.

    >>> round(interval_score(0.1, 0.68, 1000), 3), round(interval_score(0.1, 0.60, 1000), 3)
    (2.293, -2.858)
    """
    spread = (ONE_SIGMA * (1 - ONE_SIGMA) / number) ** 0.5
    beyond = abs(covered - ONE_SIGMA) / spread - 2
    penalty = 1.0 if beyond <= 0 else 1 + beyond ** (4 if covered < ONE_SIGMA else 3)
    return float(-np.log((width + 1e-3) * penalty))


def coverage_table(
    toys: ToyScaleFactors, ratios: EfficiencyRatios, theta: Float[Tensor, " D"]
) -> dict[str, Any]:
    """Pulls, coverage and score of every scale factor in toys of ``theta``, and every limit that is exceeded.

    Rows with fewer than ``JETS_MIN`` expected jets inside or outside of their bins are listed, not judged;
    nor are those that count the same bins as a row before them (``same_as``).
    """
    fewer = ratios.expected_fewer(theta).numpy()
    number = len(toys.estimate)
    limits = Limits().for_toys(number)
    distance = np.abs(toys.estimate - toys.truth) / toys.sigma
    pull = odds_pulls(toys.estimate, toys.truth, toys.sigma, ratios.pairs(theta)[1].numpy())
    rows: list[dict[str, Any]] = []
    first: dict[tuple[Any, ...], int] = {}
    for s, index in enumerate(ratios.measured):
        row, covered = ratios.rows[index], float((distance[:, s] < 1).mean())
        width = float(2 * toys.sigma[:, s].mean())
        same = first.setdefault((row.flavour, row.kinematic_bin, row.passing), int(index))
        entry = {
            "row": int(index),
            "flavour": row.flavour,
            "kind": row.kind,
            "working_point": row.working_point,
            "bin": row.bin,
            "same_as": same if same != index else None,
            "judged": bool(fewer[s] >= JETS_MIN and row.status == "measured" and same == index),
            "pull_mean": float(pull[:, s].mean()),
            "pull_width": float(pull[:, s].std(ddof=1)),
            "coverage_68": covered,
            "coverage_95": float((distance[:, s] < QUANTILE_95).mean()),
            "interval_width": width,
            "score": interval_score(width, covered, number),
        }
        rows.append({**entry, "exceeded": _exceeded(entry, limits)})
    judged = [row for row in rows if row["judged"]]
    average = float(np.mean([row["coverage_68"] for row in judged])) if judged else None
    flagged = [row["row"] for row in judged if row["exceeded"]]
    share = toys.failed / max(number + toys.failed, 1)
    low, high = limits.average_68
    by_chance = len(judged) * limits.chance(number)
    allowed = int(poisson.isf(CHANCE, by_chance)) if judged else 0
    passed = (
        average is not None
        and low <= average <= high
        and len(flagged) <= allowed
        and share <= limits.failed_share
    )
    return {
        "schema_version": 1,
        "limits": asdict(limits),
        "rows": rows,
        "summary": {
            "toys": number,
            "failed": toys.failed,
            "judged": len(judged),
            "average_68": average,
            "average_score": float(np.mean([row["score"] for row in judged])) if judged else None,
            "flagged": flagged,
            "flagged_count": len(flagged),
            "expected_by_chance": by_chance,
            "allowed_by_chance": allowed,
            "passed": passed,
        },
    }


def _exceeded(entry: dict[str, Any], limits: Limits) -> list[str]:
    outside = {
        "pull_mean": abs(entry["pull_mean"]) > limits.pull_mean,
        "pull_width": not limits.pull_width[0] <= entry["pull_width"] <= limits.pull_width[1],
        "coverage_68": not limits.coverage_68[0] <= entry["coverage_68"] <= limits.coverage_68[1],
        "coverage_95": not limits.coverage_95[0] <= entry["coverage_95"] <= limits.coverage_95[1],
    }
    return [name for name, exceeded in outside.items() if exceeded]
