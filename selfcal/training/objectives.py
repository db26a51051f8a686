"""The losses of the tagger: jet flavour, track origin, common vertices of tracks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfcal.config.run import TrainingConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.tagger.batching import UNKNOWN_VERTEX, JetBatch
from selfcal.tagger.network import FlavourTagger, TaggerOutput
from selfcal.tagger.pairs import TrackPairs


@dataclass(frozen=True)
class TaggerLoss:
    """``total`` = ``flavour`` + w ``origin`` + v ``vertex``, all scalar tensors."""

    total: Tensor
    flavour: Tensor
    origin: Tensor
    vertex: Tensor


def tagger_loss(
    output: TaggerOutput,
    batch: JetBatch,
    *,
    origin_loss_weight: float,
    vertex_loss_weight: float,
    flavour_weights: Float[Tensor, " flavours"] | None = None,
) -> TaggerLoss:
    """L = L_flavour + origin_loss_weight L_origin + vertex_loss_weight L_vertex.

    L_flavour = sum_i w_i CE_i / sum_i w_i over labelled jets, with jet weights w_i times
    ``flavour_weights`` of their flavour. L_origin is the mean cross entropy over all
    tracks of known origin, L_vertex that over all pairs of tracks of known vertex; zero
    where there is none, or where the output has no such logits.
    """
    flavour = flavour_loss(output.logits, batch.flavour, batch.weight, flavour_weights)
    origin = vertex = torch.zeros_like(flavour)
    if output.origin_logits is not None:
        origin = origin_loss(output.origin_logits, batch.origin)
    if output.vertex_logits is not None and output.pairs is not None:
        vertex = vertex_loss(output.vertex_logits, output.pairs, batch.vertex)
    total = flavour + origin_loss_weight * origin + vertex_loss_weight * vertex
    return TaggerLoss(total, flavour, origin, vertex)


def supervised_loss(
    model: FlavourTagger,
    batch: JetBatch,
    config: TrainingConfig,
    flavour_weights: Float[Tensor, " flavours"] | None = None,
) -> tuple[TaggerLoss, TaggerOutput]:
    """The loss of ``model`` on ``batch``; a head whose loss has weight zero is not computed."""
    output: TaggerOutput = model(
        batch, with_origin=config.origin_loss_weight > 0, with_vertex=config.vertex_loss_weight > 0
    )
    loss = tagger_loss(
        output,
        batch,
        origin_loss_weight=config.origin_loss_weight,
        vertex_loss_weight=config.vertex_loss_weight,
        flavour_weights=flavour_weights,
    )
    return loss, output


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


def vertex_loss(
    vertex_logits: Float[Tensor, " pairs"], pairs: TrackPairs, vertex: Int[Tensor, "jets tracks"]
) -> Float[Tensor, ""]:
    """Mean binary cross entropy over the pairs whose two tracks have a known vertex.

    The truth is "same vertex": equal numbers >= 0. A track without vertex (pile-up,
    fake) shares one with no other. Zero where there is no such pair.
    """
    same, known = same_vertex(pairs, vertex)
    each = F.binary_cross_entropy_with_logits(vertex_logits, same.to(vertex_logits.dtype), reduction="none")
    return torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1)


def same_vertex(
    pairs: TrackPairs, vertex: Int[Tensor, "jets tracks"]
) -> tuple[Bool[Tensor, " pairs"], Bool[Tensor, " pairs"]]:
    """Whether the two tracks of each pair share a true vertex, and whether that is known."""
    first, second = vertex[pairs.jet, pairs.first], vertex[pairs.jet, pairs.second]
    return (first == second) & (first >= 0), (first != UNKNOWN_VERTEX) & (second != UNKNOWN_VERTEX)


def balanced_flavour_weights(flavour: Int[Tensor, " jets"]) -> Float[Tensor, " flavours"]:
    """Weights that give every flavour present the same total, with mean one over the jets."""
    counts = np.bincount(flavour[flavour >= 0].numpy(), minlength=len(FLAVOURS)).astype(np.float64)
    present = counts > 0
    weights = np.where(present, counts.sum() / (max(present.sum(), 1) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))
