"""The adversary is gradient reversal, and with the best classifier the Jensen-Shannon divergence."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from selfcal.penalty.adversary import DomainAdversary
from selfcal.penalty.contract import PenaltySample


def normal(n: int, seed: int, shift: float = 0.0) -> PenaltySample:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 1, generator=generator, dtype=torch.float64) + shift
    return PenaltySample(points, torch.ones(n, dtype=torch.float64))


class Reverse(torch.autograd.Function):
    """The layer of arXiv 1505.07818: identity forward, sign flipped backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_gradients_are_those_of_a_gradient_reversal_layer() -> None:
    torch.manual_seed(1)
    penalty = DomainAdversary(1)
    nn.init.normal_(penalty.network[-1].weight)
    x, y = normal(20, 1), normal(20, 2, 0.5)
    feature = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def through(sample: PenaltySample) -> PenaltySample:
        return PenaltySample(Reverse.apply(feature * sample.points), sample.weight)

    layer = torch.autograd.grad(penalty.critic_loss(through(x), through(y)), [feature, *penalty.parameters()])
    moved = [PenaltySample(feature * s.points, s.weight) for s in (x, y)]
    (of_feature,) = torch.autograd.grad(penalty(*moved), feature, retain_graph=True)
    of_critic = torch.autograd.grad(penalty.critic_loss(*moved), list(penalty.parameters()))
    for expected, found in zip(layer, (of_feature, *of_critic), strict=True):
        assert expected.abs().max() > 0
        assert torch.allclose(expected, found, rtol=1e-12)


def test_learns_the_jensen_shannon_divergence() -> None:
    torch.manual_seed(2)
    penalty, shift = DomainAdversary(1), 1.5
    assert float(penalty(normal(10, 1), normal(10, 2)).detach()) == 0.0  # nothing learnt, nothing seen
    optimiser = torch.optim.Adam(penalty.parameters(), lr=1e-2)
    for step in range(200):
        optimiser.zero_grad()
        penalty.critic_loss(normal(300, 10 + step), normal(300, 5000 + step, shift)).backward()
        optimiser.step()
    grid = np.linspace(-8, 10, 4001)
    p, q = (np.exp(-0.5 * (grid - m) ** 2) / math.sqrt(2 * math.pi) for m in (0.0, shift))
    middle = 0.5 * (p + q)
    exact = np.trapezoid(0.5 * (p * np.log(p / middle) + q * np.log(q / middle)), grid)
    with torch.no_grad():
        found = penalty(normal(20_000, 90), normal(20_000, 190, shift))
    assert abs(float(found) - exact) < 0.05 * exact
