"""Minimising a loss until jets that were set aside no longer gain from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfcal.errors import FitError

MEMORY = 0.99
"""How much of the average over iterates one step keeps, once there are nine hundred of them."""

EVERY = 25
"""Steps between two looks at the jets that were set aside."""

PATIENCE = 8
"""Looks without a gain after which a descent ends."""

NORM_MAX = 5.0
"""Longer gradients are shortened to this."""


@dataclass(frozen=True)
class StoppedSchedule:
    """How long a descent may go on, and its constant learning rate."""

    steps: int
    learning_rate: float


def stopped_descent(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    schedule: StoppedSchedule,
    set_aside: Callable[[], Tensor] | None = None,
) -> int:
    """Adam at a constant rate; leaves the best average of iterates, and returns the steps to it.

    The average is exponential, ā_s = m ā_(s-1) + (1 - m) a_s with m = min(``MEMORY``, s / (s + 9)): it has
    less of the minibatches' noise than an iterate. The best is the one with the smallest ``set_aside`` of
    all that were looked at, every ``EVERY`` steps and at the end; the last one without ``set_aside``.
    ``loss`` gets the number of the step, from zero.

    Raises
    ------
    FitError
        If ``set_aside`` is not finite.
    """
    optimiser = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    average = [p.detach().clone() for p in parameters]
    best, kept, at, looks_without_gain = float("inf"), average, schedule.steps, 0
    for step in range(1, schedule.steps + 1):
        value = loss(step - 1)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, NORM_MAX)
        optimiser.step()
        memory = min(MEMORY, step / (step + 9))
        for mean, parameter in zip(average, parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - memory)
        if set_aside is None or (step % EVERY and step < schedule.steps):
            continue
        found = _value_at(parameters, average, set_aside)
        if not math.isfinite(found):
            raise FitError("the loss of the jets set aside is not finite", where=f"step {step - 1}")
        if found < best:
            best, kept, at, looks_without_gain = found, [mean.clone() for mean in average], step, 0
            continue
        looks_without_gain += 1
        if looks_without_gain == PATIENCE:
            break
    _assign(parameters, kept)
    return at


def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _value_at(
    parameters: Sequence[nn.Parameter], values: Sequence[Tensor], function: Callable[[], Tensor]
) -> float:
    """``function`` with other values of the parameters, which are put back."""
    here = [p.detach().clone() for p in parameters]
    _assign(parameters, values)
    with torch.no_grad():
        value = float(function())
    _assign(parameters, here)
    return value
