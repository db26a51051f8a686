"""A map of the tagger's latent vector, tied to the scores through the tagger's own head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.calibration import MapConfig
from selfcal.transport.maps import CalibrationMap

RANK = 8
"""Directions of the latent space in which jets can be moved."""


class LatentMap(CalibrationMap):
    """T(h | c) = h + U g(Uᵀ h, c), with U (H, rank) orthonormal and g zero when new.

    The idea of arXiv 2507.08867: a detector distorts few directions of a latent space of many. U is
    found by QR from a free matrix, so it stays orthonormal while it is fitted; h is expected whitened.
    No inverse is promised. Which scores a moved jet has is decided by the tagger's head alone
    (:func:`moved_log_probability`): scores and latent cannot disagree.

    The maps of ``build_maps`` act on the scores. This one needs the latent vector of every
    jet beside its scores (a column of ``ScoredJets``, H float32 per jet in the score files), the head of
    the final tagger where the calibration is applied, and its whitening in place of ``ScoreFrame``.
    """

    def __init__(self, latent: int, conditions: int, config: MapConfig, rank: int = RANK) -> None:
        super().__init__()
        start = torch.linalg.qr(torch.randn(latent, rank, dtype=torch.float64)).Q
        self.directions = nn.Parameter(start)
        width = config.hidden_width
        self.hidden = nn.Sequential(nn.Linear(rank + conditions, width), nn.SiLU()).double()
        self.last = nn.Linear(width, rank).double()
        self.prior_width = config.displacement_scale
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def basis(self) -> Float[Tensor, "latent rank"]:
        """U, orthonormal."""
        result: Tensor = torch.linalg.qr(self.directions).Q
        return result

    def forward(
        self, coordinates: Float[Tensor, "jets latent"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets latent"]:
        basis = self.basis()
        move: Tensor = self.last(self.hidden(torch.cat([coordinates @ basis, conditions], dim=1)))
        return coordinates + move @ basis.T

    def stiffness(self) -> Float[Tensor, ""]:
        last = self.last
        return 0.5 * (last.weight.square().sum() + last.bias.square().sum()) / self.prior_width**2


def moved_log_probability(
    transport: LatentMap,
    head: Callable[[Tensor], Tensor],
    latent: Float[Tensor, "jets latent"],
    conditions: Float[Tensor, "jets conditions"],
) -> Float[Tensor, "jets classes"]:
    """ln p of the moved jets: ``head`` (latent to logits) after T."""
    return torch.log_softmax(head(transport(latent, conditions)), dim=1)
