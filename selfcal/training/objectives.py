"""The losses of the tagger: jet flavour, track origin, common vertices of tracks, response in pT.

Every loss is a weighted mean. It is kept as numerator and denominator, because the mean
over several processes, or over several batches, is the ratio of sums and not the mean of ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfcal.config.training import TrainingConfig
from selfcal.tagger.batching import UNKNOWN_VERTEX, JetBatch
from selfcal.tagger.network import FlavourTagger, TaggerOutput
from selfcal.tagger.pairs import TrackPairs
from selfcal.training.processes import ALONE, Processes

Value = TypeVar("Value", float, Tensor)


class WeightedMean(NamedTuple):
    """sum w x / sum w, as its two scalar tensors."""

    numerator: Float[Tensor, ""]
    denominator: Float[Tensor, ""]

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean; zero, with zero gradient, where nothing counts."""
        return self.numerator / self.denominator.clamp(min=torch.finfo(self.denominator.dtype).tiny)


@dataclass(frozen=True)
class TaggerLoss:
    """``total`` = L_flavour + the weighted sum of the others; ``parts`` by the names of :data:`LOSSES`.

    With several processes these are the shares of this one: their sums are the losses of the whole batch.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


def supervised_loss(
    model: FlavourTagger, batch: JetBatch, config: TrainingConfig, processes: Processes = ALONE
) -> tuple[TaggerLoss, TaggerOutput]:
    """L_flavour + Σ w_i L_i of ``model`` over its other heads, with the weights of ``config``.

    A head whose loss has weight zero is not computed, and its loss is zero. With
    ``config.precision`` bfloat16 the model runs in mixed precision, the losses in float32.
    """
    with torch.autocast(batch.tracks.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        output: TaggerOutput = model(
            batch, with_origin=config.origin_loss_weight > 0, with_vertex=config.vertex_loss_weight > 0
        )
    return tagger_loss(output, batch, config, processes), output


def tagger_loss(
    output: TaggerOutput, batch: JetBatch, config: TrainingConfig, processes: Processes = ALONE
) -> TaggerLoss:
    """The losses of an output; zero for a head that it has not."""
    means = mean_losses(output, batch)
    denominators = processes.total(torch.stack([mean.denominator for mean in means.values()]))
    shares = {
        name: WeightedMean(mean.numerator, denominator).value
        for (name, mean), denominator in zip(means.items(), denominators, strict=True)
    }
    zero = torch.zeros_like(shares["flavour"])
    parts = {name: shares.get(name, zero) for name in LOSSES}
    return TaggerLoss(weighted_total(parts, config), parts)


def mean_losses(output: TaggerOutput, batch: JetBatch) -> dict[str, WeightedMean]:
    """The losses of the heads that ``output`` has and ``batch`` knows the truth for, by name."""
    means = {name: loss(output, batch) for name, loss in LOSSES.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def weighted_total(losses: Mapping[str, Value], config: TrainingConfig) -> Value:
    """L_flavour + Σ w_i L_i, w_i the key ``<name>_loss_weight``; losses that are absent count as zero."""
    total = losses["flavour"]
    for name in LOSSES:
        if name != "flavour" and name in losses:
            total = total + getattr(config, f"{name}_loss_weight") * losses[name]
    return total


def flavour_loss(
    logits: Float[Tensor, "jets flavours"], flavour: Int[Tensor, " jets"], weight: Float[Tensor, " jets"]
) -> WeightedMean:
    """Weighted mean cross entropy; jets of flavour -1 do not count."""
    weight = torch.where(flavour >= 0, weight, 0.0)
    each = F.cross_entropy(logits, flavour, reduction="none", ignore_index=-1)
    return WeightedMean((weight * each).sum(), weight.sum())


def origin_loss(
    origin_logits: Float[Tensor, "jets tracks origins"], origin: Int[Tensor, "jets tracks"]
) -> WeightedMean:
    """Mean cross entropy over tracks with a known origin (>= 0)."""
    summed = F.cross_entropy(origin_logits.flatten(0, 1), origin.flatten(), ignore_index=-1, reduction="sum")
    return WeightedMean(summed, (origin >= 0).sum().to(summed.dtype))


def response_loss(
    log_response: Float[Tensor, " jets"], truth: Float[Tensor, " jets"], weight: Float[Tensor, " jets"]
) -> WeightedMean:
    """Weighted mean of |x - t| - d / 2, or (x - t)^2 / (2 d) within d = 0.1; jets with t NaN do not count.

    Near zero it is the squared error; a few jets with half their energy lost do not dominate it.
    """
    known = truth.isfinite()
    weight = torch.where(known, weight, 0.0)
    each = F.smooth_l1_loss(log_response, torch.where(known, truth, 0.0), reduction="none", beta=0.1)
    return WeightedMean((weight * each).sum(), weight.sum())


def vertex_loss(
    vertex_logits: Float[Tensor, " pairs"], pairs: TrackPairs, vertex: Int[Tensor, "jets tracks"]
) -> WeightedMean:
    """Mean binary cross entropy over the pairs whose two tracks have a known vertex.

    The truth is "same vertex": equal numbers >= 0. A track without vertex (pile-up,
    fake) shares one with no other.
    """
    same, known = same_vertex(pairs, vertex)
    each = F.binary_cross_entropy_with_logits(vertex_logits, same.to(vertex_logits.dtype), reduction="none")
    return WeightedMean(torch.where(known, each, 0.0).sum(), known.sum().to(each.dtype))


def same_vertex(
    pairs: TrackPairs, vertex: Int[Tensor, "jets tracks"]
) -> tuple[Bool[Tensor, " pairs"], Bool[Tensor, " pairs"]]:
    """Whether the two tracks of each pair share a true vertex, and whether that is known."""
    first, second = vertex[pairs.jet, pairs.first], vertex[pairs.jet, pairs.second]
    return (first == second) & (first >= 0), (first != UNKNOWN_VERTEX) & (second != UNKNOWN_VERTEX)


def _flavour(output: TaggerOutput, batch: JetBatch) -> WeightedMean:
    return flavour_loss(output.logits.float(), batch.flavour, batch.weight)


def _origin(output: TaggerOutput, batch: JetBatch) -> WeightedMean | None:
    if output.origin_logits is None:
        return None
    return origin_loss(output.origin_logits.float(), batch.origin)


def _vertex(output: TaggerOutput, batch: JetBatch) -> WeightedMean | None:
    if output.vertex_logits is None or output.pairs is None:
        return None
    return vertex_loss(output.vertex_logits.float(), output.pairs, batch.vertex)


def _response(output: TaggerOutput, batch: JetBatch) -> WeightedMean | None:
    if output.log_response is None or batch.log_response is None:
        return None
    return response_loss(output.log_response.float(), batch.log_response, batch.weight)


LOSSES: Mapping[str, Callable[[TaggerOutput, JetBatch], WeightedMean | None]] = {
    "flavour": _flavour,
    "origin": _origin,
    "vertex": _vertex,
    "response": _response,
}
"""The loss of every head, None where the tagger lacks the head or the jets its truth. All but the first have
their weight in ``training.<name>_loss_weight``."""
