"""The energy distance against closed forms and exact properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfcal.penalty.energy import energy_distance


def _normal(n: int, seed: int, features: int = 2) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_closed_form_for_shifted_normals() -> None:
    """1-d N(0,1) and N(m,1): D = 2 E|N(m, 2)| - 2·2/√π."""
    shift = 0.8
    distances = [
        energy_distance(_normal(1500, seed, 1), _normal(1500, seed + 100, 1) + shift) for seed in range(10)
    ]
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    values = torch.stack(distances)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(10)
    assert values.std() < 0.2 * expected


def test_has_mean_zero_under_permutation() -> None:
    pooled = _normal(60, 3)
    random = np.random.default_rng(4)
    draws = []
    for _ in range(400):
        order = torch.from_numpy(random.permutation(60))
        draws.append(float(energy_distance(pooled[order[:25]], pooled[order[25:]])))
    assert abs(np.mean(draws)) < 3.5 * np.std(draws) / math.sqrt(len(draws))


def test_does_not_depend_on_the_scale_of_the_weights() -> None:
    x, y = _normal(40, 5), _normal(30, 6) + 0.5
    weight = torch.rand(40, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.1
    assert torch.isclose(energy_distance(x, y, weight), energy_distance(x, y, 17.0 * weight), rtol=1e-12)


def test_integer_weights_count_like_repeated_jets_between_the_samples() -> None:
    """Weight two means two jets, except that a jet is not its own partner."""
    x, y = _normal(20, 8), _normal(25, 9)
    weight = torch.ones(20, dtype=torch.float64)
    weight[3] = 2.0
    repeated = torch.cat([x, x[3:4]])
    weighted, doubled = energy_distance(x, y, weight), energy_distance(repeated, y)
    # Within x the doubled jet adds a pair at zero distance: 2 pairs of 21·20.
    within = torch.cdist(repeated, repeated).sum() / (21 * 20)
    assert torch.isclose(weighted, doubled + within - within * (21 * 20) / (21 * 20 - 2), rtol=1e-9)


def test_signed_weights_subtract() -> None:
    """A sample plus contamination with the contamination subtracted is closer than with it."""
    x, contamination, y = _normal(800, 10), _normal(200, 11) + 3.0, _normal(800, 12)
    both = torch.cat([x, contamination, contamination + 0.01])
    cleaned = torch.cat([torch.ones(800), torch.ones(200), -torch.ones(200)]).double()
    dirty = torch.cat([torch.ones(800), torch.ones(200), torch.zeros(200)]).double()
    assert abs(energy_distance(both, y, cleaned)) < 0.1 * energy_distance(both, y, dirty)


def test_gradient() -> None:
    y = _normal(6, 14)
    weight = torch.tensor([1.0, -0.3, 2.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    x = _normal(5, 13).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, w: energy_distance(a, y, w), (x, weight))


@pytest.mark.parametrize("weight", [[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
def test_refuses_weights_without_positive_total(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="positive total weight"):
        energy_distance(_normal(3, 1), _normal(3, 2), torch.tensor(weight, dtype=torch.float64))
