"""The two ways from tracks to the posterior of theta, and what each says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import PARAMETERS, SPACES
from selfcal.run.context import RunContext
from selfcal.sbi.chain_check import chain_available, compare_with_chain, log_density_of
from selfcal.sbi.diagnostics import predictive_check
from selfcal.sbi.donors import Donors
from selfcal.sbi.generator_check import GeneratorCheck, JetSimulator, check_generator
from selfcal.sbi.inference import RegionTracks, design_sizes, infer_detector, infer_smearing
from selfcal.sbi.jet_predictive import predictive_jets, shares_of, split_numbers
from selfcal.sbi.neural_inference import (
    NeuralInference,
    fit_of_jets,
    infer_neural,
    moves_of_networks,
    with_error,
)
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.resimulation import ResimulatedRates
from selfcal.sbi.set_posterior import compare_with_sets

Floats = NDArray[np.float64]


GENERATOR_ERRORS = ("modelling_error", "multiplicity_error")
"""What the configuration says about the generator."""


@dataclass(frozen=True)
class Estimate:
    """A posterior and its checks.

    Attributes
    ----------
    posterior : as the likelihood gives it
    predicted : posterior predictive check, the row of everything first; regions by index; with the errors
        of the generator that were configured
    shares : (R, F) fitted composition
    chain : comparison with a Markov chain, if there is one
    details : what else ``posterior.json`` says of the method
    """

    posterior: Posterior
    donors: Donors | None
    predicted: list[dict[str, Any]]
    shares: Floats
    chain: dict[str, Any] | None
    details: dict[str, Any]


def estimate(context: RunContext, tracks: Sequence[RegionTracks]) -> Estimate:
    """By ``inference.method``.

    Raises
    ------
    DataError
        If fields are absent or there are no tracks.
    FitError
        If a fit does not converge.
    """
    method = _neural if context.config.inference.method == "neural" else _binned
    return method(context, tracks)


def _binned(context: RunContext, tracks: Sequence[RegionTracks]) -> Estimate:
    config, seed = context.config.inference, context.config.seed
    space = SPACES[config.model]
    tracker = context.progress("detectors simulated", sum(design_sizes(config, space)))
    scratch = context.directory.checkpoints / "inference"
    if config.model == "generator":
        rates = ResimulatedRates(context, [one.name for one in tracks])
        found = infer_detector(tracks, rates, space, config, seed, scratch=scratch, on_point=tracker.update)
    else:
        found = infer_smearing(tracks, config, seed, scratch=scratch, on_point=tracker.update)
    predicted = predictive_check(found.likelihood, found.fit, seed)
    checked = _checked(context, tracks, found.posterior, found.simulator)
    if checked is not None and checked.noticed:
        found = found.with_error(checked.error)
    chain, size = None, len(space.names)
    if _chain_wanted(context):
        density = log_density_of(partial(found.likelihood.residuals, variance=found.fit.variance))
        chain = compare_with_chain(density, found.fit.best, found.fit.covariance, size, seed)
    prior = found.likelihood.fractions
    tilt = found.fit.best[size:].reshape(prior.shape)
    return Estimate(
        found.posterior,
        found.donors,
        predicted,
        shares_of(prior, found.likelihood.relative_width, tilt),
        chain,
        {"generator": checked and checked.content()},
    )


def _neural(context: RunContext, tracks: Sequence[RegionTracks]) -> Estimate:
    config, seed = context.config.inference, context.config.seed
    neural = config.neural
    batches = context.progress("batches of jets learnt", neural.networks * neural.steps)
    points = context.progress("detectors simulated", sum(design_sizes(config)))
    found = infer_neural(
        tracks,
        config,
        seed,
        scratch=context.directory.checkpoints / "inference",
        on_step=batches.update,
        on_point=points.update,
    )
    donors = found.ensemble.donors
    predicted = predictive_jets(
        tracks, found.data, found.fit.best, found.fit.covariance, donors, config, seed
    )
    checked = _checked(context, tracks, found.posterior, found.means)
    if checked is not None and checked.noticed:
        errors = {name: max(getattr(config, name), checked.error) for name in GENERATOR_ERRORS}
        config = config.model_copy(update=errors)
        found = with_error(found, tracks, config)
    likelihood, fit = found.likelihood, found.fit
    chain, sets = _checks(context, tracks, found, config)
    tilt = split_numbers(fit.best, *likelihood.fractions.shape)[1]
    sigma = np.sqrt(np.diag(fit.covariance)[: len(PARAMETERS)])
    spread = moves_of_networks(found).std(axis=0)
    details = {
        "ensemble": {"networks": neural.networks, "spread": (spread / sigma).tolist()},
        "set_posterior": sets,
        "generator": checked and checked.content(),
    }
    shares = shares_of(likelihood.fractions, likelihood.relative_width, tilt)
    return Estimate(found.posterior, donors, predicted, shares, chain, details)


def _checked(
    context: RunContext, tracks: Sequence[RegionTracks], posterior: Posterior, simulator: JetSimulator
) -> GeneratorCheck | None:
    """Data against simulation outside of what the detector is inferred from."""
    if not context.config.inference.generator_check:
        return None
    context.say("infer: is the generator right, where the detector was not inferred from?")
    return check_generator(tracks, posterior, simulator)


def _checks(
    context: RunContext, tracks: Sequence[RegionTracks], found: NeuralInference, config: InferenceConfig
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Laplace against a Markov chain; for few jets, the likelihood against the amortised posterior."""
    seed = context.config.seed
    chain, sets = None, None
    if _chain_wanted(context):
        density = log_density_of(partial(found.likelihood.residuals, whitening=found.likelihood.whitening()))
        chain = compare_with_chain(density, found.fit.best, found.fit.covariance, len(PARAMETERS), seed)
    if config.neural.sets:
        context.say("infer: amortised posterior of whole samples as a check of the likelihood")
        chosen = np.random.default_rng(seed).permutation(len(found.data))[: config.neural.check_jets]
        few = found.data.select(np.sort(chosen))
        fit, judged = fit_of_jets(found, few, tracks, config), found.ensemble
        sets = compare_with_sets(
            regions=tracks,
            embedding=judged.of_data,
            data=few,
            best=fit.best,
            covariance=fit.covariance,
            donors=judged.donors,
            config=config,
            seed=seed,
        )
    return chain, sets


def _chain_wanted(context: RunContext) -> bool:
    if not context.config.inference.chain_check:
        return False
    if not chain_available():
        context.say("infer: no Markov chain as a check: pyro is not installed (extra 'chain')")
        return False
    context.say("infer: Markov chain as a check of the posterior")
    return True
