"""A world in which a jet's efficiency depends on the distance to the nearest other jet, by a formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from selfcal.efficiency.event_jets import EventJets, nearest_delta_r, sorted_by_event

torch.set_num_threads(1)
ALONE = np.array([[0.85, 0.60], [0.35, 0.12], [0.10, 0.03], [0.25, 0.08]])
"""Efficiencies of a jet without neighbours, per flavour, loosest first."""
LOSS, REACH = 0.6, 0.45


def true_efficiency(jets: EventJets) -> NDArray[np.float64]:
    """ε (1 − 0.6 exp(−ΔR / 0.45)), (N, 2)."""
    kept = 1 - LOSS * np.exp(-nearest_delta_r(jets) / REACH)
    return ALONE[jets.flavour] * kept[:, None]


@dataclass(frozen=True)
class World:
    """Jets with what they pass, and the efficiencies that decided it, (N, 2)."""

    jets: EventJets
    truth: NDArray[np.float64]


def draw_world(events: int, seed: int) -> World:
    """One to five jets per event."""
    rng = np.random.default_rng(seed)
    event = np.repeat(np.arange(events), rng.integers(1, 6, events))
    n = len(event)
    bare = sorted_by_event(
        20 + rng.exponential(40, n),
        rng.uniform(-1.5, 1.5, n),
        np.pi + rng.uniform(-1.2, 1.2, n),
        rng.integers(0, 4, n),
        np.zeros(n, dtype=np.int64),
        np.ones(n),
        event,
    )
    truth = true_efficiency(bare)
    passed = (rng.random(n)[:, None] < truth).sum(axis=1)
    return World(replace(bare, passed=passed), truth)


@pytest.fixture(scope="session")
def make_world() -> Callable[[int, int], World]:
    """``make_world(events, seed)``."""
    return draw_world
