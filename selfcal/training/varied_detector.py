"""Simulation whose detector is drawn anew in every epoch, for a tagger that does not rely on one detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, SmearingParameters, prior_widths
from selfcal.data.jets import Jets
from selfcal.run.context import RunContext
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.posterior import load_posterior
from selfcal.sbi.smearing import smear
from selfcal.tagger.batching import TensorJets, join

SLICES = 8
"""Detectors per epoch and chunk of jets."""

Augmentation = Callable[[Jets, int], Jets]
"""Jets in an epoch, as another detector would have measured them: the same jets in the same order."""


@dataclass(frozen=True)
class RandomDetector:
    """Smears tracks with parameters θ = nominal + Σ_j z_j e_j, z normal, drawn anew in every epoch.

    Attributes
    ----------
    directions : (J, D) the e_j, one standard deviation each, in the order of ``PARAMETERS``
    donors : tracks and resolutions of the simulation that is smeared
    """

    directions: NDArray[np.float64]
    donors: Donors
    seed: int

    def __call__(self, jets: Jets, epoch: int) -> Jets:
        """All of ``jets`` in one detector, a function of (jets, epoch, seed) alone."""
        first = [int(jets.event[0]), int(jets.jet_index[0])] if len(jets) else [0, 0]
        generator = np.random.default_rng([self.seed, epoch, len(jets), *np.abs(first)])
        normal = generator.normal(size=len(self.directions))
        parameters = SmearingParameters.from_vector(NOMINAL.vector() + normal @ self.directions)
        return smear(jets, parameters, self.donors, int(generator.integers(2**31)))


def prior_detector(samples: Sequence[Jets], seed: int) -> RandomDetector:
    """The prior of the detector around ``samples``."""
    return RandomDetector(np.diag(prior_widths({})), collect_donors(samples, seed), seed)


def remaining_detector(context: RunContext, samples: Sequence[Jets]) -> RandomDetector:
    """What is left of the prior after the inference of the detector; all of it where there was none."""
    prior = prior_detector(samples, context.config.seed)
    if not context.config.inference.enabled:
        return prior
    posterior, _, _ = load_posterior(context.directory.results)
    return replace(prior, directions=posterior.directions())


def varied_tensors(
    samples: Sequence[Jets], tensors_of: Callable[[Jets], TensorJets], augmentation: Augmentation, epoch: int
) -> TensorJets:
    """The inputs of all ``samples`` in an epoch, row by row as without augmentation.

    Every sample is cut into ``SLICES`` that each see their own detector.
    """
    return join(
        [
            tensors_of(augmentation(jets.select(rows), epoch))
            for jets in samples
            for rows in np.array_split(np.arange(len(jets)), min(SLICES, max(1, len(jets))))
        ]
    )
