"""The flow likelihood ratio against Jeffreys' divergence of two normals."""

from __future__ import annotations

import torch

from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.flow_likelihood import FlowLikelihood


def normal(n: int, seed: int, shift: float = 0.0) -> PenaltySample:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    points[:, 0] += shift
    return PenaltySample(points, torch.ones(n, dtype=torch.float64))


def test_learns_jeffreys_divergence() -> None:
    """KL(p|q) + KL(q|p) = m² for unit normals shifted by m; zero before anything is learnt."""
    torch.manual_seed(3)
    penalty, shift = FlowLikelihood(2), 0.8
    assert float(penalty(normal(50, 1), normal(50, 2, shift)).detach()) == 0.0
    optimiser = torch.optim.Adam(penalty.parameters(), lr=8e-3)
    for step in range(150):
        optimiser.zero_grad()
        penalty.critic_loss(normal(300, 10 + step), normal(300, 5000 + step, shift)).backward()
        optimiser.step()
    with torch.no_grad():
        found = penalty(normal(20_000, 1), normal(20_000, 2, shift))
    assert abs(float(found) - shift**2) < 0.12 * shift**2
