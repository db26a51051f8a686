"""The likelihood ratio of two flows, one fitted to data and one to the simulated mixture."""

from __future__ import annotations

from typing import ClassVar

import torch
import zuko
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import LearntPenalty, PenaltySample, weighted_mean


class FlowLikelihood(LearntPenalty):
    """D = E_data[r] - E_sim[r] with r = ln q_data - ln q_sim: Jeffreys' divergence where q are the densities.

    q_sim is fitted by weighted maximum likelihood to the transported simulation of all flavours, each
    weighted by its fraction: it is the density of the mixture Σ_k π_k T_k#p_k. Both q are neural spline
    flows (zuko) that start equal, so that D = 0, and follow in alternation with the rest
    (:meth:`critic_loss`). A bare -ln q_sim of data is no penalty: the tagger would lower it by
    squeezing all scores together.
    """

    name: ClassVar[str] = "flow_likelihood"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    leading_share: ClassVar[float | None] = 1.0  # n D / 2 is a log-likelihood already

    def __init__(self, features: int, hidden_width: int = 32) -> None:
        super().__init__()
        self.of_simulation, self.of_data = (
            zuko.flows.NSF(
                features, bins=6, transforms=2, hidden_features=(hidden_width, hidden_width)
            ).double()
            for _ in range(2)
        )
        self.of_data.load_state_dict(self.of_simulation.state_dict())

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        return weighted_mean(self._ratio(data.points), data.weight) - weighted_mean(
            self._ratio(simulation.points), simulation.weight
        )

    def critic_loss(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        """-E_data ln q_data - E_sim ln q_sim."""
        return -sum(
            (
                weighted_mean(flow().log_prob(sample.points), sample.weight)
                for flow, sample in ((self.of_data, data), (self.of_simulation, simulation))
            ),
            start=torch.zeros((), dtype=torch.float64),
        )

    def scale(self, data: PenaltySample) -> float:
        """One unit of log-likelihood per jet."""
        del data
        return 1.0

    def _ratio(self, points: Float[Tensor, "n features"]) -> Float[Tensor, " n"]:
        result: Tensor = self.of_data().log_prob(points) - self.of_simulation().log_prob(points)
        return result
