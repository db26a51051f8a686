"""Pairs of tracks of one jet, packed: nothing is computed for padding, nor for a pair twice."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class TrackPairs(NamedTuple):
    """P pairs of tracks: the row of their jet and their two places i < j in it."""

    jet: Int[Tensor, " pairs"]
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]


def track_pairs(valid: Bool[Tensor, "jets tracks"]) -> TrackPairs:
    """All pairs i < j of valid tracks, jet by jet: n (n - 1) / 2 of a jet with n tracks."""
    tracks = valid.shape[1]
    first, second = torch.triu_indices(tracks, tracks, offset=1, device=valid.device)
    jet, pair = (valid[:, first] & valid[:, second]).nonzero(as_tuple=True)
    return TrackPairs(jet, first[pair], second[pair])


def pair_matrix(
    values: Float[Tensor, " pairs"], pairs: TrackPairs, jets: int, tracks: int
) -> Float[Tensor, "jets tracks tracks"]:
    """The symmetric matrix M[b, i, j] = M[b, j, i] = value of the pair; zero elsewhere."""
    upper = values.new_zeros(jets, tracks, tracks).index_put((pairs.jet, pairs.first, pairs.second), values)
    return upper + upper.transpose(1, 2)
