"""What every tagger shares: an encoder of tracks, and the heads on top of it."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import ORIGINS
from selfcal.tagger.batching import JetBatch


class Encoded(NamedTuple):
    """What an encoder makes of a batch: one vector per track and one per jet, W wide."""

    tracks: Float[Tensor, "jets tracks width"]
    jet: Float[Tensor, "jets width"]


class Encoder(nn.Module):
    """Base of all encoders: ``forward(batch) -> Encoded``, vectors of ``width`` numbers.

    The result for a jet depends neither on the order of its tracks nor on the
    other jets in the batch, and is defined for a jet without tracks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, batch: JetBatch) -> Encoded:
        raise NotImplementedError


class TaggerOutput(NamedTuple):
    """Logits of the flavours, the latent vector they come from, logits of the track origins.

    ``origin_logits`` is None if it was not asked for.
    """

    logits: Float[Tensor, "jets flavours"]
    latent: Float[Tensor, "jets latent"]
    origin_logits: Float[Tensor, "jets tracks origins"] | None


class FlavourTagger(nn.Module):
    """encoder -> latent h = GELU(W e + a) -> flavour logits; (track, h) -> origin logits.

    The origin head is GELU(W_t x_i + W_h h + c) followed by a linear layer, which is
    the dense layer over the concatenation (x_i, h) without repeating h for every track.
    """

    def __init__(self, encoder: Encoder, latent: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = nn.Linear(encoder.width, latent)
        self.flavour = nn.Linear(latent, len(FLAVOURS))
        self.origin_of_track = nn.Linear(encoder.width, encoder.width)
        self.origin_of_jet = nn.Linear(latent, encoder.width, bias=False)
        self.origin = nn.Linear(encoder.width, len(ORIGINS))

    def forward(self, batch: JetBatch, *, with_origin: bool = True) -> TaggerOutput:
        encoded: Encoded = self.encoder(batch)
        latent = F.gelu(self.latent(encoded.jet))
        origin_logits = None
        if with_origin:
            hidden = self.origin_of_track(encoded.tracks) + self.origin_of_jet(latent)[:, None]
            origin_logits = self.origin(F.gelu(hidden))
        return TaggerOutput(self.flavour(latent), latent, origin_logits)
