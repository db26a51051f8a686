"""Synthetic scores with a known map and known fractions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selfcal.config.calibration import BaseDensityConfig, CalibrationConfig, CompositionConfig, MapConfig
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import write_inputs
from selfcal.transport.sample import build_sample
from selfcal.transport.simplex import log_probability_from_coordinates

REGIONS = ("b_rich", "c_rich", "light_rich", "tau_rich")
FRACTIONS = np.array(
    [[0.70, 0.06, 0.20, 0.04], [0.05, 0.42, 0.50, 0.03], [0.05, 0.07, 0.86, 0.02], [0.04, 0.06, 0.50, 0.40]]
)
CENTRES = np.array([[2.5, 1.0, 1.5], [0.3, 1.5, 1.0], [-1.5, 0.5, 1.5], [-0.5, 0.5, -2.5]])
SHIFTS = np.array([[0.0, 0.0, 0.0], [0.1, 0.1, 0.0], [0.3, 0.1, 0.0], [0.0, 0.1, 0.2]])


@dataclass(frozen=True)
class SyntheticWorld:
    """Simulation and data per region; data of flavour f are shifted by ``SHIFTS[f]``."""

    simulation: dict[str, ScoredJets]
    data: dict[str, ScoredJets]
    data_flavour: dict[str, np.ndarray]


def draw_region(
    region: int, jets: int, shifts: np.ndarray, random: np.random.Generator
) -> tuple[ScoredJets, np.ndarray]:
    flavour = random.choice(4, size=jets, p=FRACTIONS[region])
    pt_gev = 20.0 + random.exponential(40.0, jets)
    noise = random.standard_normal((jets, 3)) * np.where(random.random(jets) < 0.1, 1.8, 1.0)[:, None]
    z = CENTRES[flavour] + 0.8 * noise + 0.3 * np.log(pt_gev / 45.0)[:, None] + shifts[flavour]
    log_p = log_probability_from_coordinates(torch.from_numpy(z)).numpy()
    jets_of_region = ScoredJets(
        REGIONS[region],
        log_p,
        pt_gev,
        random.uniform(0, 2.5, jets),
        flavour.astype(np.int8),
        np.ones(jets),
        np.ones(jets, dtype=np.int8),
        np.arange(jets) // 2,
    )
    return jets_of_region, flavour


def make_world(simulated: int, observed: int, seed: int, shifts: np.ndarray = SHIFTS) -> SyntheticWorld:
    random = np.random.default_rng(seed)
    simulation, data, truth = {}, {}, {}
    for index, name in enumerate(REGIONS):
        simulation[name], _ = draw_region(index, simulated, np.zeros_like(shifts), random)
        labelled, flavour = draw_region(index, observed, shifts, random)
        unlabelled = np.full(observed, -1, dtype=np.int8)
        data[name] = ScoredJets(
            name,
            labelled.log_probability,
            labelled.pt_gev,
            labelled.abs_eta,
            unlabelled,
            labelled.weight,
            labelled.fold,
            labelled.event,
        )
        truth[name] = flavour
    return SyntheticWorld(simulation, data, truth)


CONFIG = CalibrationConfig(
    base_density=BaseDensityConfig(steps=200, hidden_width=24, transforms=2, learning_rate=5e-3),
    composition=CompositionConfig(steps=150, batch_size=384, relative_floor=0.0),
    map=MapConfig(steps=120, batch_size=512, learning_rate=8e-3),
    bootstraps=2,
    bootstrap_steps=20,
    seeds=1,
)


def wrong_prior() -> CompositionPrior:
    """Charm 20 % too low, light 25 % too high, 25 % wide."""
    centre = torch.from_numpy(FRACTIONS) * torch.tensor([1.0, 0.8, 1.25, 1.0])
    centre = centre / centre.sum(1, keepdim=True)
    return CompositionPrior(centre, 0.25 * centre)


def prepare(
    world: SyntheticWorld, scratch: Path, config: CalibrationConfig = CONFIG
) -> tuple[ScoreFrame, Path]:
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    simulation = build_sample(world.simulation, REGIONS, frame)
    data = build_sample(world.data, REGIONS, frame)
    return frame, write_inputs(scratch, simulation, data, wrong_prior(), config, seed=5)
