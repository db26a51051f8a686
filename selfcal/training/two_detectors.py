"""Losses that compare a jet with itself in another detector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selfcal.training.objectives import WeightedMean


def consistency_loss(
    logits: Float[Tensor, "jets flavours"],
    other: Float[Tensor, "jets flavours"],
    weight: Float[Tensor, " jets"],
) -> WeightedMean:
    """Weighted mean over jets of mean_k (ln p_k - ln p'_k)^2: what another detector changes in the scores."""
    apart = F.log_softmax(logits, dim=1) - F.log_softmax(other, dim=1)
    return WeightedMean((weight * apart.square().mean(dim=1)).sum(), weight.sum())


def contrastive_loss(
    latent: Float[Tensor, "jets width"], other: Float[Tensor, "jets width"], temperature: float
) -> WeightedMean:
    """Mean of -[ln softmax_j(u_i·v_j / t)_i + ln softmax_j(v_i·u_j / t)_i] / 2 over the jets i.

    u_i and v_i are the unit vectors of a jet's latent in both detectors: each is to find the other among
    those of all jets of the batch (re-simulation as augmentation: arXiv:2403.07066; the loss: 2103.00020).
    """
    u, v = F.normalize(latent, dim=1), F.normalize(other, dim=1)
    alike = u @ v.T / temperature
    own = torch.arange(len(u), device=u.device)
    found = F.cross_entropy(alike, own, reduction="sum") + F.cross_entropy(alike.T, own, reduction="sum")
    return WeightedMean(found / 2, found.new_tensor(float(len(u))))
