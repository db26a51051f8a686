"""One flow for simulation and data: encode as simulation, flip the switch, decode as data."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.config.calibration import MapConfig
from selfcal.transport.flow_map import FlowMap
from selfcal.transport.maps import InvertibleMap


class SwitchMap(InvertibleMap):
    """T(u | c) = F(F⁻¹(u | c, s=0) | c, s=1), F a flow with the switch s as one more condition.

    The idea of arXiv 2403.18582. Both halves carry simulation and data to a common latent space and back;
    what is matched there are quantiles of the flow, not near neighbours, so this is **not a map of
    minimal displacement**: of all maps with the same result it may choose one that moves jets far. It is
    the identity as long as F does not look at s, hence when new. Fitted, like all families with an
    inverse, by the mixture likelihood of data, in which only T appears, and not F alone.
    """

    minimality = "none"

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        self.flow = FlowMap(coordinates, conditions + 1, config)

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        latent = self.flow.inverse(coordinates, _switched(conditions, 0.0))
        return self.flow.forward(latent, _switched(conditions, 1.0))

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        latent, log_det = self.flow.inverse_and_log_det(coordinates, _switched(conditions, 1.0))
        simulated = _switched(conditions, 0.0)
        inner = self.flow.affine(latent, simulated)
        log_det_affine = self.flow.affine.matrix_and_shift(simulated)[2]
        outer, log_det_splines = self.flow.couplings.forward_and_log_det(inner, simulated)
        return outer, log_det + log_det_affine + log_det_splines

    def stiffness(self) -> Float[Tensor, ""]:
        return self.flow.stiffness()


def _switched(conditions: Tensor, switch: float) -> Tensor:
    return torch.cat([conditions, torch.full_like(conditions[:, :1], switch)], dim=1)
