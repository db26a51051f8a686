"""Tokens of all jets one after another, without padding, in buckets of jets of equal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Attention = Callable[[Tensor, int, float], Tensor]
"""(query, key, value side by side (..., 3 W), heads, dropout rate) -> what every token has seen (..., W)."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of B jets stand: one register and T tracks altogether, N = B + T.

    Attributes
    ----------
    jets : (B,) the jets in order of their number of tokens
    row : (B,) the place of each jet in that order
    token_source : (N,) per token its row in (registers of the jets in order, then their tracks)
    jet_of_track, place_of_track : (T,) jet and place of the tracks in that order
    token_of_track : (T,) the token of each track, in the order of the batch: jet by jet
    buckets : (number of jets, tokens of each), in order
    """

    jets: Int[Tensor, " jets"]
    row: Int[Tensor, " jets"]
    token_source: Int[Tensor, " tokens"]
    jet_of_track: Int[Tensor, " all_tracks"]
    place_of_track: Int[Tensor, " all_tracks"]
    token_of_track: Int[Tensor, " all_tracks"]
    buckets: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, valid: Bool[Tensor, "jets tracks"]) -> Packing:
        """The packing of the tracks that are valid."""
        counts = valid.sum(dim=1)
        jets = counts.argsort(stable=True)
        row = torch.empty_like(jets)
        row[jets] = torch.arange(len(jets), device=jets.device)
        row_of_track, place = valid[jets].nonzero(as_tuple=True)
        of_token, is_track = F.pad(valid[jets], (1, 0), value=True).nonzero(as_tuple=True)
        number = torch.arange(len(of_token), device=jets.device)
        # Before a track stand the registers of its own and of all earlier jets.
        source = torch.where(is_track > 0, len(jets) + number - of_token - 1, of_token)
        ordered = counts[jets]
        start = ordered.cumsum(0) - ordered + torch.arange(len(jets), device=jets.device)
        jet, _ = valid.nonzero(as_tuple=True)
        before = (valid.cumsum(dim=1) - 1)[valid]
        lengths, repeats = torch.unique_consecutive(ordered, return_counts=True)
        buckets = tuple((n, tracks + 1) for n, tracks in zip(repeats.tolist(), lengths.tolist(), strict=True))
        return cls(jets, row, source, jets[row_of_track], place, start[row[jet]] + 1 + before, buckets)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """(N, ...) tokens as one (jets, length, ...) view per bucket."""
        parts = torch.split(tokens, [jets * length for jets, length in self.buckets])
        return [part.view(*bucket, *part.shape[1:]) for part, bucket in zip(parts, self.buckets, strict=True)]

    def attention(self) -> Attention:
        """Attention within each jet, bucket by bucket: nothing is masked and nothing is computed twice."""

        def attend(query_key_value: Tensor, heads: int, dropout: float) -> Tensor:
            parts = self.split(query_key_value)
            return torch.cat([attend_within(part, heads, dropout).flatten(0, 1) for part in parts])

        return attend


def attend_within(
    query_key_value: Float[Tensor, "jets tokens three_width"],
    heads: int,
    dropout: float,
    mask: Bool[Tensor, "jets 1 1 tokens"] | Float[Tensor, "jets heads tokens tokens"] | None = None,
) -> Float[Tensor, "jets tokens width"]:
    """Multi-head attention of the tokens of each jet to each other."""
    jets, tokens, _ = query_key_value.shape
    split = query_key_value.view(jets, tokens, 3, heads, -1)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return seen.transpose(1, 2).flatten(2)
