"""Samples of several regions, and what refuses to work with too few or undefined jets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfcal.config.calibration import BaseDensityConfig
from selfcal.data.scored import concatenate
from selfcal.errors import DataError, FitError
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.base_density import fit_base_densities
from selfcal.transport.composition import _minibatch
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.optimality import displacement_table
from selfcal.transport.sample import Sample, build_sample
from tests.transport.synthetic_world import REGIONS, SyntheticWorld

QUICK = BaseDensityConfig(steps=1, hidden_width=4, transforms=1)


@pytest.fixture(scope="module")
def frame(world: SyntheticWorld) -> ScoreFrame:
    return ScoreFrame.from_jets(concatenate(list(world.simulation.values())))


@pytest.fixture(scope="module")
def simulation(world: SyntheticWorld, frame: ScoreFrame) -> Sample:
    return build_sample(world.simulation, REGIONS, frame)


def test_a_region_needs_two_jets(world: SyntheticWorld, frame: ScoreFrame) -> None:
    first = world.simulation[REGIONS[1]]
    jets = world.simulation | {REGIONS[1]: first.select(torch.arange(len(first)).numpy() == 5)}
    with pytest.raises(DataError, match=f"region '{REGIONS[1]}' has 1 jets in this fold") as caught:
        build_sample(jets, REGIONS, frame)
    assert caught.value.where == REGIONS[1]


def test_a_density_needs_fifty_jets_of_each_flavour(simulation: Sample) -> None:
    tau = torch.nonzero(simulation.flavour == 3)[:, 0]
    keep = torch.ones(len(simulation), dtype=torch.bool)
    keep[tau[49:]] = False
    generator = torch.Generator().manual_seed(1)
    with pytest.raises(FitError, match="only 49 simulated tau jets in all control regions") as caught:
        fit_base_densities(simulation.rows(keep), len(REGIONS), QUICK, generator)
    assert caught.value.expected == "at least 50"
    keep[tau[49]] = True
    fit_base_densities(simulation.rows(keep), len(REGIONS), QUICK, generator)


def test_undefined_coordinates_stop_the_fit_of_densities(simulation: Sample) -> None:
    broken = replace(simulation, coordinates=torch.full_like(simulation.coordinates, torch.nan))
    with pytest.raises(FitError, match="the base density's loss is not finite") as caught:
        fit_base_densities(broken, len(REGIONS), QUICK, torch.Generator().manual_seed(1))
    assert caught.value.where == "step 0"


def test_a_minibatch_is_a_part_of_the_sample_without_repetition_or_all_of_it(simulation: Sample) -> None:
    generator = torch.Generator().manual_seed(1)
    few = simulation.rows(torch.arange(10))
    assert _minibatch(few, 10, generator) is few
    part = _minibatch(replace(few, weight=torch.arange(10, dtype=torch.float64)), 9, generator)
    assert len(part) == len(part.weight.unique()) == 9


def test_displacements_are_quoted_for_flavours_with_jets(world: SyntheticWorld, frame: ScoreFrame) -> None:
    maps = FlavourMaps(lambda: AffineMap(3, 2, 0.1))
    with torch.no_grad():
        for index in range(4):
            maps.of(index).constant[3:6] = torch.tensor([0.3, 0.0, 0.4], dtype=torch.float64)
    jets = concatenate(list(world.simulation.values()))
    jets = jets.select((jets.flavour == 0) | (jets.flavour == 2))
    rows = displacement_table(maps, frame, jets, seed=1)
    assert [row["flavour"] for row in rows] == ["b", "light"]
    for row in rows:
        assert row["root_mean_square_displacement"] == pytest.approx(0.5, rel=1e-9)
        assert row["excess_cost"] == pytest.approx(0.0, abs=1e-9)
