"""Worlds and populations of pseudo-experiments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, prior_widths
from selfcal.data.folds import Fold
from selfcal.errors import DataError
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.emulator import gaussian_design
from selfcal.study.population import RegionPopulation
from selfcal.study.pseudo_data import draw_world
from selfcal.study.pseudo_inference import exact_at, local_emulator, multiplicities
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame

PRIOR = CompositionPrior(
    torch.tensor([[0.5, 0.1, 0.4, 0.0]], dtype=torch.float64),
    torch.tensor([[0.05, 0.01, 0.04, 0.002]], dtype=torch.float64),
)
PRESENT = np.array([[True, True, True, False]])


@pytest.fixture(scope="module")
def population():
    from tests.conftest import make_synthetic_jets

    jets = make_synthetic_jets(4, jets=600, seed=5)
    return RegionPopulation(
        "r",
        [jets.select(np.arange(400)), jets.select(np.arange(400, 600))],
        collect_donors([jets], 1),
        seed=1,
    )


def worlds(number: int, scale: float = 0.03):
    widths = prior_widths({})
    return [
        draw_world(np.random.default_rng([7, i]), widths, PRIOR, PRESENT, 3, scale) for i in range(number)
    ]


def test_worlds_are_drawn_from_the_priors() -> None:
    found = worlds(400)
    steps = np.array([(w.parameters.vector() - NOMINAL.vector()) / prior_widths({}) for w in found])
    assert np.abs(steps.mean(0)).max() < 4 / 20
    assert steps.std(0) == pytest.approx(np.ones(len(PARAMETERS)), abs=0.15)
    fractions = np.array([w.fractions[0] for w in found])
    assert fractions.sum(1) == pytest.approx(np.ones(400))
    assert (fractions[:, 3] == 0).all()
    assert fractions[:, :3].mean(0) == pytest.approx([0.5, 0.1, 0.4], abs=0.01)
    constants = np.array([w.remainder.of(1).constant.numpy() for w in found])
    assert constants.std() == pytest.approx(0.03, rel=0.1)


def test_a_world_depends_on_its_seed_alone() -> None:
    first, again = worlds(2), worlds(2)
    assert first[1].parameters == again[1].parameters != first[0].parameters
    np.testing.assert_array_equal(first[1].fractions, again[1].fractions)


def test_without_remainder_scores_stay(population) -> None:
    (world,) = worlds(1, scale=0.0)
    generator = np.random.default_rng(1)
    score = np.log(generator.dirichlet(np.ones(4), len(population)))
    frame = ScoreFrame((0.1, 0.2, 0.3), (1.0, 2.0, 0.5))
    np.testing.assert_allclose(world.scores(population, score, frame), score, atol=1e-12)


def test_drawn_jets_have_the_wanted_composition(population) -> None:
    wanted = np.array([0.2, 0.3, 0.5, 0.0])
    rows = population.rows_drawn(np.random.default_rng(2), 20_000.0, wanted)
    assert len(rows) == pytest.approx(20_000, abs=600)
    shares = np.bincount(population.flavour[rows], minlength=4) / len(rows)
    assert shares == pytest.approx(wanted, abs=0.015)
    own = population.rows_drawn(np.random.default_rng(2), 20_000.0)
    assert np.bincount(population.flavour[own], minlength=4) / len(own) == pytest.approx(
        population.shares, abs=0.015
    )
    hidden = population.jets(np.zeros((len(population), 4)), rows, Fold.MEASURE, labelled=False)
    assert (hidden.flavour == -1).all()
    assert len(np.unique(hidden.event)) == len(rows)


def test_negative_weights_are_refused(population) -> None:
    from dataclasses import replace

    broken = replace(population.chunks[0], weight=-population.chunks[0].weight)
    with pytest.raises(DataError, match="negative weight"):
        RegionPopulation("r", [broken], population.donors, seed=1)


def test_multiplicities_add_up_per_flavour() -> None:
    flavour = np.array([0, 0, 1, 2, 2, 2])
    times = multiplicities(np.random.default_rng(3), flavour, 5000, np.array([0.5, 0.0, 0.5, 0.0]))
    assert times.sum() == 5000
    assert times[2] == 0
    assert times[:2].sum() == pytest.approx(2500, abs=200)


def rates(theta: np.ndarray) -> np.ndarray:
    """A quadratic, three outputs."""
    return np.array([1 + theta[0] - 2 * theta[1] ** 2, theta[0] ** 2, 3.0])


def test_the_local_emulator_is_the_tangent_of_a_quadratic() -> None:
    point = np.array([0.3, -0.2])
    emulator = local_emulator(rates, point, np.array([0.1, 0.5]))
    slope = np.array([[1.0, 0.8], [0.6, 0.0], [0.0, 0.0]])
    for theta in gaussian_design(np.zeros(2), np.ones(2), 5, 1):
        np.testing.assert_allclose(emulator(theta), rates(point) + slope @ (theta - point), atol=1e-12)


def test_an_emulator_made_exact_keeps_its_slopes() -> None:
    emulator = local_emulator(rates, np.zeros(2), np.ones(2))
    there, other = np.array([0.5, 0.5]), np.array([-1.0, 2.0])
    shifted = exact_at(emulator, there, np.array([9.0, 8.0, 7.0]))
    np.testing.assert_allclose(shifted(there), [9.0, 8.0, 7.0])
    np.testing.assert_allclose(shifted(other) - shifted(there), emulator(other) - emulator(there))
