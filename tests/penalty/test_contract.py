"""What every penalty promises, tested on each of them by the same exact properties."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.config.training import PenaltyName
from selfcal.errors import DataError
from selfcal.penalty.choice import BUILDERS, DISTANCES, build_penalty
from selfcal.penalty.contract import LearntPenalty, Penalty, PenaltySample, null_distances
from selfcal.penalty.expected_variance import BinnedRegion

torch.set_num_threads(1)

FEATURES = 3
REGION = BinnedRegion(
    axis=lambda points: points[:, 0],
    edges=torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64),
    bandwidth=0.1,
    prior_width=torch.tensor([0.3, 0.2], dtype=torch.float64),
    expected_jets=100.0,
)


def normal(n: int, seed: int, shift: float = 0.0) -> PenaltySample:
    """N(shift, 1) in three dimensions, the flavour moves the first; weights are uniform in 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    flavour = torch.randint(2, (n,), generator=generator)
    points = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64) + shift
    points[:, 0] += flavour
    weight = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    return PenaltySample(points, weight, flavour)


def joined(*samples: PenaltySample) -> PenaltySample:
    return PenaltySample(
        torch.cat([s.points for s in samples]),
        torch.cat([s.weight for s in samples]),
        torch.cat([s.flavour for s in samples if s.flavour is not None]),
    )


def new(name: str) -> Penalty:
    torch.manual_seed(7)
    return build_penalty(name, FEATURES, REGION)


def seasoned(name: str, shift: float = 0.7, steps: int = 40) -> Penalty:
    """A penalty that has seen simulation and shifted data, if it has something to learn."""
    penalty = new(name)
    if isinstance(penalty, LearntPenalty):
        optimiser = torch.optim.Adam(penalty.parameters(), lr=1e-2)
        for step in range(steps):
            optimiser.zero_grad()
            penalty.critic_loss(normal(200, 1000 + step), normal(200, 2000 + step, shift)).backward()
            optimiser.step()
    return penalty


@pytest.fixture(params=BUILDERS, scope="module")
def penalty(request) -> Penalty:
    return seasoned(request.param)


def test_every_name_of_the_configuration_can_be_built() -> None:
    assert set(BUILDERS) == set(get_args(PenaltyName))
    assert set(DISTANCES) == set(get_args(MapConfig.model_fields["distance"].annotation))


def test_has_the_name_it_is_chosen_by(penalty: Penalty) -> None:
    assert BUILDERS[penalty.name]
    assert type(new(penalty.name)) is type(penalty)


def test_only_optimal_transport_refuses_negative_weights_and_only_two_are_no_divergences() -> None:
    """What a declaration of its own would excuse a penalty from is decided here once more."""
    declared = {name: new(name) for name in BUILDERS}
    assert {n for n, p in declared.items() if not p.signed_weights} == {"sinkhorn", "sliced_wasserstein"}
    assert {n for n, p in declared.items() if not p.drives_calibration} == {"adversary", "expected_variance"}
    assert {n for n, p in declared.items() if p.pure_regions_only} == {"adversary"}
    biased = {"sinkhorn", "sliced_wasserstein", "adversary", "expected_variance"}
    assert {n for n, p in declared.items() if not p.unbiased} == biased


def test_gradients_with_respect_to_points_and_weights_of_both_samples(penalty: Penalty) -> None:
    x, y = normal(5, 1), normal(4, 2, 0.3)
    inputs = [t.clone().requires_grad_() for t in (x.points, x.weight, y.points, y.weight)]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        simulation = PenaltySample(tensors[0], tensors[1], x.flavour)
        return penalty(simulation, PenaltySample(tensors[2], tensors[3]))

    # A divergence whose inner problem is solved iteratively has its gradient to the tolerance of that.
    assert torch.autograd.gradcheck(value, inputs, atol=1e-5, rtol=1e-3)
    gradients = torch.autograd.grad(value(*inputs), inputs)
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_does_not_depend_on_the_scale_of_the_weights(penalty: Penalty) -> None:
    x, y = normal(40, 3), normal(30, 4, 0.5)
    expected = penalty(x, y)
    for a, b in ((17.0, 1.0), (1.0, 0.03), (1e-3, 1e3)):
        found = penalty(replace(x, weight=a * x.weight), replace(y, weight=b * y.weight))
        assert torch.isclose(found, expected, rtol=1e-9, atol=1e-12)


