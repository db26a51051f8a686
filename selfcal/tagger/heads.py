"""Heads on single tracks and on pairs of tracks.

Both begin with a dense layer over a concatenation, computed factorised: one
product per track and one per jet, added up, instead of one per (track, jet) or
(track, track, jet).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfcal.tagger.pairs import TrackPairs


def dense_layers(widths: Sequence[int]) -> nn.Sequential:
    """GELU, linear layer, GELU, ..., linear layer through ``widths``, from first to last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.GELU(), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


class ResponseHead(nn.Module):
    """Latent h -> ln(true pT / pT) of the jet, through one hidden layer."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(latent, latent), nn.GELU(), nn.Linear(latent, 1))

    def forward(self, latent: Float[Tensor, "jets latent"]) -> Float[Tensor, " jets"]:
        result: Tensor = self.layers(latent)
        return result.squeeze(-1)


class TrackHead(nn.Module):
    """(track x_i, latent h) -> logits: dense layers over (x_i, h); the first is W_t x_i + W_h h + c."""

    def __init__(self, width: int, latent: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.of_track = nn.Linear(width, hidden[0])
        self.of_jet = nn.Linear(latent, hidden[0], bias=False)
        self.rest = dense_layers([*hidden, outputs])

    def forward(
        self,
        tracks: Float[Tensor, "all_tracks width"],
        latent: Float[Tensor, "jets latent"],
        jet_of_track: Int[Tensor, " all_tracks"],
    ) -> Float[Tensor, "all_tracks outputs"]:
        result: Tensor = self.rest(self.of_track(tracks) + self.of_jet(latent)[jet_of_track])
        return result


class SymmetricPairs(torch.autograd.Function):
    """y_p = m_i + m_j + |d_i - d_j| for the pairs p = (i, j), (T, H) to (P, H).

    Pairs are ten times as many as tracks, so memory traffic decides: one number per element
    is kept for the gradient (the sign), where composed operations keep four.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: Float[Tensor, "tracks hidden"],
        difference: Float[Tensor, "tracks hidden"],
        first: Int[Tensor, " pairs"],
        second: Int[Tensor, " pairs"],
    ) -> Float[Tensor, "pairs hidden"]:
        apart = difference.index_select(0, first)
        apart -= difference.index_select(0, second)
        joined = mean.index_select(0, first)
        joined += mean.index_select(0, second)
        joined += apart.abs()
        ctx.save_for_backward(apart.sign_(), first, second)
        ctx.tracks = len(mean)
        return joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        sign, first, second = ctx.saved_tensors
        of_mean = gradient.new_zeros(ctx.tracks, gradient.shape[1])
        of_difference = torch.zeros_like(of_mean)
        of_mean.index_add_(0, first, gradient).index_add_(0, second, gradient)
        signed = gradient * sign
        of_difference.index_add_(0, first, signed).index_add_(0, second, signed, alpha=-1)
        return of_mean, of_difference, None, None


class PairHead(nn.Module):
    """(tracks x_i, x_j, latent h) -> one logit: that the two come from one vertex.

    The first layer is S (x_i + x_j) + |D (x_i - x_j)| + W_h h + c, elementwise. With
    W = S + D and V = S - D that is the larger of the two orders of an ordinary dense
    layer, max(W x_i + V x_j, W x_j + V x_i) + W_h h + c: the same whichever track comes first.
    """

    def __init__(self, width: int, latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.of_track = nn.Linear(width, 2 * hidden[0])
        self.of_jet = nn.Linear(latent, hidden[0], bias=False)
        self.rest = dense_layers([*hidden, 1])

    def forward(
        self,
        tracks: Float[Tensor, "all_tracks width"],
        latent: Float[Tensor, "jets latent"],
        valid: Bool[Tensor, "jets tracks"],
        pairs: TrackPairs,
    ) -> Float[Tensor, " pairs"]:
        jet_of_track = valid.nonzero()[:, 0]
        mean, half_difference = self.of_track(tracks).chunk(2, dim=-1)
        # The jet's share goes to each track by half, so that no pair has to look it up.
        mean = mean + 0.5 * self.of_jet(latent)[jet_of_track]
        row = (valid.flatten().cumsum(0) - 1).view(valid.shape)
        first, second = row[pairs.jet, pairs.first], row[pairs.jet, pairs.second]
        joined: Tensor = SymmetricPairs.apply(mean, half_difference, first, second)  # type: ignore[no-untyped-call]
        result: Tensor = self.rest(joined)
        return result.squeeze(-1)
