"""References learnt from labelled samples whose shift is known."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from selfcal.config.evaluation import EvaluationConfig, Reference
from selfcal.data.scored import ScoredJets
from selfcal.study.evaluation_measures import FlavourJets
from selfcal.study.reference_maps import Transported, apply_reference, learn_reference
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.simplex import log_probability_from_coordinates

SHIFT = np.array([0.4, -0.2, 0.1])
CONFIG = EvaluationConfig(transport_jets=400, regularisation=0.5)
FRAME = ScoreFrame((0.1, -0.2, 0.3), (1.0, 2.0, 0.5))


def points(u: np.ndarray) -> FlavourJets:
    n = len(u)
    zero = np.zeros(n)
    return FlavourJets(u, np.zeros((n, 2)), u[:, 0], zero.astype(np.int64), np.ones(n), np.arange(n))


@pytest.mark.parametrize("name", get_args(Reference))
def test_every_reference_closes_a_shift(name: Reference) -> None:
    """On jets that the reference has not seen, by moving them or by weighting them."""
    random = np.random.default_rng(1)
    simulation, data = points(random.normal(size=(4000, 3))), points(SHIFT + random.normal(size=(4000, 3)))
    change = learn_reference(name, simulation, data, CONFIG, seed=1)
    fresh = points(random.normal(size=(4000, 3)))
    assert (change.move is None) != (change.weights is None)
    moved = fresh.coordinates if change.move is None else change.move(fresh.coordinates)
    weight = fresh.weight if change.weights is None else change.weights(fresh)
    mean = np.average(moved, weights=weight, axis=0)
    # Binned factors know the discriminant alone, the first coordinate here.
    compared = [0] if name == "binned_scale_factors" else [0, 1, 2]
    np.testing.assert_allclose(mean[compared], SHIFT[compared], atol=0.08)
    spread = np.sqrt(np.average((moved - mean) ** 2, weights=weight, axis=0))
    np.testing.assert_allclose(spread, 1.0, atol=0.1)


def test_only_the_learnt_flavours_change() -> None:
    random = np.random.default_rng(2)
    z = torch.from_numpy(random.normal(size=(60, 3)))
    n, flavour = len(z), np.arange(60, dtype=np.int8) % 3
    jets = ScoredJets(
        "any",
        log_probability_from_coordinates(z).numpy(),
        np.full(n, 50.0),
        np.ones(n),
        flavour,
        np.ones(n),
        np.ones(n, np.int8),
        np.arange(n),
    )

    def of_flavour(all_jets: ScoredJets, index: int) -> FlavourJets:
        own = all_jets.select(all_jets.flavour == index)
        return points(FRAME.enter(torch.from_numpy(own.log_probability)).numpy())

    learnt = {
        1: Transported(move=lambda u: u + SHIFT),
        2: Transported(weights=lambda own: np.full(len(own), 3.0)),
    }
    found = apply_reference(jets, learnt, of_flavour, FRAME)
    before, after = (FRAME.enter(torch.from_numpy(x.log_probability)).numpy() for x in (jets, found))
    np.testing.assert_allclose(after - before, np.where(flavour[:, None] == 1, SHIFT, 0.0), atol=1e-10)
    np.testing.assert_array_equal(found.weight, np.where(flavour == 2, 3.0, 1.0))
