"""Templates of the measure fold under one prior width of every detector parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, SmearingParameters, prior_widths
from selfcal.data.folds import UNTRAINED
from selfcal.data.samples import jets_in, training_fold
from selfcal.data.score_files import within_abs_eta
from selfcal.likelihood.build import MeasureFold
from selfcal.likelihood.templates import count_by_flavour
from selfcal.run.context import RunContext
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.noise import draw_noise
from selfcal.sbi.posterior import load_posterior
from selfcal.sbi.smearing import smear
from selfcal.tagger.bundle import load_bundle
from selfcal.training.scores_stage import scored, scorer_of
from selfcal.transport.calibration import Calibration
from selfcal.transport.control_regions import cards_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Centre:
    """The detector of the run's simulation, the donors of its tracks and the seed of its noise."""

    theta: Float[Floats, " D"]
    donors: Donors
    seed: int


def run_centre(context: RunContext) -> Centre:
    """The posterior mean where the run inferred one, else the simulation as it is."""
    if context.config.inference.enabled:
        posterior, donors, seed = load_posterior(context.directory.results)
        return Centre(posterior.parameters.vector(), donors, seed)
    seed = context.config.seed
    return Centre(NOMINAL.vector(), collect_donors(training_fold(context), seed), seed)


def prior_variations(
    context: RunContext,
    fold: MeasureFold,
    calibration: Calibration,
    centre: Centre,
    on_region: Callable[[str], None],
) -> Float[Floats, "D R F P K"]:
    """Calibrated templates with each parameter in turn one prior width above the ``centre``.

    Raises
    ------
    DataError
        If the tracks lack what the smearing needs.
    """
    scorer = scorer_of(load_bundle(context.directory.checkpoints / "tagger_final"))
    steps = np.diag(prior_widths(context.config.inference.prior_width))
    detectors = [SmearingParameters.from_vector(centre.theta + step) for step in steps]
    folds, by_region = context.config.data.folds_for("simulation"), []
    for region in calibration.regions:
        on_region(region)
        samples = [
            (jets, draw_noise(jets, centre.seed))
            for card in cards_of(context, "simulation", region)
            for jets in jets_in(context, card, UNTRAINED)
        ]
        counts = []
        for detector in detectors:
            smeared = (smear(jets, detector, centre.donors, centre.seed, noise) for jets, noise in samples)
            jets = scored(scorer, smeared, region, folds, labelled=True)
            jets = within_abs_eta(jets, context.config.fit.abs_eta_edges)
            moved = calibration.apply(jets, calibration.nominal)
            counts.append(count_by_flavour(moved, fold.discriminant(moved), fold.binning)[0])
        by_region.append(np.stack(counts))
    return np.stack(by_region, axis=1)
