"""Batches of jets with similar numbers of tracks, reshuffled in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from selfcal.data.flavours import UNLABELLED
from selfcal.data.jets import ORIGINS, Jets
from selfcal.tagger.inputs import Normalisation, TaggerInputs, compute_features
from selfcal.tagger.perigee import perigee_columns

NO_VERTEX, UNKNOWN_VERTEX = -1, -2
ORIGINS_WITHOUT_VERTEX = (ORIGINS.index("pileup"), ORIGINS.index("fake"))


@dataclass(frozen=True)
class JetBatch:
    """B jets, padded to the L tracks of the longest.

    Attributes
    ----------
    tracks : (B, L, F) float32, zero where padded
    valid : (B, L) bool, False where padded
    jet : (B, J) float32
    flavour : (B,) int64, -1 where unlabelled
    origin : (B, L) int64, -1 where padded or unknown
    vertex : (B, L) int64, number of the true vertex within the jet; NO_VERTEX for pile-up and fakes,
        UNKNOWN_VERTEX where padded or unknown
    weight : (B,) float32
    perigee : (B, L, 11) float32, ``perigee_columns`` of the tracks; None where no vertices are fitted
    log_response : (B,) float32, ln(true pT / pT); NaN where a jet has no true one, None where none is known
    """

    tracks: Float[Tensor, "jets tracks features"]
    valid: Bool[Tensor, "jets tracks"]
    jet: Float[Tensor, "jets jet_features"]
    flavour: Int[Tensor, " jets"]
    origin: Int[Tensor, "jets tracks"]
    vertex: Int[Tensor, "jets tracks"]
    weight: Float[Tensor, " jets"]
    perigee: Float[Tensor, "jets tracks columns"] | None = None
    log_response: Float[Tensor, " jets"] | None = None

    def __len__(self) -> int:
        return len(self.jet)

    def to(self, device: torch.device) -> JetBatch:
        """The same batch on another device."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: v.to(device) for name, v in values.items() if v is not None})


def unlabelled_batch(
    tracks: Float[Tensor, "jets tracks features"],
    valid: Bool[Tensor, "jets tracks"],
    jet: Float[Tensor, "jets jet_features"],
) -> JetBatch:
    """Normalised inputs alone as a batch: nothing is known of the truth, and all weights are one."""
    origin = torch.full_like(valid, -1, dtype=torch.int64)
    vertex = torch.full_like(valid, UNKNOWN_VERTEX, dtype=torch.int64)
    flavour = torch.full_like(jet[:, 0], UNLABELLED, dtype=torch.int64)
    return JetBatch(tracks, valid, jet, flavour, origin, vertex, torch.ones_like(jet[:, 0]))


@dataclass(frozen=True)
class TensorJets:
    """Normalised inputs and labels of N jets with T tracks, packed as in ``Jets``."""

    tracks: Float[Tensor, "all_tracks features"]
    offsets: Int[Tensor, " jets_plus_one"]
    jet: Float[Tensor, "jets jet_features"]
    flavour: Int[Tensor, " jets"]
    origin: Int[Tensor, " all_tracks"]
    vertex: Int[Tensor, " all_tracks"]
    weight: Float[Tensor, " jets"]
    perigee: Float[Tensor, "all_tracks columns"] | None = None
    log_response: Float[Tensor, " jets"] | None = None

    def __len__(self) -> int:
        return len(self.jet)

    @property
    def n_tracks(self) -> NDArray[np.int64]:
        return np.diff(self.offsets.numpy())

    def double(self) -> TensorJets:
        """The same inputs in float64."""
        perigee = None if self.perigee is None else self.perigee.double()
        return replace(self, tracks=self.tracks.double(), jet=self.jet.double(), perigee=perigee)

    def batch(self, index: NDArray[np.int64]) -> JetBatch:
        """The jets ``index`` (B,) as one padded batch, in that order."""
        chosen = torch.from_numpy(index)
        start = self.offsets[chosen]
        counts = self.offsets[chosen + 1] - start
        longest = int(counts.max()) if len(index) else 0
        position = torch.arange(longest)
        valid = position < counts[:, None]
        rows = torch.where(valid, start[:, None] + position, 0)
        return JetBatch(
            tracks=self.tracks[rows] * valid[..., None],
            valid=valid,
            jet=self.jet[chosen],
            flavour=self.flavour[chosen],
            origin=torch.where(valid, self.origin[rows], -1),
            vertex=torch.where(valid, self.vertex[rows], UNKNOWN_VERTEX),
            weight=self.weight[chosen],
            perigee=None if self.perigee is None else self.perigee[rows],
            log_response=None if self.log_response is None else self.log_response[chosen],
        )


