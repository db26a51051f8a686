"""The losses of the tagger: jet flavour and track origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.network import TaggerOutput


@dataclass(frozen=True)
class TaggerLoss:
    """``total`` = ``flavour`` + w ``origin``, all scalar tensors."""

    total: Tensor
    flavour: Tensor
    origin: Tensor


def tagger_loss(
    output: TaggerOutput,
    batch: JetBatch,
    *,
    origin_loss_weight: float,
    flavour_weights: Float[Tensor, " flavours"] | None = None,
) -> TaggerLoss:
    """L = L_flavour + origin_loss_weight L_origin.

    L_flavour = sum_i w_i CE_i / sum_i w_i over labelled jets, with jet weights w_i times
    ``flavour_weights`` of their flavour. L_origin is the mean cross entropy over all
    tracks of known origin, zero where there is none.
    """
    flavour = flavour_loss(output.logits, batch.flavour, batch.weight, flavour_weights)
    if output.origin_logits is None or origin_loss_weight == 0:
        return TaggerLoss(flavour, flavour, torch.zeros_like(flavour))
    origin = origin_loss(output.origin_logits, batch.origin)
    return TaggerLoss(flavour + origin_loss_weight * origin, flavour, origin)


def flavour_loss(
    logits: Float[Tensor, "jets flavours"],
    flavour: Int[Tensor, " jets"],
    weight: Float[Tensor, " jets"],
    flavour_weights: Float[Tensor, " flavours"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted mean cross entropy; jets of flavour -1 do not count."""
    weight = torch.where(flavour >= 0, weight, 0.0)
    if flavour_weights is not None:
        weight = weight * flavour_weights[flavour.clamp(min=0)]
    each = F.cross_entropy(logits, flavour, reduction="none", ignore_index=-1)
    return (weight * each).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def origin_loss(
    origin_logits: Float[Tensor, "jets tracks origins"], origin: Int[Tensor, "jets tracks"]
) -> Float[Tensor, ""]:
    """Mean cross entropy over tracks with a known origin (>= 0); zero where there is none."""
    known = (origin >= 0).sum()
    summed = F.cross_entropy(origin_logits.flatten(0, 1), origin.flatten(), ignore_index=-1, reduction="sum")
    return summed / known.clamp(min=1)


def balanced_flavour_weights(flavour: Int[Tensor, " jets"]) -> Float[Tensor, " flavours"]:
    """Weights that give every flavour present the same total, with mean one over the jets."""
    counts = np.bincount(flavour[flavour >= 0].numpy(), minlength=len(FLAVOURS)).astype(np.float64)
    present = counts > 0
    weights = np.where(present, counts.sum() / (max(present.sum(), 1) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))