def permuted_values(penalty: Penalty, draws: int) -> np.ndarray:
    pooled = replace(normal(120, 5), weight=torch.ones(120, dtype=torch.float64))
    return null_distances(penalty, pooled, 60, draws, np.random.default_rng(6)).numpy()


def test_mean_under_permutation_is_zero_or_the_declared_floor(penalty: Penalty) -> None:
    """Zero where it says to be unbiased. Elsewhere not zero, or it could say so."""
    values = permuted_values(penalty, 30 if penalty.name == "sinkhorn" else 200)
    error = values.std(ddof=1) / math.sqrt(len(values))
    if penalty.unbiased:
        assert abs(values.mean()) < 3.5 * error
    else:
        assert abs(values.mean()) > 3.5 * error


def test_equal_laws_are_at_the_floor_and_shifted_ones_above(penalty: Penalty) -> None:
    """The shift by 0.7 in every coordinate stands out of the spread of the null."""
    null = null_distances(penalty, normal(400, 8), 200, 8, np.random.default_rng(9))
    shifted = penalty(normal(200, 10), normal(200, 11, 0.7))
    equal = penalty(normal(200, 10), normal(200, 12))
    assert shifted > null.mean() + 6 * null.std()
    assert abs(equal - null.mean()) < 6 * null.std() + 0.02 * shifted
    assert shifted - null.mean() < 5 * penalty.scale(normal(300, 11, 0.7))


@pytest.mark.fault(8, "every penalty: negative weights subtract or are refused")
def test_signed_weights_subtract_or_are_refused(penalty: Penalty) -> None:
    """Jets minus contamination: in the mean over draws the value of the jets alone."""
    contaminated, clean, dirty = [], [], []
    for seed in range(12):
        x, y = normal(300, 100 + seed), normal(300, 200 + seed, 0.3)
        plus, minus = normal(60, 300 + seed, 1.5), normal(60, 400 + seed, 1.5)
        negative = joined(x, plus, replace(minus, weight=-minus.weight))
        if not penalty.signed_weights:
            with pytest.raises(DataError, match=f"'{penalty.name}' has no meaning for negative weights"):
                penalty(negative, y)
            with pytest.raises(DataError, match="negative weights"):
                penalty(y, negative)
            return
        contaminated.append(penalty(negative, y))
        clean.append(penalty(x, y))
        dirty.append(penalty(joined(x, plus), y))
    difference = torch.stack(contaminated) - torch.stack(clean)
    effect = (torch.stack(dirty) - torch.stack(clean)).mean()
    error = difference.std() / math.sqrt(len(difference))
    assert abs(difference.mean()) < 3.5 * error
    # Without the subtraction the same comparison fails: the test can tell.
    assert abs(effect) > 3.5 * error


@pytest.mark.fault(8, "every penalty: weights without a positive total")
@pytest.mark.parametrize("weight", [[1.0, -1.0], [0.0, 0.0], [1.0]])
def test_refuses_samples_that_mean_nothing(penalty: Penalty, weight: list[float]) -> None:
    small = PenaltySample(
        torch.zeros(len(weight), FEATURES, dtype=torch.float64),
        torch.tensor(weight, dtype=torch.float64),
        torch.zeros(len(weight), dtype=torch.int64),
    )
    with pytest.raises(DataError, match="total weight") as error:
        penalty(normal(5, 1), small)
    assert error.value.where == "data"


def test_those_that_need_flavours_say_so() -> None:
    for name in BUILDERS:
        unlabelled = replace(normal(5, 1), flavour=None)
        if new(name).needs_flavours:
            with pytest.raises(DataError, match="flavour"):
                new(name)(unlabelled, normal(5, 2))
        else:
            assert new(name)(unlabelled, normal(5, 2)).isfinite()
