"""Flavours that no control region determines: no map, and an uncertainty taken from the nearest neighbour."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.sample import Sample


def with_extrapolated(
    stiff: FlavourMaps, undetermined: Sequence[int], simulation: Sample, map_scale: float
) -> FlavourMaps:
    """The stiff maps, with those of undetermined flavours replaced by what their uncertainty is to be.

    The nominal map of such a flavour is the identity, and the stiff maps are the other model from which
    fit and closure take the uncertainty of the map. So its stiff map makes half the step of the nearest
    determined flavour (mean scores in simulation); where that moves the flavour's jets by less than the
    prior's width ``map_scale`` (root mean square per coordinate), it shifts them by that width.
    """
    result = copy.deepcopy(stiff)
    determined = [index for index in range(len(FLAVOURS)) if index not in undetermined]
    centres = [_mean(simulation, index) for index in range(len(FLAVOURS))]
    for index in undetermined:
        replaced = result.of(index)
        assert isinstance(replaced, AffineMap)
        distances = [float((centres[index] - centres[other]).norm()) for other in determined]
        with torch.no_grad():
            for parameter in replaced.parameters():
                parameter.zero_()
            if determined:
                nearest = stiff.of(determined[min(range(len(determined)), key=distances.__getitem__)])
                for parameter, other in zip(replaced.parameters(), nearest.parameters(), strict=True):
                    parameter.copy_(0.5 * other)
            own = simulation.rows(simulation.flavour == index)
            moved = replaced.displacement(own.coordinates, own.conditions)
            width = simulation.coordinates.shape[1]
            if not len(own) or float(moved.mean()) < width * map_scale**2:
                for parameter in replaced.parameters():
                    parameter.zero_()
                replaced.constant[width : 2 * width] = map_scale
    return result


def _mean(simulation: Sample, flavour: int) -> Float[Tensor, " coordinates"]:
    own = simulation.coordinates[simulation.flavour == flavour]
    return own.mean(0) if len(own) else simulation.coordinates.mean(0)
