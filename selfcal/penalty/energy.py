"""The energy distance between two weighted samples."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import Penalty, PenaltySample

LEADING_SHARE = 0.15
"""Share of the leading direction in the null expectation of n D, Σλ_i with D quadratic in
directions of strength λ_i: with weight 1/(2 λ_1) the leading one counts like a likelihood and
all others less."""


def pair_distances(x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """Euclidean distances |x_i - y_j|, with a defined (zero) gradient where they vanish."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def mean_distance_within(x: Float[Tensor, "n features"], weight: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Σ_{i≠j} w_i w_j |x_i - x_j| / Σ_{i≠j} w_i w_j: unbiased for E|X - X'|."""
    pairs = weight.sum().square() - weight.square().sum()
    return (weight @ pair_distances(x, x) @ weight) / pairs


def energy_distance(
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "m features"],
    x_weight: Float[Tensor, " n"] | None = None,
    y_weight: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, ""]:
    """D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|, zero if and only if the laws are equal.

    Székely and Rizzo (2013). Weights may be negative as long as their sum is
    positive; the result does not depend on their scale. The estimate is unbiased
    (diagonal pairs left out) and so can be slightly negative for equal laws.

    Raises
    ------
    ValueError
        If a sample has fewer than two entries or a total weight that is not positive.
    """
    a = torch.ones_like(x[:, 0]) if x_weight is None else x_weight
    b = torch.ones_like(y[:, 0]) if y_weight is None else y_weight
    for name, weight in (("first", a), ("second", b)):
        if len(weight) < 2 or not float(weight.detach().sum()) > 0:
            raise ValueError(
                f"the energy distance needs two or more entries of positive total weight; "
                f"the {name} sample has {len(weight)} with total {float(weight.detach().sum()):g}"
            )
    between = (a @ pair_distances(x, y) @ b) / (a.sum() * b.sum())
    return 2.0 * between - mean_distance_within(x, a) - mean_distance_within(y, b)


class EnergyPenalty(Penalty):
    """:func:`energy_distance`: the default; sensitive to the bulk of the samples."""

    name: ClassVar[str] = "energy"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    leading_share: ClassVar[float | None] = LEADING_SHARE

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        return energy_distance(simulation.points, data.points, simulation.weight, data.weight)

    def scale(self, data: PenaltySample) -> float:
        """E|Y - Y'|, the expectation of n D_V for equal laws, with n = N M / (N + M)."""
        return float(mean_distance_within(data.points, data.weight))
