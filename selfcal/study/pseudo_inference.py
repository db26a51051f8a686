"""The detector's posterior in pseudo-experiments: one emulator as wide as the prior, fitted to many data.

The rates of tracks are those of the train fold's simulation, which is the population here: they have no
statistical error of simulation, and the likelihood counts none. The imperfections for which the likelihood
has a relative error m in every bin (``modelling_error``, ``multiplicity_error``) are drawn:
n → n (1 + m N(0, 1)). The emulator over the prior only finds the neighbourhood: the
detector of the best fit and its neighbours along each parameter are simulated for every pseudo-experiment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.sbi.binned_likelihood import BinnedLikelihood, Observation, fit_laplace
from selfcal.sbi.diagnostics import predictive_check
from selfcal.sbi.donors import Donors
from selfcal.sbi.emulator import QuadraticEmulator, fit_emulator, gaussian_design, n_terms
from selfcal.sbi.inference import (
    EmulatedLikelihood,
    Fit,
    RegionTracks,
    SmearedRates,
    build,
    evaluate_detectors,
)
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.smearing import smear
from selfcal.sbi.stage import inflated
from selfcal.sbi.summaries import Counts, count_samples

Floats = NDArray[np.float64]
LOCAL_STEP = (0.3, 1.0)
"""Smallest and largest step of the local emulator (two σ between them), in prior widths. A form over the
whole prior misses the kinks of the smearing model at its nominal values, and the covariance needs the slopes
where the data are; over smaller steps the noise of single tracks acts like information."""
STAGES = ("value", "value", "slopes", "value", "converged", "slopes", "value", "converged")
"""What is simulated anew before each further fit: the detector of the best fit, or also its neighbours."""
MOVED_MAX = 0.2
"""Largest move of a parameter in the last fit, in its σ, at which the fits count as converged."""


@dataclass(frozen=True)
class DetectorInference:
    """What all pseudo-experiments share: simulation of the train fold, its counts, and the emulator."""

    regions: tuple[RegionTracks, ...]
    rates: SmearedRates
    counts: tuple[Counts, ...]
    emulator: QuadraticEmulator
    config: InferenceConfig

    @property
    def widths(self) -> Floats:
        """Prior widths of the parameters, (D,)."""
        return prior_widths(self.config.prior_width)

    def observed(
        self,
        generator: np.random.Generator,
        parameters: SmearingParameters,
        fractions: Floats,
        expected: Sequence[float],
    ) -> list[Counts]:
        """Counts of a Poisson number of jets per region with ``fractions`` (R, F) under ``parameters``."""
        found = []
        for samples, share, mean in zip(self.rates.samples, fractions, expected, strict=True):
            flavour = np.concatenate([jets.flavour for jets, _ in samples]).astype(np.int64)
            times = multiplicities(generator, flavour, int(generator.poisson(mean)), share)
            parts: list[Jets] = []
            first = 0
            for jets, noise in samples:
                drawn = times[first : first + len(jets)]
                first += len(jets)
                measured = smear(jets, parameters, self.rates.donors, self.rates.seed, noise)
                parts.append(replace(measured, weight=drawn.astype(np.float64)).select(drawn > 0))
            found.append(count_samples(parts, with_spread=False).pooled())
        return found

    def posterior(
        self, generator: np.random.Generator, observed: Sequence[Counts], seed: int
    ) -> tuple[Posterior, float]:
        """The posterior of ``observed``, inflated where the model does not describe them, as in a run.

        Beside it the posterior predictive p-value that decides about that.

        Raises
        ------
        FitError
            If the fit does not converge.
        """
        rows = zip(self.regions, observed, self.counts, strict=True)
        observations = [
            Observation(one.name, data, simulated, one.fractions, one.relative_width)
            for one, data, simulated in rows
        ]
        nominal, widths = NOMINAL.vector(), self.widths
        likelihood = build(observations, self.emulator, nominal, widths, self.config)
        likelihood = with_drawn_imperfections(likelihood, generator)
        fit = fit_laplace(likelihood)
        size = len(PARAMETERS)
        likelihood = replace(likelihood, emulator_variance=np.zeros_like(likelihood.emulator_variance))
        likelihood, fit = refined(
            self.rates, partial(_with_emulator, likelihood), fit_laplace, likelihood, fit, widths
        )
        mean = SmearingParameters.from_vector(likelihood.theta(fit.best)).vector()
        covariance = fit.covariance[:size, :size] * np.outer(widths, widths)
        overall = predictive_check(likelihood, fit, seed)[0]
        return inflated(Posterior(mean, covariance, widths), overall)[0], float(overall["p_value"])


def _with_emulator(likelihood: BinnedLikelihood, emulator: QuadraticEmulator) -> BinnedLikelihood:
    return replace(likelihood, emulator=emulator)


class RefinableLikelihood(EmulatedLikelihood, Protocol):
    """A likelihood that shows its emulator."""

    @property
    def emulator(self) -> QuadraticEmulator: ...


Refinable = TypeVar("Refinable", bound=RefinableLikelihood)


def refined(
    simulated: Callable[[Floats], Floats],
    likelihood_with: Callable[[QuadraticEmulator], Refinable],
    fitted: Callable[[Refinable, Floats | None], Fit],
    likelihood: Refinable,
    fit: Fit,
    widths: Floats,
    stages: Sequence[str] = STAGES,
) -> tuple[Refinable, Fit]:
    """Further fits with the emulator renewed where the last one ended, by ``stages``."""
    size = len(PARAMETERS)
    for stage in stages:
        mean = SmearingParameters.from_vector(likelihood.theta(fit.best)).vector()
        if stage == "slopes":
            sigma = np.sqrt(np.diag(fit.covariance)[:size])
            emulator = local_emulator(simulated, mean, widths * np.clip(2 * sigma, *LOCAL_STEP))
        else:
            emulator = exact_at(likelihood.emulator, mean, simulated(mean))
        likelihood = likelihood_with(emulator)
        last, fit = fit, fitted(likelihood, fit.best)
        moved = np.abs(fit.best - last.best) / np.sqrt(np.diag(fit.covariance))
        if stage == "converged" and moved[:size].max() < MOVED_MAX:
            break
    return likelihood, fit


def exact_at(emulator: QuadraticEmulator, theta: Floats, rates: Floats) -> QuadraticEmulator:
    """The same derivatives, shifted so that the outputs at ``theta`` are ``rates``, (M,)."""
    coefficients = emulator.coefficients.copy()
    coefficients[0] += rates - emulator(theta)
    return replace(emulator, coefficients=coefficients, error=np.zeros_like(emulator.error))


def local_emulator(rates: Callable[[Floats], Floats], theta: Floats, steps: Floats) -> QuadraticEmulator:
    """Exact at ``theta`` (D,), linear with the central differences over ``steps`` along each parameter."""
    middle = rates(theta)
    up, down = (np.stack([rates(theta + sign * step) for step in np.diag(steps)]) for sign in (1, -1))
    coefficients = np.concatenate([middle[None], (up - down) / 2, np.zeros_like(up)])
    return QuadraticEmulator(theta, steps, coefficients, np.zeros_like(middle), cross=False)


def multiplicities(
    generator: np.random.Generator, flavour: NDArray[np.int64], number: int, fractions: Floats
) -> NDArray[np.int64]:
    """How often each of N jets is drawn, (N,): ``number`` in all, flavours by ``fractions``."""
    times = np.zeros(len(flavour), dtype=np.int64)
    for index, count in enumerate(generator.multinomial(number, fractions)):
        rows = np.flatnonzero(flavour == index)
        if count:
            times[rows] = generator.multinomial(int(count), np.full(len(rows), 1.0 / len(rows)))
    return times


def with_drawn_imperfections(
    likelihood: BinnedLikelihood, generator: np.random.Generator
) -> BinnedLikelihood:
    """The same likelihood without statistical error of simulation, its data off by the modelling error."""
    noise = generator.standard_normal(len(likelihood.observed))
    return replace(
        likelihood,
        observed=likelihood.observed * np.maximum(1 + likelihood.modelling * noise, 0.0),
        simulation_variance=np.zeros_like(likelihood.simulation_variance),
    )


def prepare_inference(
    regions: Sequence[RegionTracks],
    donors: Donors,
    config: InferenceConfig,
    seed: int,
    points: int,
    scratch: Path,
    on_point: Callable[[int], None] = lambda _: None,
) -> DetectorInference:
    """Simulate ``points`` detectors of the prior (at least 2 per term); chunks in ``scratch`` are kept.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    """
    rates = SmearedRates(regions, donors, seed)
    counts = tuple(count_samples(region.simulation) for region in regions)
    points = max(points, 2 * n_terms(len(PARAMETERS), cross=False))
    widths = prior_widths(config.prior_width)
    design = gaussian_design(NOMINAL.vector(), widths, points, seed + 1)
    design = np.stack([SmearingParameters.from_vector(theta).vector() for theta in design])
    digest = hashlib.sha256(f"{seed} {FLAVOURS} {PARAMETERS}".encode())
    for one in counts:
        digest.update(one.total.tobytes() + one.spread.tobytes())
    outputs = evaluate_detectors(rates, design, scratch, digest.hexdigest()[:16], 0, on_point)
    emulator = fit_emulator(design, outputs, NOMINAL.vector(), widths, cross=False)
    return DetectorInference(tuple(regions), rates, counts, emulator, config)