def to_tensors(
    jets: Jets, inputs: TaggerInputs, normalisation: Normalisation, *, with_perigee: bool = False
) -> TensorJets:
    """Compute and normalise the inputs of ``jets`` (errors as ``compute_features``, ``perigee_columns``)."""
    features = normalisation.apply(compute_features(jets, inputs))
    return TensorJets(
        tracks=torch.from_numpy(features.track),
        offsets=torch.from_numpy(jets.track_offsets.astype(np.int64)),
        jet=torch.from_numpy(features.jet),
        flavour=torch.from_numpy(jets.flavour.astype(np.int64)),
        origin=torch.from_numpy(jets.track_origin.astype(np.int64)),
        vertex=torch.from_numpy(_vertex(jets)),
        weight=torch.from_numpy(jets.weight.astype(np.float32)),
        perigee=torch.from_numpy(perigee_columns(jets)) if with_perigee else None,
        log_response=_log_response(jets),
    )


def _log_response(jets: Jets) -> Tensor | None:
    if jets.truth_pt_gev is None:
        return None
    return torch.from_numpy(np.log(jets.truth_pt_gev / jets.pt_gev))


def _vertex(jets: Jets) -> NDArray[np.int64]:
    """The true vertex of every track, (T,), with NO_VERTEX told apart from UNKNOWN_VERTEX.

    Files give pile-up and fake tracks a negative number; without any other number the
    file says nothing about vertices.
    """
    vertex = jets.track_vertex.astype(np.int64)
    no_vertex = (vertex < 0) & np.isin(jets.track_origin, ORIGINS_WITHOUT_VERTEX) & bool((vertex >= 0).any())
    return np.where(vertex >= 0, vertex, np.where(no_vertex, NO_VERTEX, UNKNOWN_VERTEX))


def join(parts: Sequence[TensorJets]) -> TensorJets:
    """All jets of ``parts``, in order."""
    lengths = torch.cat([torch.diff(part.offsets) for part in parts])
    perigees = [part.perigee for part in parts if part.perigee is not None]
    return TensorJets(
        tracks=torch.cat([part.tracks for part in parts]),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        jet=torch.cat([part.jet for part in parts]),
        flavour=torch.cat([part.flavour for part in parts]),
        origin=torch.cat([part.origin for part in parts]),
        vertex=torch.cat([part.vertex for part in parts]),
        weight=torch.cat([part.weight for part in parts]),
        perigee=torch.cat(perigees) if len(perigees) == len(parts) else None,
        log_response=_joined_response(parts),
    )


def _joined_response(parts: Sequence[TensorJets]) -> Tensor | None:
    if all(part.log_response is None for part in parts):
        return None
    unknown = (torch.full((len(part),), float("nan")) for part in parts)
    return torch.cat(
        [
            u if part.log_response is None else part.log_response
            for part, u in zip(parts, unknown, strict=True)
        ]
    )


def epoch_batches(
    n_tracks: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int, bucket: int = 16
) -> list[NDArray[np.int64]]:
    """Indices of the batches of one epoch; every jet occurs once.

    All jets are shuffled, each run of ``bucket`` batches is sorted by number of
    tracks and cut, and the batches are shuffled again: little padding, yet new
    batch members in every epoch. The order depends on (seed, epoch) alone, so that
    a resumed training needs no other state to continue with the same batches.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(n_tracks))
    batches: list[NDArray[np.int64]] = []
    for first in range(0, len(order), bucket * batch_size):
        chunk = order[first : first + bucket * batch_size]
        chunk = chunk[np.argsort(n_tracks[chunk], kind="stable")]
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def sorted_batches(n_tracks: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """All jets in order of their number of tracks, for evaluation."""
    order = np.argsort(n_tracks, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
