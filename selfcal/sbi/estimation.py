"""The two ways from tracks to the posterior of theta, and what each says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.run.context import RunContext
from selfcal.sbi.chain_check import binned_log_density, chain_available, compare_with_chain
from selfcal.sbi.diagnostics import predictive_check
from selfcal.sbi.donors import Donors
from selfcal.sbi.inference import RegionTracks, design_sizes, infer_detector, infer_smearing
from selfcal.sbi.jet_bank import simulated_rows
from selfcal.sbi.jet_predictive import predictive_jets, shares_of, split_numbers
from selfcal.sbi.neural_inference import NeuralInference, infer_neural, likelihood_of
from selfcal.sbi.parameters import PARAMETERS, SPACES
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.resimulation import ResimulatedRates
from selfcal.sbi.set_posterior import compare_with_sets
from selfcal.sbi.unbinned_likelihood import fit_unbinned

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A posterior and its checks.

    Attributes
    ----------
    posterior : as the likelihood gives it
    predicted : posterior predictive check, the row of everything first; regions by index
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
    chain, size = None, len(space.names)
    if _chain_wanted(context):
        density = binned_log_density(found.likelihood, found.fit.variance)
        chain = compare_with_chain(density, found.fit.best, found.fit.covariance, size, seed)
    prior = found.likelihood.fractions
    tilt = found.fit.best[size:].reshape(prior.shape)
    return Estimate(
        found.posterior,
        found.donors,
        predictive_check(found.likelihood, found.fit, seed),
        shares_of(prior, found.likelihood.relative_width, tilt),
        chain,
        {},
    )


def _neural(context: RunContext, tracks: Sequence[RegionTracks]) -> Estimate:
    config, seed = context.config.inference, context.config.seed
    neural = config.neural
    batches = context.progress("batches of jets learnt", neural.networks * neural.steps)
    fits = context.progress("networks fitted", neural.networks)
    found = infer_neural(
        tracks,
        config,
        seed,
        scratch=context.directory.checkpoints / "inference",
        on_step=batches.update,
        on_fit=fits.update,
    )
    likelihood, donors = found.likelihoods[0], found.ensemble.donors
    predicted = predictive_jets(tracks, likelihood.rows, found.best, found.covariance, donors, config, seed)
    chain, sets = _checks(context, tracks, found)
    tilt = split_numbers(found.best, *likelihood.fractions.shape)[1]
    details = {
        "ensemble": {"networks": len(found.fits), "spread": found.spread.tolist()},
        "set_posterior": sets,
    }
    shares = shares_of(likelihood.fractions, likelihood.relative_width, tilt)
    return Estimate(found.posterior, donors, predicted, shares, chain, details)


def _checks(
    context: RunContext, tracks: Sequence[RegionTracks], found: NeuralInference
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Laplace for one network and few jets, against a Markov chain and the amortised posterior."""
    config, seed = context.config.inference, context.config.seed
    wanted = _chain_wanted(context)
    if not wanted and not config.neural.sets:
        return None, None
    every, ensemble = found.likelihoods[0].rows, found.ensemble
    chosen = np.random.default_rng(seed).permutation(len(every))[: config.neural.check_jets]
    few = every.select(np.sort(chosen))
    likelihood = likelihood_of(ensemble.densities[0], ensemble.simulation, few, tracks, config)
    fit = fit_unbinned(likelihood, config.modelling_error, found.best)
    chain, sets, size = None, None, len(PARAMETERS)
    if wanted:
        chain = compare_with_chain(likelihood.log_density, fit.best, fit.covariance, size, seed)
        chain["jets"] = len(few)
    if config.neural.sets:
        context.say("infer: amortised posterior of whole samples as a check of the likelihood")
        bank = simulated_rows([one.simulation for one in tracks], ensemble.donors, config, seed)
        sets = compare_with_sets(tracks, bank, few, fit.best, fit.covariance, ensemble.donors, config, seed)
    return chain, sets


def _chain_wanted(context: RunContext) -> bool:
    if not context.config.inference.chain_check:
        return False
    if not chain_available():
        context.say("infer: no Markov chain as a check: pyro is not installed (extra 'chain')")
        return False
    context.say("infer: Markov chain as a check of the posterior")
    return True
