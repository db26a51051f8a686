"""A flavour that no region determines keeps its scores, and gets its neighbour's shift as uncertainty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.data.flavours import FLAVOURS, TAU
from selfcal.data.scored import concatenate
from selfcal.run.atomic import write_arrays
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import collect, load_calibration, save_calibration
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.extrapolation import with_extrapolated
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.sample import build_sample
from tests.transport.synthetic_world import CONFIG, REGIONS, SyntheticWorld, prepare


def sample_of(world: SyntheticWorld):
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    return build_sample(world.simulation, REGIONS, frame)


def stiff_maps(shifts: dict[str, float]) -> FlavourMaps:
    maps = FlavourMaps(lambda: AffineMap(3, 2, 0.1))
    with torch.no_grad():
        for flavour, shift in shifts.items():
            maps.maps[FLAVOURS.index(flavour)].constant[3:6] = shift
    return maps.requires_grad_(requires_grad=False)


@pytest.mark.parametrize(("shift", "expected"), [(0.6, 0.3), (0.02, 0.1)])
def test_half_the_nearest_shift_or_the_prior_whichever_is_larger(
    world: SyntheticWorld, shift: float, expected: float
) -> None:
    """In this world the nearest flavour of tau is charm; light and b move otherwise."""
    sample = sample_of(world)
    stiff = stiff_maps({"c": shift, "light": -2.0, "b": -3.0, "tau": 5.0})
    found = with_extrapolated(stiff, [TAU], sample, map_scale=0.1)
    tau = sample.rows(sample.flavour == TAU)
    move = found.of(TAU)(tau.coordinates, tau.conditions) - tau.coordinates
    assert torch.allclose(move, torch.full_like(move, expected), atol=1e-12)
    for other in range(3):
        assert torch.equal(found.of(other).constant, stiff.of(other).constant)  # type: ignore[arg-type]


@pytest.mark.parametrize("fit_by", ["likelihood", "distance"])
def test_the_map_of_an_undetermined_flavour_stays_the_identity(
    world: SyntheticWorld, tmp_path: Path, fit_by: str
) -> None:
    settings = MapConfig(fit_by=fit_by, steps=4, batch_size=128)  # type: ignore[arg-type]
    config = CONFIG.model_copy(update={"map": settings, "bootstrap_steps": 2})
    config = config.model_copy(
        update={
            "composition": CONFIG.composition.model_copy(update={"steps": 4, "batch_size": 64}),
            "base_density": CONFIG.base_density.model_copy(update={"steps": 4}),
        }
    )
    frame, folder = prepare(world, tmp_path, config)
    derivation = Derivation.open(folder)
    run_task(folder, "composition")
    run_task(folder, "densities")
    flags = np.array([flavour == "tau" for flavour in FLAVOURS], dtype=np.int8)
    write_arrays(derivation.path("identifiability"), {"undetermined": flags})
    for task in ("bulk-0", "bulk-1", "mixture", "seed-0", "region_dependence", "replica-0", "replica-1"):
        run_task(folder, task)
    found = collect(derivation, REGIONS, frame)
    save_calibration(found, settings, tmp_path / "map")
    again = load_calibration(tmp_path / "map")
    assert found.extrapolated == again.extrapolated == ("tau",)
    sample = sample_of(world)
    for maps in (again.nominal, *again.replicas):
        moved = [
            float(maps.of(i).displacement(sample.coordinates, sample.conditions).max()) for i in range(4)
        ]
        assert moved[TAU] <= 1e-12
        assert min(moved[:3]) > 1e-8
    stiff = again.stiff.of(TAU).displacement(sample.coordinates, sample.conditions)
    assert float(stiff.mean()) >= 3 * config.composition.map_scale**2 * 0.99


def test_where_nothing_is_determined_every_flavour_moves_by_the_prior(world: SyntheticWorld) -> None:
    sample = sample_of(world)
    found = with_extrapolated(stiff_maps({"b": 3.0}), range(len(FLAVOURS)), sample, map_scale=0.1)
    for flavour in range(len(FLAVOURS)):
        own = sample.rows(sample.flavour == flavour)
        move = found.of(flavour)(own.coordinates, own.conditions) - own.coordinates
        assert torch.allclose(move, torch.full_like(move, 0.1), atol=1e-12)
