"""Descents that end when jets that were set aside no longer gain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selfcal.errors import FitError
from selfcal.transport.early_stopping import EVERY, MEMORY, PATIENCE, StoppedSchedule, stopped_descent

RATE = 1e-3


def start() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, dtype=torch.float64))


def test_it_leaves_the_best_average_and_ends_when_patience_does() -> None:
    """Down to one, but best for those set aside at 0.3: there it stays, and eight looks later it ends."""
    point, steps = start(), []

    def loss(step: int) -> Tensor:
        steps.append(step)
        return (point - 1.0).square().sum()

    at = stopped_descent([point], loss, StoppedSchedule(3000, RATE), lambda: (point - 0.3).square().sum())
    assert at % EVERY == 0
    assert steps == list(range(at + PATIENCE * EVERY))
    # Between two looks it goes 25 steps.
    assert float(point.detach()) == pytest.approx(0.3, abs=0.5 * EVERY * RATE)


def test_without_jets_set_aside_it_goes_to_the_end() -> None:
    """Adam's steps are as long as the rate where the slope is constant: the average is a recursion."""
    point = start()
    assert stopped_descent([point], lambda _: -point.sum(), StoppedSchedule(400, RATE)) == 400
    expected = 0.0
    for step in range(1, 401):
        memory = min(MEMORY, step / (step + 9))
        expected = memory * expected + (1 - memory) * RATE * step
    assert float(point.detach()) == pytest.approx(expected, rel=1e-6)
    # The last tenth of the way, as long as that is less than a hundred steps.
    assert expected == pytest.approx(0.9 * RATE * 400, rel=0.01)


def test_the_last_step_is_looked_at() -> None:
    """Also where the steps end between two looks, or before the first."""
    for steps in (1, EVERY - 1, EVERY + 1):
        point = start()
        at = stopped_descent(
            [point], lambda _, p=point: -p.sum(), StoppedSchedule(steps, RATE), lambda p=point: -p.sum()
        )
        assert at == steps
        assert float(point.detach()) > 0


def test_what_never_gains_is_left_where_the_first_look_was() -> None:
    point = start()
    at = stopped_descent([point], lambda _: -point.sum(), StoppedSchedule(3000, RATE), point.sum)
    assert at == EVERY
    assert 0 < float(point.detach()) < EVERY * RATE


def test_jets_set_aside_without_a_loss_are_an_error() -> None:
    point = start()
    with pytest.raises(FitError, match="the loss of the jets set aside is not finite") as caught:
        stopped_descent([point], lambda _: -point.sum(), StoppedSchedule(90, RATE), lambda: point.sum() / 0)
    assert caught.value.where == f"step {EVERY - 1}"
