"""Scores that satisfy every penalty and say nothing, or say something else, are found out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.data.flavours import LIGHT, TAU, B, C
from selfcal.penalty.choice import build_penalty
from selfcal.penalty.contract import Penalty, PenaltySample
from selfcal.penalty.expected_variance import BinnedRegion
from selfcal.training.separation import Separation, lost_information, measure_separation
from selfcal.transport.simplex import log_ratio_coordinates

FRACTIONS = np.array([[0.65, 0.07, 0.25, 0.03], [0.03, 0.42, 0.53, 0.02], [0.04, 0.07, 0.60, 0.29]])
JETS = 6000


class World:
    """Jets of three regions, their flavours, and a tagger's logits: flavour plus unit noise."""

    def __init__(self, seed: int, strength: float = 2.0) -> None:
        generator = np.random.default_rng(seed)
        self.region = generator.integers(0, 3, JETS)
        self.flavour = np.array([generator.choice(4, p=FRACTIONS[r]) for r in self.region])
        self.logits = generator.normal(size=(JETS, 4))
        self.logits[np.arange(JETS), self.flavour] += strength
        self.weight = generator.uniform(0.5, 1.5, JETS)

    def separation(self, logits: np.ndarray) -> Separation:
        return measure_separation(log_softmax(logits), self.flavour, self.region, self.weight)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def constant(world: World) -> np.ndarray:
    return np.tile([0.3, 0.1, 1.0, -1.0], (JETS, 1))


def exchanged(first: int, second: int):
    def logits(world: World) -> np.ndarray:
        order = list(range(4))
        order[first], order[second] = second, first
        return world.logits[:, order]

    return logits


def region_told(world: World) -> np.ndarray:
    """The log of the region's own fractions, with noise that knows nothing of the flavour."""
    noise = np.random.default_rng(5).normal(size=world.logits.shape)
    return 3.0 * np.log(FRACTIONS[world.region]) + 0.3 * noise


def test_an_honest_tagger_says_as_much_as_before() -> None:
    world = World(1)
    before = world.separation(world.logits)
    assert set(before.pairs) >= {"b against c", "b against light", "c against light", "light against tau"}
    assert lost_information(before, before) == []
    # Another temperature, and a little noise.
    noise = 0.2 * np.random.default_rng(2).normal(size=world.logits.shape)
    assert lost_information(before, world.separation(1.7 * world.logits)) == []
    assert lost_information(before, world.separation(world.logits + noise)) == []


def test_constant_scores_are_detected() -> None:
    world = World(1)
    (message,) = lost_information(world.separation(world.logits), world.separation(constant(world)))
    assert message.startswith("constant scores")


@pytest.mark.parametrize(("pair", "name"), [((C, TAU), "c against tau"), ((B, LIGHT), "b against light")])
def test_exchanged_flavours_are_detected(pair: tuple[int, int], name: str) -> None:
    world = World(1)
    after = world.separation(exchanged(*pair)(world))
    messages = lost_information(world.separation(world.logits), after)
    assert any(message.startswith(f"exchanged flavours: {name} ") for message in messages)
    assert after.cross_entropy > world.separation(world.logits).cross_entropy


def test_a_tagger_that_tells_the_region_is_detected() -> None:
    """Over all jets it separates b from light as well as before; within a region not at all."""
    world = World(1, strength=0.9)
    before, after = world.separation(world.logits), world.separation(region_told(world))
    name = "b against light"
    assert after.pairs[name].pooled > before.pairs[name].pooled
    assert abs(after.pairs[name].within - 0.5) < 5 * after.pairs[name].error
    assert any(
        message.startswith(f"region told instead of flavour: {name} ")
        for message in lost_information(before, after)
    )


def test_separation_lost_evenly_is_detected() -> None:
    world = World(1)
    noise = 6.0 * np.random.default_rng(3).normal(size=world.logits.shape)
    messages = lost_information(world.separation(world.logits), world.separation(world.logits + noise))
    assert any(message.startswith("lost separation: b against light ") for message in messages)


def test_within_regions_is_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(4)
    n = 120
    flavour, region = generator.choice([B, LIGHT], n), generator.integers(0, 2, n)
    log_p = log_softmax(generator.normal(size=(n, 4)))
    found = measure_separation(log_p, flavour, region, np.ones(n)).pairs["b against light"]
    ratio = log_p[:, B] - log_p[:, LIGHT]
    values, sizes = [], []
    for r in (0, 1):
        b, light = (ratio[(flavour == f) & (region == r)] for f in (B, LIGHT))
        values.append((b[:, None] > light[None]).mean())
        sizes.append(len(b) * len(light) / (len(b) + len(light)))
    assert found.within == pytest.approx(np.average(values, weights=sizes), rel=1e-12)


def penalty_of(name: str, world: World) -> Penalty:
    torch.manual_seed(1)
    region = BinnedRegion(
        lambda points: points[:, 0],
        torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64),
        0.1,
        torch.full((4,), 0.25, dtype=torch.float64),
        1000.0,
    )
    return build_penalty(name, 3, region)


def in_one_region(world: World, logits: np.ndarray) -> PenaltySample:
    chosen = np.flatnonzero(world.region == 1)[:250]
    points = log_ratio_coordinates(torch.from_numpy(log_softmax(logits)[chosen]))
    return PenaltySample(points, torch.ones(len(chosen)).double(), torch.from_numpy(world.flavour[chosen]))


@pytest.mark.parametrize("name", ["energy", "sliced_wasserstein", "sinkhorn", "mmd", "histogram"])
@pytest.mark.parametrize("solution", [constant, exchanged(C, TAU), region_told])
def test_no_distance_sees_them(name: str, solution) -> None:
    """In a region, data and simulation with the same such scores are close: the penalty is content."""
    simulated, observed = (in_one_region(world, solution(world)) for world in (World(6), World(7)))
    far = PenaltySample(observed.points * torch.tensor([1.0, -1.0, 2.0]).double() + 3.0, observed.weight)
    penalty = penalty_of(name, World(6))
    assert float(penalty(simulated, observed)) < 0.1 * float(penalty(simulated, far))


def test_the_expected_variance_sees_constant_scores() -> None:
    values = []
    for solution in (lambda world: world.logits, constant):
        simulated, observed = (in_one_region(world, solution(world)) for world in (World(6), World(7)))
        values.append(float(penalty_of("expected_variance", World(6))(simulated, observed)))
    assert values[1] > 0.5
    assert values[1] > values[0]
