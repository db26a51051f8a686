"""From simulated and observed tracks to the posterior of the smearing parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import SMEARING, ParameterSpace, SmearingParameters
from selfcal.data.jets import Jets
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.sbi.binned_likelihood import (
    BinnedLikelihood,
    LaplaceFit,
    Observation,
    build_likelihood,
    fit_laplace,
)
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.emulator import QuadraticEmulator, fit_emulator, gaussian_design, n_terms
from selfcal.sbi.noise import draw_noise
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.smearing import smear
from selfcal.sbi.summaries import Counts, count_samples

Floats = NDArray[np.float64]
Progress = Callable[[int], None]
Rates = Callable[[Floats], Floats]
"""A simulator as the inference sees it: θ (D,) -> rates per jet of regions, flavours and bins, (R F B,)."""
CHUNK = 16
"""Points of a design per file: what a killed inference loses at most."""
SECOND_REACH = 3.0
"""Width of the second design in standard deviations of the first posterior ..."""
SECOND_WIDTH_MIN = 0.1
"""... at least this part of the prior's width, at most all of it."""


@dataclass(frozen=True)
class RegionTracks:
    """Simulated and observed jets of one region, and the prior of its composition, (F,) each."""

    name: str
    simulation: Sequence[Jets]
    data: Sequence[Jets]
    fractions: Floats
    relative_width: Floats


@dataclass(frozen=True)
class Inference:
    """What :func:`infer_detector` finds with ``simulator``; ``donors`` where tracks were smeared."""

    posterior: Posterior
    donors: Donors | None
    likelihood: BinnedLikelihood
    fit: LaplaceFit
    simulator: Simulator

    def with_error(self, relative_error: float) -> Inference:
        """Fitted again with at least this relative error of the generator in every bin.

        Raises
        ------
        FitError
            If the fit does not converge.
        """
        modelling = np.maximum(self.likelihood.modelling, relative_error)
        likelihood = replace(self.likelihood, modelling=modelling)
        fit = fit_laplace(likelihood, self.fit.best)
        posterior = _posterior(likelihood, fit, self.posterior.space)
        return replace(self, posterior=posterior, likelihood=likelihood, fit=fit)


class Simulator(Protocol):
    """The simulation of R regions under a detector θ (D,)."""

    def __call__(self, theta: Floats) -> Floats:
        """Rates per jet of regions, flavours and bins, (R F B,)."""

    def jets(self, region: int, theta: Floats) -> list[Jets]:
        """The samples of one region."""


class EmulatedLikelihood(Protocol):
    """What a likelihood must say of its free numbers."""

    def theta(self, x: Floats) -> Floats: ...


class GaussianFit(Protocol):
    """Best fit and covariance of all free numbers, parameters of interest first."""

    @property
    def best(self) -> Floats: ...

    @property
    def covariance(self) -> Floats: ...


Emulated = TypeVar("Emulated", bound=EmulatedLikelihood)
Fit = TypeVar("Fit", bound=GaussianFit)


class SmearedRates:
    """θ -> rates per jet of all regions, flavours and bins, (R F B,)."""

    def __init__(self, regions: Sequence[RegionTracks], donors: Donors, seed: int) -> None:
        self.donors, self.seed = donors, seed
        self.samples = [[(jets, draw_noise(jets, seed)) for jets in region.simulation] for region in regions]

    def __call__(self, theta: Floats) -> Floats:
        return stacked_rates(self, len(self.samples), theta)

    def jets(self, region: int, theta: Floats) -> list[Jets]:
        """The samples of one region, smeared."""
        parameters = SmearingParameters.from_vector(theta)
        return [
            smear(jets, parameters, self.donors, self.seed, noise) for jets, noise in self.samples[region]
        ]


def stacked_rates(simulator: Simulator, regions: int, theta: Floats) -> Floats:
    """Rates per jet in the jets that a simulator gives, (R F B,)."""
    counts = [count_samples(simulator.jets(r, theta), with_spread=False) for r in range(regions)]
    return np.concatenate([per_jet(one).ravel() for one in counts])


def per_jet(counts: Counts) -> Floats:
    """Mean number of tracks per jet, (F, B); zero where there is no jet of a flavour."""
    return np.asarray(counts.total / np.maximum(counts.jets, 1e-12)[:, None])


def infer_smearing(
    regions: Sequence[RegionTracks],
    config: InferenceConfig,
    seed: int,
    *,
    scratch: Path | None = None,
    on_point: Progress = lambda _: None,
) -> Inference:
    """:func:`infer_detector` with the given simulation, its tracks smeared.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If the fit does not converge.
    """
    donors = collect_donors([jets for region in regions for jets in region.simulation], seed)
    rates = SmearedRates(regions, donors, seed)
    found = infer_detector(regions, rates, SMEARING, config, seed, scratch=scratch, on_point=on_point)
    return replace(found, donors=donors)


