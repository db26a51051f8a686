"""Many toy experiments fitted together, and what the saturated goodness of fit says with them.

A toy has Poisson counts around the expectation at ``theta`` and auxiliary measurements drawn around it:
a_j ~ N(θ_j, σ_j), or a_j = Pois(τ_j γ_j)/τ_j with τ = σ⁻² for a Poisson constraint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfcal.errors import FitError
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import FitResult, certify, fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import minimise

BATCH_MAX = 100
BATCH_NUMBERS = 2e7
"""Double-precision numbers that the tables of one batch may hold, covariances included."""


@dataclass(frozen=True)
class ToyFits:
    """T toys; what failed has NaN as best fit, covariance and deviance.

    Attributes
    ----------
    best_fit : (T, D)
    covariance : (T, D, D)
    deviance : (T,)
    passed : (T,) which minima are certified
    edm, gradient_in_sigma : (T,) the certificates: estimated distance to the minimum, largest |g σ|
    rescued : toys that Fisher scoring left and other starts or MINUIT brought to their minimum
    """

    best_fit: Float[Tensor, "T D"]
    covariance: Float[Tensor, "T D D"]
    deviance: Float[Tensor, " T"]
    passed: Bool[Tensor, " T"]
    edm: Float[Tensor, " T"]
    gradient_in_sigma: Float[Tensor, " T"]
    rescued: int

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
    differentiator, size = Differentiator(model), batch_size(model)
    for first in range(0, number, size):
        counts, centre = draw_toys(model, theta, min(size, number - first), generator)
        yield fit_batch(differentiator, theta, counts, centre, seed)


def fit_batch(
    differentiator: Differentiator,
    start: Float[Tensor, " D"],
    counts: Float[Tensor, "T B"],
    centre: Float[Tensor, "T D"],
    seed: int = 1,
) -> ToyFits:
    """Fit T data sets at once from one start.

    A toy without certified minimum is tried again alone, from other starts and with MINUIT; if that fails as
    well it is marked, and the others are left alone.
    """
    minima = minimise(differentiator, start.expand(len(counts), -1), counts, centre)
    certificates = certify(differentiator, minima.theta, counts, centre)
    fits = ToyFits(
        minima.theta,
        certificates.covariance,
        minima.deviance,
        minima.converged & certificates.passed,
        minima.edm,
        certificates.gradient_in_sigma,
        rescued=0,
    )
    model, missing = differentiator.model, torch.nonzero(~fits.passed)[:, 0].tolist()
    rescued = sum(_rescue(model, fits, i, start, (counts[i], centre[i]), seed) for i in missing)
    return replace(fits, rescued=rescued)


def _rescue(
    model: HistFactory, fits: ToyFits, i: int, start: Tensor, data: tuple[Tensor, Tensor], seed: int
) -> bool:
    """Fit one toy alone and put the result into its place."""
    counts, centre = data
    try:
        result = fit(model.with_centre(centre), counts, start, seed)
    except FitError:
        for values in (fits.best_fit, fits.covariance, fits.deviance):
            values[i] = torch.nan
        return False
    fits.best_fit[i] = torch.from_numpy(result.best_fit)
    fits.covariance[i] = torch.from_numpy(result.covariance)
    fits.deviance[i], fits.edm[i] = result.deviance, result.certificate["edm"]
    fits.gradient_in_sigma[i] = result.certificate["gradient_in_sigma_max"]
    fits.passed[i] = True
    return True


def batch_size(model: HistFactory) -> int:
    """Toys that are fitted at a time, so that their tables fit into memory."""
    n, terms = len(model.parameters), model.terms
    acting = len(terms.shift_parameter) + len(terms.scale_parameter)
    numbers = 4 * n * n + 3 * n * len(model.observed) + 3 * len(terms.nominal) * (acting + 1)
    return int(min(BATCH_MAX, max(1, BATCH_NUMBERS // numbers)))


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
