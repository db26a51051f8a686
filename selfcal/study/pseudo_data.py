"""The worlds of pseudo-experiments: detector, composition and remainder, each drawn from its prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, SmearingParameters
from selfcal.data.flavours import FLAVOURS
from selfcal.sbi.emulator import DESIGN_REACH
from selfcal.study.population import RegionPopulation
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import CONDITIONS, ScoreFrame, condition_features
from selfcal.transport.maps import FlavourMaps

Floats = NDArray[np.float64]
FRACTION_MIN = 0.1
"""No true fraction is drawn below this part of its central value."""


@dataclass(frozen=True)
class World:
    """What is true in one pseudo-experiment.

    Attributes
    ----------
    parameters : of the detector
    fractions : (R, F), rows sum to one
    remainder : what data differ in beyond the detector: a small affine map of each flavour's scores
    """

    parameters: SmearingParameters
    fractions: Floats
    remainder: FlavourMaps

    def scores(self, population: RegionPopulation, log_probability: Floats, frame: ScoreFrame) -> Floats:
        """The scores of a region's population in this world, from those under its detector."""
        with torch.no_grad():
            moved = self.remainder(
                frame.enter(torch.from_numpy(log_probability)),
                torch.from_numpy(population.flavour),
                condition_features(population.pt_gev, population.abs_eta),
            )
            return np.asarray(frame.leave(moved).numpy())


def draw_world(
    generator: np.random.Generator,
    detector_width: Floats,
    prior: CompositionPrior,
    present: NDArray[np.bool_],
    coordinates: int,
    remainder_width: float,
) -> World:
    """Detector ~ N(nominal, ``detector_width``), fractions ~ ``prior``, remainder ~ the stiff map's prior.

    Parameters
    ----------
    detector_width : (D,) in the order of ``PARAMETERS``; zero keeps a parameter
    present : (R, F) flavours that a region's population has; the others have no jets to draw
    remainder_width : prior width of the affine map's constant terms, half of it for its slopes
    """
    steps = np.clip(generator.standard_normal(len(detector_width)), -DESIGN_REACH, DESIGN_REACH)
    parameters = SmearingParameters.from_vector(NOMINAL.vector() + detector_width * steps)
    centre, width = prior.fractions.numpy(), prior.uncertainty.numpy()
    drawn = centre + width * generator.standard_normal(centre.shape)
    drawn = np.where(present, np.maximum(drawn, FRACTION_MIN * centre), 0.0)
    remainder = FlavourMaps(lambda: AffineMap(coordinates, CONDITIONS, max(remainder_width, 1e-12)))
    with torch.no_grad():
        for flavour in range(len(FLAVOURS)):
            one: Any = remainder.of(flavour)
            for parameter, scale in ((one.constant, remainder_width), (one.slope, 0.5 * remainder_width)):
                parameter.copy_(scale * torch.from_numpy(generator.standard_normal(parameter.shape)))
    remainder.requires_grad_(requires_grad=False)
    return World(parameters, drawn / drawn.sum(axis=1, keepdims=True), remainder)
