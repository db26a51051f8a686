"""One map between two samples whose laws are known to belong together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.energy import LEADING_SHARE, energy_distance, mean_distance_within
from selfcal.transport.averaged_descent import DistanceSchedule, averaged_descent
from selfcal.transport.composition import CONDITION_LENGTH
from selfcal.transport.maps import CalibrationMap


def fit_between(
    transport: CalibrationMap,
    start: tuple[Float[Tensor, "n coordinates"], Float[Tensor, "n conditions"]],
    end: tuple[Float[Tensor, "m coordinates"], Float[Tensor, "m conditions"]],
    schedule: DistanceSchedule,
    generator: torch.Generator,
    displacement_price: float = 0.0,
    condition_length: float = CONDITION_LENGTH,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Change ``transport`` so that T(start | c) has the law of ``end`` at every c.

    Minimises n D / (2 s E) + stiffness + price E|T(u | c) - u|², as ``fit_by_distance`` does, with D the
    energy distance between (T(u | c), l c) and (u', l c'), l = ``condition_length``. ``start`` and
    ``end`` are (coordinates, conditions) and must have the same law of c.
    """
    x, y = (torch.cat([u, condition_length * c], dim=1) for u, c in (start, end))
    size = len(x) * len(y) / (len(x) + len(y))
    some = y[torch.randperm(len(y), generator=generator)[:1000]]
    within = float(mean_distance_within(some, torch.ones_like(some[:, 0])))
    scale = 0.5 * size / LEADING_SHARE / within

    def rows(count: int) -> Tensor:
        return torch.randint(count, (schedule.batch_size,), generator=generator)

    def loss() -> Tensor:
        chosen = rows(len(x))
        u, c = start[0][chosen], start[1][chosen]
        moved = transport(u, c)
        distance = energy_distance(torch.cat([moved, condition_length * c], dim=1), y[rows(len(y))])
        cost = (moved - u).square().sum(1).mean()
        total: Tensor = scale * distance + transport.stiffness() + displacement_price * cost
        return total

    averaged_descent(list(transport.parameters()), loss, schedule, progress)
    transport.requires_grad_(requires_grad=False)
