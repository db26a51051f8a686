"""The contract of every penalty: two weighted samples in fixed coordinates, one differentiable number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.errors import DataError


@dataclass(frozen=True)
class PenaltySample:
    """Jets as points of fixed coordinates; ``flavour`` (index into the flavours) of simulated jets only."""

    points: Float[Tensor, "n features"]
    weight: Float[Tensor, " n"]
    flavour: Int[Tensor, " n"] | None = None

    def rows(self, index: Tensor) -> PenaltySample:
        """The jets of ``index`` (mask or positions)."""
        flavour = None if self.flavour is None else self.flavour[index]
        return PenaltySample(self.points[index], self.weight[index], flavour)


class Penalty(nn.Module, ABC):
    """A differentiable distance D between simulation and data, small where both have the same law.

    The value does not depend on the scale of either sample's weights, and its gradient reaches the
    points and the weights of both.

    Attributes
    ----------
    name : its name in ``calibration.joint.penalty``
    signed_weights : whether negative weights mean subtraction; refused otherwise
    unbiased : whether a minibatch estimates it without bias, so that it is zero on average for equal laws.
        Where it is not, the mean for equal laws belongs to the noise floor.
    needs_flavours : whether the flavours of the simulated jets are used
    drives_calibration : whether maps and fractions may be fitted by it. Where not, they follow the energy
        distance, and only the tagger sees this penalty.
    pure_regions_only : whether it is used only where one flavour dominates
    has_floor : whether D up to its noise floor is of no interest. A cost rather than a distance has none.
    leading_share : λ_1 / Σλ_i of its null distribution in units of :meth:`scale`; None: to be measured
    """

    name: ClassVar[str]
    signed_weights: ClassVar[bool]
    unbiased: ClassVar[bool]
    needs_flavours: ClassVar[bool] = False
    drives_calibration: ClassVar[bool] = True
    pure_regions_only: ClassVar[bool] = False
    has_floor: ClassVar[bool] = True
    leading_share: ClassVar[float | None] = None

    def forward(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        """D(simulation, data).

        Raises
        ------
        DataError
            If a sample has fewer than two jets, a total weight that is not positive, or negative weights
            where they have no meaning; or if flavours are needed and absent.
        """
        for role, sample in (("simulation", simulation), ("data", data)):
            self._check(role, sample)
        if self.needs_flavours and simulation.flavour is None:
            raise DataError(
                f"penalty '{self.name}' needs the flavour of simulated jets",
                expected="labelled simulation",
            )
        return self.distance(simulation, data)

    @abstractmethod
    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        """D of two samples that are known to be usable."""

    @abstractmethod
    def scale(self, data: PenaltySample) -> float:
        """The unit of D: of the order of its value where the samples have little in common."""

    def _check(self, role: str, sample: PenaltySample) -> None:
        weight = sample.weight.detach()
        total = float(weight.sum())
        if len(weight) < 2 or not total > 0:
            raise DataError(
                f"penalty '{self.name}' got {len(weight)} jets of total weight {total:g}",
                where=role,
                expected="two jets or more of positive total weight",
                fix="enlarge calibration.joint.batch_size, or check the weights of this region",
            )
        if not self.signed_weights and bool((weight < 0).any()):
            raise DataError(
                f"penalty '{self.name}' has no meaning for negative weights, "
                f"which {int((weight < 0).sum())} of {len(weight)} jets have",
                where=role,
                expected="weights of zero and above",
                fix="set calibration.joint.penalty to one that takes signed weights, such as 'energy'",
            )


class LearntPenalty(Penalty):
    """A penalty that is seen through a network of its own, trained in alternation with the rest."""

    @abstractmethod
    def critic_loss(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        """What the penalty's own parameters minimise, on detached samples."""


def null_distances(
    penalty: Penalty, sample: PenaltySample, size: int, draws: int, random: np.random.Generator
) -> Float[Tensor, " draws"]:
    """D between random disjoint halves, ``size`` jets each at most, of one sample: laws that are equal.

    For a penalty that needs flavours, ``sample`` must have them.
    """
    values = []
    for _ in range(draws):
        chosen = torch.from_numpy(
            random.choice(len(sample.weight), min(2 * size, len(sample.weight)), replace=False)
        )
        half = len(chosen) // 2
        with torch.no_grad():
            values.append(penalty(sample.rows(chosen[:half]), sample.rows(chosen[half : 2 * half])))
    return torch.stack(values)


def weighted_mean(values: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Σ w x / Σ w."""
    return (weight * values).sum() / weight.sum()


def mean_square_of_sum(values: Float[Tensor, "n ..."], weight: Float[Tensor, " n"]) -> Float[Tensor, "..."]:
    """Σ_{i≠j} w_i w_j x_i x_j / Σ_{i≠j} w_i w_j: unbiased for (E x)²."""
    sums = torch.tensordot(weight, values, dims=1)
    squares = torch.tensordot(weight.square(), values.square(), dims=1)
    result: Tensor = (sums.square() - squares) / (weight.sum().square() - weight.square().sum())
    return result
