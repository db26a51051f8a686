"""A whole derivation with the options of the composition: their files, and who decides the fractions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.config.calibration import BaseDensityConfig, CalibrationConfig, CompositionConfig, MapConfig
from selfcal.data.scored import ScoredJets
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.sample import simulated_fractions
from tests.transport.synthetic_world import REGIONS, SyntheticWorld, make_world, prepare

SHORT = CalibrationConfig(
    base_density=BaseDensityConfig(steps=40, hidden_width=8, transforms=1, learning_rate=5e-3),
    composition=CompositionConfig(steps=20, batch_size=128),
    map=MapConfig(steps=20, hidden_width=8, batch_size=256, learning_rate=8e-3),
    bootstraps=2,
    bootstrap_steps=5,
    seeds=0,
)


def with_separator(jets: ScoredJets, flavour: np.ndarray, seed: int) -> ScoredJets:
    noise = np.random.default_rng(seed).standard_normal(len(jets))
    return replace(jets, separators=((flavour == 1) + 0.8 * noise)[:, None])


TASKS = (
    "composition",
    "densities",
    "identifiability",
    "bulk-0",
    "bulk-1",
    "mixture",
    "replica-0",
    "replica-1",
)
"""All that fractions depend on, which leaves out the region dependence."""


def derived(world: SyntheticWorld, folder: Path, config: CalibrationConfig) -> Derivation:
    _, path = prepare(world, folder, config)
    for task in TASKS:
        run_task(path, task)
    return Derivation.open(path)


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    made = make_world(800, 800, seed=3)
    return replace(
        made,
        simulation={r: with_separator(jets, jets.flavour, 1) for r, jets in made.simulation.items()},
        data={r: with_separator(jets, made.data_flavour[r], 2) for r, jets in made.data.items()},
    )


def test_separators_and_spline_reach_every_task(world: SyntheticWorld, tmp_path: Path) -> None:
    composition = SHORT.composition.model_copy(update={"pt_knots": 3})
    derivation = derived(world, tmp_path, SHORT.model_copy(update={"composition": composition}))
    for task in ("composition", "bulk-0", "bulk-1"):
        fit = derivation.composition(task)
        assert fit.pt_shape is not None
        assert fit.pt_shape.values.shape == (4, 4, 3)
        assert float((fit.pt_shape.values - 1.0).abs().max()) > 1e-3
        assert fit.maps.of(0).state_dict()["constant"].shape == (
            14,
        )  # 4 + 4 + 6: three scores, one separator
    assert derivation.mixture().maps.of(0).state_dict()["affine.constant"].shape == (9,)
    # The likelihood sees the spline: its local fractions are those of the bulk times the ratio.
    sample = derivation.simulation
    with_spline = derivation.kinematic_fractions(sample)
    without = KinematicFractions(sample, simulated_fractions(sample, len(REGIONS)))
    assert with_spline.pt_shape is not None
    difference = with_spline.log_prior(sample) - without.log_prior(sample)
    torch.testing.assert_close(difference, with_spline.pt_shape.ratio(sample).log())


def test_who_decides_the_fractions(world: SyntheticWorld, tmp_path: Path) -> None:
    by_bulk = derived(world, tmp_path / "bulk", SHORT)
    composition = SHORT.composition.model_copy(update={"by": "likelihood"})
    config = SHORT.model_copy(update={"composition": composition})
    by_likelihood = derived(world, tmp_path / "likelihood", config)
    torch.testing.assert_close(by_bulk.constraint().fractions, by_bulk.composition().fractions)
    torch.testing.assert_close(by_bulk.constraint().uncertainty, by_bulk.fraction_uncertainty())
    assert by_likelihood.constraint() == by_likelihood.prior
    torch.testing.assert_close(
        by_likelihood.constraint("bulk-1").fractions, by_likelihood.drawn_prior(1).fractions
    )
    # Twenty steps that start at the prior, or at what the bulk says.
    fractions = by_likelihood.mixture().fractions
    assert not torch.allclose(by_bulk.mixture().fractions, fractions, atol=0.005)
    replicas = torch.stack([by_likelihood.mixture(f"replica-{i}").fractions for i in range(2)])
    expected = (replicas.var(0) + (0.05 * fractions).square()).sqrt()
    torch.testing.assert_close(by_likelihood.final_uncertainty(), expected)
