"""Maps by every distance between samples: what each finds, and in which unit it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.penalty.choice import DISTANCES
from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.energy import LEADING_SHARE, mean_distance_within
from selfcal.transport.averaged_descent import DistanceSchedule
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import (
    CompositionPrior,
    cost_of_distance,
    distance_features,
    fit_by_distance,
)
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.sample import Sample

SHIFT = torch.tensor([0.25, 0.0, -0.15])
FLAVOUR = 2


def drawn(jets: int, seed: int, shift: torch.Tensor, *, labelled: bool) -> Sample:
    """One region of one flavour: a Gaussian, moved by ``shift``."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(jets, 3, generator=generator, dtype=torch.float64) + shift.double()
    conditions = torch.randn(jets, CONDITIONS, generator=generator, dtype=torch.float64)
    flavour = torch.full((jets,), FLAVOUR if labelled else -1)
    place = torch.zeros(jets, dtype=torch.int64)
    return Sample(u, conditions, flavour, place, torch.arange(jets), torch.ones(jets, dtype=torch.float64))


@pytest.mark.parametrize(("distance", "price"), [*((one, 0.0) for one in DISTANCES), ("energy", 1e-4)])
def test_a_shift_is_found(distance: str, price: float) -> None:
    """The map from one Gaussian to the other moves every jet by the same vector, also at a small price."""
    simulation = drawn(4000, 1, torch.zeros(3), labelled=True)
    data = drawn(4000, 2, SHIFT, labelled=False)
    pure = torch.full((1, 4), 1e-6, dtype=torch.float64)
    pure[0, FLAVOUR] = 1.0
    torch.manual_seed(3)
    maps = build_maps(MapConfig(family="residual", displacement_scale=10.0), 3, CONDITIONS)
    fit_by_distance(
        simulation,
        data,
        CompositionPrior(pure, 1e-3 * torch.ones_like(pure)),
        maps,
        pure,
        DistanceSchedule(100, 256, 1e-2),
        torch.Generator().manual_seed(4),
        price,
        distance=distance,
    )
    moved = maps(simulation.coordinates, simulation.flavour, simulation.conditions) - simulation.coordinates
    wanted = data.coordinates.mean(0) - simulation.coordinates.mean(0)
    assert moved.mean(0).numpy() == pytest.approx(wanted.numpy(), abs=0.06)
    # Nothing else moves, but a little where jets are few.
    assert float((moved - wanted).square().sum(1).mean().sqrt()) < 0.25


def test_the_measured_unit_of_the_energy_distance_is_the_known_one() -> None:
    data = drawn(3000, 5, SHIFT, labelled=False)
    size = 1500.0
    known = 0.5 * size / LEADING_SHARE / float(mean_distance_within(distance_features(data), data.weight))
    found = cost_of_distance(DISTANCES["energy"](5), data, size, 256, torch.Generator().manual_seed(1))
    # The measured unit adds up all eigenvalues, the known one takes the leading of them.
    assert 0.3 * known < found < 1.5 * known


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_distance_costs_what_a_likelihood_costs(distance: str) -> None:
    """A shift by δ changes -ln L of n Gaussian jets by n δ²/2; a distance in its unit by no more than a few
    times that, and by no less than a thirtieth: maps by different distances obey the same prior."""
    data = drawn(4000, 6, torch.zeros(3), labelled=False)
    jets, shift = 4000.0, 0.3
    penalty = DISTANCES[distance](5)
    price = cost_of_distance(penalty, data, 0.5 * jets, 512, torch.Generator().manual_seed(2))
    other = drawn(4000, 7, torch.tensor([shift, 0.0, 0.0]), labelled=False)
    same = drawn(4000, 7, torch.zeros(3), labelled=False)
    reference, moved, unmoved = (
        PenaltySample(distance_features(part)[:1500], part.weight[:1500]) for part in (data, other, same)
    )
    cost = price * float(penalty(moved, reference) - penalty(unmoved, reference))
    likelihood = 0.5 * (0.5 * jets) * shift**2
    assert likelihood / 30 < cost < 3 * likelihood
    assert np.isfinite(cost)
