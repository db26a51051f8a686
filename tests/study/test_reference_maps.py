"""References learnt from labelled samples whose shift is known."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", ["optimal_transport", "sinkhorn", "quantile_morphing"])
def test_moving_references_find_the_shift_of_the_same_jets(name: Reference) -> None:
    """Data are the simulated jets themselves, shifted: the step is the shift exactly, whatever was drawn.

    Sinkhorn's plan to the shifted jets is that to the jets themselves, because the costs differ by terms
    of one jet alone: without the pull of its blur, its step is the shift too.
    """
    random = np.random.default_rng(1)
    u = random.normal(size=(400, 3))
    change = learn_reference(name, points(u), points(random.permutation(u + SHIFT)), CONFIG, seed=1)
    assert change.weights is None
    assert change.move is not None
    np.testing.assert_allclose(change.move(u) - u, np.broadcast_to(SHIFT, u.shape), atol=2e-3)


@pytest.mark.parametrize("name", ["binned_scale_factors", "classifier_reweighting"])
def test_weighting_references_close_a_shift_of_fresh_jets(name: Reference) -> None:
    random = np.random.default_rng(1)
    simulation, data = points(random.normal(size=(4000, 3))), points(SHIFT + random.normal(size=(4000, 3)))
    change = learn_reference(name, simulation, data, CONFIG, seed=1)
    fresh = points(random.normal(size=(4000, 3)))
    assert change.move is None
    assert change.weights is not None
    mean = np.average(fresh.coordinates, weights=change.weights(fresh), axis=0)
    # Three samples of 4000 jets; binned factors know the discriminant alone, the first coordinate here.
    compared = [0] if name == "binned_scale_factors" else [0, 1, 2]
    np.testing.assert_allclose(mean[compared], SHIFT[compared], atol=4 * np.sqrt(3 / 4000))


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
