"""What every tagger shares: an encoder of tracks, and the heads on top of it."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import ORIGINS
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.heads import PairHead, ResponseHead, TrackHead
from selfcal.tagger.pairs import TrackPairs, track_pairs
from selfcal.tagger.vertex_fit import VertexFit
from selfcal.tagger.vertex_layer import VertexLayer, fit_secondary_vertices


class Encoded(NamedTuple):
    """What an encoder makes of a batch: one vector per valid track, jet by jet, and one per jet, W wide.

    ``tracks`` is None if it was not asked for.
    """

    tracks: Float[Tensor, "all_tracks width"] | None
    jet: Float[Tensor, "jets width"]


class Encoder(nn.Module):
    """Base of all encoders: ``forward(batch, with_tracks=True) -> Encoded``, vectors of ``width`` numbers.

    The result for a jet depends neither on the order of its tracks nor on the
    other jets in the batch, and is defined for a jet without tracks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, batch: JetBatch, *, with_tracks: bool = True) -> Encoded:
        raise NotImplementedError


class TaggerOutput(NamedTuple):
    """Logits of the flavours, the latent vector they come from, and what the heads on tracks say.

    ``vertex_logits`` belong to ``pairs``: that the two tracks come from one vertex. They and
    ``origin_logits`` are None if they were neither asked for nor needed, ``vertices`` if none were fitted,
    ``log_response`` (ln of true pT over pT) if the tagger has no head for it.
    """

    logits: Float[Tensor, "jets flavours"]
    latent: Float[Tensor, "jets latent"]
    origin_logits: Float[Tensor, "jets tracks origins"] | None = None
    pairs: TrackPairs | None = None
    vertex_logits: Float[Tensor, " pairs"] | None = None
    vertices: VertexFit | None = None
    log_response: Float[Tensor, " jets"] | None = None


class FlavourTagger(nn.Module):
    """encoder -> latent h = GELU(W e + a) -> flavour logits; (track, h) -> origin; (pair, h) -> vertex.

    With ``config.vertex_fit``, vertices are fitted with what the last two say, and the
    flavour is told by (and ``TaggerOutput.latent`` is) h plus a term from the fits.
    """

    def __init__(self, encoder: Encoder, config: TaggerConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent = nn.Linear(encoder.width, config.latent)
        self.flavour = nn.Linear(config.latent, len(FLAVOURS))
        self.origin = TrackHead(encoder.width, config.latent, config.origin_widths, len(ORIGINS))
        self.vertex = PairHead(encoder.width, config.latent, config.vertex_widths)
        self.field_tesla = config.field_tesla
        # last, so that the weights drawn before do not depend on it
        self.vertex_layer = VertexLayer(config.fitted_vertices, config.latent) if config.vertex_fit else None
        self.response = ResponseHead(config.latent) if config.regress_pt else None

    def forward(self, batch: JetBatch, *, with_origin: bool = True, with_vertex: bool = True) -> TaggerOutput:
        needs_tracks = with_origin or with_vertex or self.vertex_layer is not None
        encoded: Encoded = self.encoder(batch, with_tracks=needs_tracks)
        latent = F.gelu(self.latent(encoded.jet))
        if self.vertex_layer is None:
            origin_logits = self._origin_logits(batch, encoded, latent) if with_origin else None
            pairs, vertex_logits = self._pairs(batch, encoded, latent) if with_vertex else (None, None)
            vertices = None
        else:
            origin_logits = self._origin_logits(batch, encoded, latent)
            pairs, vertex_logits = self._pairs(batch, encoded, latent)
            vertices = fit_secondary_vertices(
                batch, origin_logits, pairs, vertex_logits, self.vertex_layer.vertices, self.field_tesla
            )
            latent = latent + self.vertex_layer(vertices)
        response = None if self.response is None else self.response(latent)
        return TaggerOutput(
            self.flavour(latent), latent, origin_logits, pairs, vertex_logits, vertices, response
        )

    def _origin_logits(self, batch: JetBatch, encoded: Encoded, latent: Tensor) -> Tensor:
        """(jets, tracks, origins), zero where padded."""
        assert encoded.tracks is not None
        packed: Tensor = self.origin(encoded.tracks, latent, batch.valid.nonzero()[:, 0])
        logits = packed.new_zeros(*batch.valid.shape, packed.shape[1])
        return logits.index_put(batch.valid.nonzero(as_tuple=True), packed)

    def _pairs(self, batch: JetBatch, encoded: Encoded, latent: Tensor) -> tuple[TrackPairs, Tensor]:
        assert encoded.tracks is not None
        pairs = track_pairs(batch.valid)
        return pairs, self.vertex(encoded.tracks, latent, batch.valid, pairs)
