"""The maximum mean discrepancy against its closed form and a plain double loop."""

from __future__ import annotations

import math

import torch

from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.mmd import MaximumMeanDiscrepancy


def normal(n: int, seed: int, shift: float = 0.0) -> PenaltySample:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 1, generator=generator, dtype=torch.float64) + shift
    return PenaltySample(points, torch.ones(n, dtype=torch.float64))


def test_equals_the_closed_form_for_shifted_normals() -> None:
    """E k(X, Y) = b/√(b²+2) exp(-m²/(2(b²+2))) for N(0,1) and N(m,1)."""
    penalty, shift = MaximumMeanDiscrepancy((0.5, 2.0)), 0.8
    values = torch.stack([penalty(normal(800, s), normal(800, 50 + s, shift)) for s in range(8)])

    def kernel(m: float) -> float:
        return sum(b / math.sqrt(b * b + 2) * math.exp(-(m**2) / (2 * (b * b + 2))) for b in (0.5, 2.0)) / 2

    assert abs(values.mean() - 2 * (kernel(0) - kernel(shift))) < 4 * values.std() / math.sqrt(8)
    assert values.std() < 0.3 * values.mean()


def test_equals_the_sums_over_pairs() -> None:
    x, y = normal(5, 1), normal(4, 2, 0.5)
    x = PenaltySample(x.points, torch.tensor([1.0, -0.4, 2.0, 0.5, 1.0], dtype=torch.float64))
    penalty = MaximumMeanDiscrepancy((1.0,))

    def mean(a: PenaltySample, b: PenaltySample) -> float:
        pairs = [
            (float(a.weight[i] * b.weight[j]), math.exp(-0.5 * float(a.points[i] - b.points[j]) ** 2))
            for i in range(len(a.weight))
            for j in range(len(b.weight))
            if a is not b or i != j
        ]
        return sum(w * k for w, k in pairs) / sum(w for w, _ in pairs)

    assert math.isclose(float(penalty(x, y)), mean(x, x) + mean(y, y) - 2 * mean(x, y), rel_tol=1e-12)
