"""Minimising a loss that is only known up to the noise of minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DistanceSchedule:
    """How a distance is minimised: steps, jets of each sample per step, first learning rate."""

    steps: int
    batch_size: int
    learning_rate: float


def averaged_descent(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[], Tensor],
    schedule: DistanceSchedule,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Adam with a linearly falling learning rate; leaves the average over the second half of the steps.

    The average of the iterates has much less of the minibatches' noise than the last one (Polyak and
    Juditsky 1992).
    """
    optimiser = torch.optim.Adam(parameters, lr=schedule.learning_rate, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.1, 1.0 - step / schedule.steps))
    average = [torch.zeros_like(p) for p in parameters]
    averaged = 0
    for step in range(schedule.steps):
        value = loss()
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        decay.step()
        if step >= schedule.steps // 2:
            averaged += 1
            for mean, parameter in zip(average, parameters, strict=True):
                mean += (parameter.detach() - mean) / averaged
        progress(step + 1)
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)
