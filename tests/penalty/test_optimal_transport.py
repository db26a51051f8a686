"""Sliced Wasserstein and Sinkhorn against closed forms and POT's exact solvers."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.optimal_transport import SinkhornDivergence, SlicedWasserstein


def cloud(n: int, seed: int, features: int = 2) -> PenaltySample:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, features, generator=generator, dtype=torch.float64)
    return PenaltySample(points, 0.5 + torch.rand(n, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("penalty", [SlicedWasserstein(3), SinkhornDivergence(0.5, 2000, 1e-12)])
def test_a_pure_shift_costs_its_square(penalty) -> None:
    x = cloud(40, 1, 3)
    shift = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    moved = PenaltySample(x.points + shift, x.weight)
    assert float(penalty(x, moved)) == pytest.approx(float(shift.square().sum()), rel=1e-5)
    assert float(penalty(x, x)) == pytest.approx(0.0, abs=1e-9)


def test_sliced_wasserstein_in_one_dimension_is_the_exact_cost() -> None:
    x, y = cloud(25, 2, 1), cloud(31, 3, 1)
    a, b = ((s.weight / s.weight.sum()).numpy() for s in (x, y))
    exact = ot.emd2_1d(x.points.numpy()[:, 0], y.points.numpy()[:, 0], a, b, metric="sqeuclidean")
    assert float(SlicedWasserstein(1)(x, y)) == pytest.approx(exact, rel=1e-9)


def test_directions_are_orthonormal_sets() -> None:
    directions = SlicedWasserstein(4, sets=3).directions
    assert directions.shape == (4, 12)
    total = directions @ directions.T
    assert torch.allclose(total, 3 * torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_sinkhorn_tends_to_the_exact_cost() -> None:
    x, y = cloud(20, 4), cloud(24, 5)
    a, b = ((s.weight / s.weight.sum()).numpy() for s in (x, y))
    exact = ot.emd2(a, b, ot.dist(x.points.numpy(), y.points.numpy()))
    errors = [abs(float(SinkhornDivergence(eps, 5000, 1e-8)(x, y)) - exact) for eps in (1.0, 0.1, 0.02)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05 * exact


def test_entropic_cost_equals_the_primal_of_pot() -> None:
    x, y = cloud(12, 6), cloud(15, 7)
    a, b = x.weight / x.weight.sum(), y.weight / y.weight.sum()
    cost = ot.dist(x.points.numpy(), y.points.numpy())
    plan = ot.sinkhorn(a.numpy(), b.numpy(), cost, 0.5, method="sinkhorn_log", stopThr=1e-13, numItermax=5000)
    independent = a.numpy()[:, None] * b.numpy()[None]
    primal = (plan * cost).sum() + 0.5 * (plan * np.log(plan / independent)).sum()
    found = SinkhornDivergence(0.5, 5000, 1e-13).entropic_cost(x.points, y.points, a, b)
    assert float(found) == pytest.approx(primal, rel=1e-9)


def test_the_divergence_that_is_chosen_by_its_name_alone_is_that_of_half_a_variance() -> None:
    """Against plain iterations in logarithms: f = -ε ln Σ b e^{(g - M)/ε} and in turn, with ε = 0.5."""
    x, y = cloud(12, 8), cloud(9, 9)
    y = PenaltySample(1.5 * y.points + 0.3, y.weight)
    epsilon = 0.5

    def cost(one: PenaltySample, two: PenaltySample) -> float:
        a, b = (s.weight.numpy() / s.weight.sum().item() for s in (one, two))
        between = ((one.points.numpy()[:, None] - two.points.numpy()[None]) ** 2).sum(axis=2)
        f, g = np.zeros(len(a)), np.zeros(len(b))
        for _ in range(2000):
            f = -epsilon * np.log(np.exp((g[None] - between) / epsilon) @ b)
            g = -epsilon * np.log(np.exp((f[:, None] - between) / epsilon).T @ a)
        return float(f @ a + g @ b)

    expected = cost(x, y) - 0.5 * cost(x, x) - 0.5 * cost(y, y)
    assert float(SinkhornDivergence()(x, y)) == pytest.approx(expected, rel=1e-4)
    sharper = SinkhornDivergence(0.1, 5000, 1e-9)(x, y)
    assert float(sharper) != pytest.approx(expected, rel=1e-2)
