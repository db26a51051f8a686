"""The domain adversary: a network that tells data from simulation, and a tagger that hides from it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.penalty.contract import LearntPenalty, PenaltySample, weighted_mean


class DomainAdversary(LearntPenalty):
    """D = ln 2 - BCE of a classifier d of data against simulation, both with the same total weight.

    BCE = ½ E_data ln(1 + e^{-d}) + ½ E_sim ln(1 + e^{d}), which d minimises (:meth:`critic_loss`)
    while the tagger minimises D, that is, maximises BCE: one step of each on the same batch is a
    step of gradient reversal (DANN, arXiv 1505.07818; adversarial networks against nuisances, arXiv
    1611.01046). With the best d, D is the Jensen-Shannon divergence; with any other it is below.

    The flavours of a region need not be the same in data and simulation, and an adversary hides that
    difference with the others: it is used only where one flavour dominates.
    """

    name: ClassVar[str] = "adversary"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = False
    drives_calibration: ClassVar[bool] = False
    pure_regions_only: ClassVar[bool] = True

    def __init__(self, features: int, hidden_width: int = 32) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(features, hidden_width),
            nn.SiLU(),
            nn.Linear(hidden_width, hidden_width),
            nn.SiLU(),
            nn.Linear(hidden_width, 1),
        ).double()
        nn.init.zeros_(self.network[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.network[-1].bias)  # type: ignore[arg-type]

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        return math.log(2.0) - self.critic_loss(simulation, data)

    def critic_loss(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        """BCE."""
        of_data = weighted_mean(F.softplus(-self.network(data.points)[:, 0]), data.weight)
        of_simulation = weighted_mean(F.softplus(self.network(simulation.points)[:, 0]), simulation.weight)
        return 0.5 * (of_data + of_simulation)

    def scale(self, data: PenaltySample) -> float:
        """ln 2, the value for samples that do not overlap."""
        del data
        return math.log(2.0)
