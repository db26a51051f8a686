"""Many toy experiments fitted together, and what the saturated goodness of fit says with them.

A toy has Poisson counts around the expectation at ``theta`` and auxiliary measurements drawn around it:
a_j ~ N(θ_j, σ_j), or a_j = Pois(τ_j γ_j)/τ_j with τ = σ⁻² for a Poisson constraint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import FitResult, certify
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import minimise

BATCH = 50
"""Toys that are fitted at a time: their covariances are all in memory."""


@dataclass(frozen=True)
class ToyFits:
    """T toys: best fits (T, D), covariances (T, D, D), deviances (T,), which minima are certified (T,)."""

    best_fit: Float[Tensor, "T D"]
    covariance: Float[Tensor, "T D D"]
    deviance: Float[Tensor, " T"]
    passed: Bool[Tensor, " T"]

    @property
    def failed(self) -> int:
        """Number of toys without a certified minimum."""
        return int((~self.passed).sum())


def draw_toys(
    model: HistFactory, theta: Float[Tensor, " D"], number: int, generator: torch.Generator
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T D"]]:
    """Counts and auxiliary measurements of ``number`` toys; an expectation below zero counts as zero."""
    expected = model.expected(theta).clamp_min(0.0)
    counts = torch.poisson(expected.expand(number, -1), generator=generator)
    noise = torch.randn((number, len(theta)), generator=generator, dtype=torch.float64)
    normal = theta + model.width * noise
    tau = torch.where(model.poisson, model.width**-2, 1.0)
    mean = torch.where(model.poisson, tau * theta, 0.0).expand(number, -1)
    poisson = torch.poisson(mean, generator=generator) / tau
    centre = torch.where(model.poisson, poisson, normal)
    return counts, torch.where(model.constrained, centre, model.centre)


def fit_toys(model: HistFactory, theta: Float[Tensor, " D"], number: int, seed: int) -> Iterator[ToyFits]:
    """Draw and fit ``number`` toys around ``theta``, a batch at a time; what does not converge is counted."""
    generator = torch.Generator().manual_seed(seed)
    differentiator = Differentiator(model)
    for first in range(0, number, BATCH):
        counts, centre = draw_toys(model, theta, min(BATCH, number - first), generator)
        start = theta.expand(len(counts), -1).clone()
        minima = minimise(differentiator, start, counts, centre)
        certificates = certify(differentiator, minima.theta, counts, centre)
        passed = minima.converged & certificates.passed
        yield ToyFits(minima.theta, certificates.covariance, minima.deviance, passed)


def toy_goodness(model: HistFactory, result: FitResult, number: int, seed: int) -> dict[str, Any]:
    """The part of ``number`` toys around the best fit that fit worse than the data, and its binomial error.

    p = (k + 1)/(n + 1) for k of n toys with a larger deviance: never zero, and uniform if the model is right.
    """
    batches = [
        (toys.deviance[toys.passed], toys.failed)
        for toys in fit_toys(model, torch.from_numpy(result.best_fit), number, seed)
    ]
    deviance = torch.cat([part for part, _ in batches])
    p_value = (int((deviance >= result.deviance).sum()) + 1) / (len(deviance) + 1)
    error = (p_value * (1 - p_value) / (len(deviance) + 1)) ** 0.5
    return {
        "toys": len(deviance),
        "failed": sum(failed for _, failed in batches),
        "p_value": p_value,
        "error": error,
    }
