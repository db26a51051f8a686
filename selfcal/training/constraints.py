"""The weight with which the penalty of each region counts: D_r ≤ ε_r as a constraint.

The hinge acts on a moving average of D_r, because on a single minibatch it is biased.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.config.training import JointConfig

AVERAGE_KEPT = 0.95
"""Memory of the moving average of each D_r: about twenty minibatches."""


class Constraints:
    """Moving averages D̄_r against their floors ε_r, and what follows for the weights.

    ``fixed``: weight one while D̄_r > ε_r, else zero. ``multiplier``: the modified differential method of
    multipliers (Platt and Barr, NIPS 1987) for g_r = D̄_r - ε_r ≤ 0: weight [λ_r + c g_r]₊ with
    λ_r ← [λ_r + η g_r]₊ after every step, λ_r = 0 at the start; η and c are ``multiplier_rate`` and
    ``multiplier_damping``. All weights are relative to ``penalty_weight``.
    """

    def __init__(self, floors: list[Tensor], config: JointConfig) -> None:
        self.floors, self.config = floors, config
        # Averages start at the floor: the hinge closes only where the data ask for it.
        self.averages = [floor.clone() for floor in floors]
        self.multipliers = [0.0 for _ in floors]

    def observe(self, region: int, distance: Float[Tensor, ""]) -> float:
        """Take D_r of a minibatch into the average; the weight that it now has."""
        self.averages[region] = AVERAGE_KEPT * self.averages[region] + (1 - AVERAGE_KEPT) * distance.detach()
        excess = float(self.averages[region] - self.floors[region])
        if self.config.constraint == "fixed":
            return 1.0 if excess > 0 else 0.0
        weight = max(0.0, self.multipliers[region] + self.config.multiplier_damping * excess)
        self.multipliers[region] = max(0.0, self.multipliers[region] + self.config.multiplier_rate * excess)
        return weight

    def as_row(self) -> dict[str, list[float]]:
        """The state, for the metrics and to continue from."""
        return {
            "averages": [float(value) for value in self.averages],
            "floors": [float(value) for value in self.floors],
            "multipliers": list(self.multipliers),
        }

    def continue_from(self, row: dict[str, list[float]]) -> None:
        """The inverse of :meth:`as_row`."""
        self.averages = [torch.tensor(value, dtype=torch.float64) for value in row["averages"]]
        self.multipliers = list(row["multipliers"])