def infer_detector(
    regions: Sequence[RegionTracks],
    simulator: Simulator,
    space: ParameterSpace,
    config: InferenceConfig,
    seed: int,
    *,
    scratch: Path | None = None,
    on_point: Progress = lambda _: None,
) -> Inference:
    """The posterior by two designs (:func:`two_designs`).

    With ``scratch`` every ``CHUNK`` points leave a file there, named by everything that decides them, and are
    not evaluated again.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If the fit does not converge.
    """
    observations = [
        Observation(
            region.name,
            count_samples(region.data).pooled(),
            count_samples(region.simulation),
            region.fractions,
            region.relative_width,
        )
        for region in regions
    ]
    nominal, widths = space.nominal, space.widths(config.prior_width)
    *_, (likelihood, fit) = two_designs(
        simulator,
        lambda emulator: build(observations, emulator, nominal, widths, config),
        fit_laplace,
        space,
        config,
        seed,
        scratch=scratch,
        identity=_identity(observations, space, seed),
        on_point=on_point,
    )
    return Inference(_posterior(likelihood, fit, space), None, likelihood, fit, simulator)


def _posterior(likelihood: BinnedLikelihood, fit: LaplaceFit, space: ParameterSpace) -> Posterior:
    size, widths = len(space.names), likelihood.prior_width
    covariance = fit.covariance[:size, :size] * np.outer(widths, widths)
    return Posterior(space.within(likelihood.theta(fit.best)), covariance, widths, space)


def two_designs(
    simulated: Rates,
    likelihood_with: Callable[[QuadraticEmulator], Emulated],
    fitted: Callable[[Emulated, Floats | None], Fit],
    space: ParameterSpace,
    config: InferenceConfig,
    seed: int,
    *,
    scratch: Path | None,
    identity: str,
    on_point: Progress,
) -> list[tuple[Emulated, Fit]]:
    """Emulate ``simulated`` over the prior, fit, and again around what was found: both likelihoods and fits.

    The first emulator has no products of parameters. ``identity`` names what is simulated.

    Raises
    ------
    FitError
        If a fit does not converge.
    """
    nominal, widths = space.nominal, space.widths(config.prior_width)
    centre, reach, done, size = nominal, widths, 0, len(space.names)
    rounds: list[tuple[Emulated, Fit]] = []
    for number, points in enumerate(design_sizes(config, space), start=1):
        cross = number == 2
        design = gaussian_design(centre, reach, points, seed + number)
        # What a simulator cannot do (a negative rate) is evaluated at its nearest neighbour.
        design = space.within(design)
        outputs = evaluate_detectors(simulated, design, scratch, identity, done, on_point)
        done += points
        likelihood = likelihood_with(fit_emulator(design, outputs, centre, reach, cross=cross))
        fit = fitted(likelihood, rounds[-1][1].best if rounds else None)
        rounds.append((likelihood, fit))
        sigma = np.sqrt(np.diag(fit.covariance)[:size])
        centre = space.within(likelihood.theta(fit.best))
        reach = widths * np.clip(SECOND_REACH * sigma, SECOND_WIDTH_MIN, 1.0)
    return rounds


def build(
    observations: Sequence[Observation],
    emulator: QuadraticEmulator,
    nominal: Floats,
    widths: Floats,
    config: InferenceConfig,
) -> BinnedLikelihood:
    """The likelihood with the configured errors."""
    return build_likelihood(
        observations,
        emulator,
        nominal,
        widths,
        modelling_error=config.modelling_error,
        multiplicity_error=config.multiplicity_error,
    )


def design_sizes(config: InferenceConfig, space: ParameterSpace = SMEARING) -> tuple[int, int]:
    """Points of both designs; the second one at least 1.4 per term of its emulator."""
    first, second = (n_terms(len(space.names), cross=cross) for cross in (False, True))
    return max(int(2 * first), config.points // 3), max(int(1.4 * second), config.points)


def _identity(observations: Sequence[Observation], space: ParameterSpace, seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {space.names}".encode())
    for one in observations:
        for counts in (one.simulation, one.data):
            digest.update(counts.total.tobytes() + counts.spread.tobytes())
    return digest.hexdigest()[:16]


def evaluate_detectors(
    rates: Rates,
    design: Floats,
    scratch: Path | None,
    identity: str,
    done: int,
    on_point: Progress,
) -> Floats:
    """``rates`` at every point of ``design``, (n, R F B); chunks found in ``scratch`` are read.

    ``identity`` names what the rates are made of; ``on_point`` counts on from ``done``.
    """
    outputs: list[Floats] = []
    for first in range(0, len(design), CHUNK):
        chunk = design[first : first + CHUNK]
        key = hashlib.sha256(identity.encode() + chunk.tobytes()).hexdigest()[:20]
        path = scratch / f"points-{key}.safetensors" if scratch is not None else None
        if path is not None and path.exists():
            outputs.append(read_arrays(path)["rates"])
        else:
            values = []
            for theta in chunk:
                values.append(rates(theta))
                on_point(done + first + len(values))
            outputs.append(np.stack(values))
            if path is not None:
                write_arrays(path, {"rates": outputs[-1]})
        on_point(done + first + len(chunk))
    return np.concatenate(outputs)
