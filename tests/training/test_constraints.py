"""The multiplier method ends at the constraint, whatever the weight; fixed weights open and close."""

from __future__ import annotations

import pytest
import torch

from selfcal.config.training import JointConfig
from selfcal.training.constraints import AVERAGE_KEPT, Constraints


def constraints(floor: float = 0.1, **changes) -> Constraints:
    return Constraints([torch.tensor(floor, dtype=torch.float64)], JointConfig(**changes))


def test_fixed_weights_follow_the_moving_average() -> None:
    one = constraints()
    assert one.observe(0, torch.tensor(0.0)) == 0.0
    assert one.observe(0, torch.tensor(0.3)) == 1.0
    expected = AVERAGE_KEPT**2 * 0.1 + (1 - AVERAGE_KEPT) * 0.3
    assert float(one.averages[0]) == pytest.approx(expected, rel=1e-6)
    for _ in range(60):
        last = one.observe(0, torch.tensor(0.0))
    assert last == 0.0


def test_multiplier_method_solves_a_constrained_problem() -> None:
    """min (x-3)² under x² ≤ 1: x = 1 and, by (x-3)² + λ x² stationary, λ = 2."""
    one = constraints(1.0, constraint="multiplier", multiplier_rate=0.05, multiplier_damping=1.0)
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        distance = x.square()
        weight = one.observe(0, distance)
        (gradient,) = torch.autograd.grad((x - 3).square() + weight * distance, x)
        with torch.no_grad():
            x -= 0.02 * gradient
    assert float(x.detach()) == pytest.approx(1.0, abs=1e-3)
    assert one.multipliers[0] == pytest.approx(2.0, abs=1e-2)


def test_an_inactive_constraint_has_no_weight() -> None:
    one = constraints(10.0, constraint="multiplier")
    assert [one.observe(0, torch.tensor(0.5)) for _ in range(50)] == [0.0] * 50
    assert one.multipliers == [0.0]


def test_state_can_be_continued() -> None:
    first, second = (constraints(constraint="multiplier") for _ in range(2))
    for value in (0.3, 0.5, 0.2):
        first.observe(0, torch.tensor(value, dtype=torch.float64))
    second.continue_from(first.as_row())
    assert second.as_row() == first.as_row()
    assert second.observe(0, torch.tensor(0.4)) == first.observe(0, torch.tensor(0.4))
