"""A calibration map of one's own: T(u | c)_i = u_i exp(a_i + b_i c), with c the first condition (pT)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.calibration import MapConfig
from selfcal.transport.maps import InvertibleMap


class StretchMap(InvertibleMap):
    """Stretches each coordinate about zero; the identity when new, because a = b = 0."""

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        del conditions  # only the first, pT, is used
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(coordinates, dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(coordinates, dtype=torch.float64))
        self.prior_width = config.displacement_scale

    def _log_factor(self, conditions: Float[Tensor, "jets conditions"]) -> Float[Tensor, "jets coordinates"]:
        return self.constant + conditions[:, :1] * self.slope

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        return coordinates * self._log_factor(conditions).exp()

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        log_factor = self._log_factor(conditions)
        return coordinates * (-log_factor).exp(), -log_factor.sum(dim=1)

    def stiffness(self) -> Float[Tensor, ""]:
        """Minus the log of a Gaussian prior of ``prior_width`` on a and b, up to a constant."""
        return 0.5 * sum((p / self.prior_width).square().sum() for p in self.parameters())
