"""The residual map: no inverse is promised, so it is fitted by distances between samples."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.calibration import MapConfig
from selfcal.transport.maps import CalibrationMap


class ResidualMap(CalibrationMap):
    """T(u | c) = u + A u + B c + b + g(u, c), A symmetric and g a network of two hidden layers.

    A, B, b and the last layer of g start at zero: the identity. The linear part carries what a detector
    does to first order, also beyond the jets seen in the fit; g the rest. A symmetric matrix does not
    rotate, which would move jets and change no Gaussian. The Gaussian prior of A, B and b has width
    ``displacement_scale``. Nothing keeps T from folding; the price of the
    displacement in the fit makes that unlikely where jets are.
    """

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        self.prior_width = config.displacement_scale
        width = config.hidden_width
        self.stretch = nn.Parameter(torch.zeros(coordinates, coordinates, dtype=torch.float64))
        self.slope = nn.Linear(conditions, coordinates).double()
        final = nn.Linear(width, coordinates)
        self.network = nn.Sequential(
            nn.Linear(coordinates + conditions, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            final,
        ).double()
        for last in (self.slope, final):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        linear = coordinates @ self._symmetric() + self.slope(conditions)
        moved: Tensor = coordinates + linear + self.network(torch.cat([coordinates, conditions], dim=1))
        return moved

    def _symmetric(self) -> Float[Tensor, "row column"]:
        return 0.5 * (self.stretch + self.stretch.T)

    def stiffness(self) -> Float[Tensor, ""]:
        linear = (self._symmetric(), self.slope.weight, self.slope.bias)
        return 0.5 * torch.stack([part.square().sum() for part in linear]).sum() / self.prior_width**2
