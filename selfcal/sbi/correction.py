"""The posterior of the detector as corrections of simulated jets."""

from __future__ import annotations

from functools import partial

from selfcal.config.smearing_parameters import SmearingParameters
from selfcal.data.jets import Jets
from selfcal.data.samples import Correction, Replacement
from selfcal.run.context import RunContext
from selfcal.sbi.donors import Donors
from selfcal.sbi.posterior import load_posterior, read_posterior
from selfcal.sbi.resimulation import resimulated
from selfcal.sbi.smearing import smear


def load_correction(context: RunContext) -> tuple[Correction | None, tuple[Correction, ...]]:
    """The posterior mean as a correction, and one standard deviation along each of its directions.

    Neither where the run infers no detector. The same random numbers serve all of them.
    """
    if not context.config.inference.enabled:
        return None, ()
    if context.config.inference.model == "generator":
        found = read_posterior(context.directory.results)
        centre, *shifted = (
            Replacement(partial(resimulated, context, theta=theta))
            for theta in (found.mean, *(found.mean + found.directions()))
        )
        return centre, tuple(shifted)
    posterior, donors, seed = load_posterior(context.directory.results)
    directions = (SmearingParameters.from_vector(posterior.mean + shift) for shift in posterior.directions())
    varied = tuple(partial(_smeared, parameters=one, donors=donors, seed=seed) for one in directions)
    return partial(_smeared, parameters=posterior.parameters, donors=donors, seed=seed), varied


def _smeared(jets: Jets, parameters: SmearingParameters, donors: Donors, seed: int) -> Jets:
    return smear(jets, parameters, donors, seed)
