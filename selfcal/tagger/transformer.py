"""The transformer over tracks (a small GN2; arXiv 2505.19689)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfcal.config.tagger import TaggerConfig
from selfcal.tagger.attention_bias import AttentionBias
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.inputs import Normalisation, TaggerInputs
from selfcal.tagger.network import Encoded, Encoder
from selfcal.tagger.packing import Attention, Packing, attend_within

BIAS_WIDTH = 32
"""Hidden numbers per pair of tracks in the network of the attention bias."""


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward: x += A(N(x)); x += M(N(x))."""

    def __init__(self, width: int, heads: int, feedforward_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward_width)
        self.contract = nn.Linear(feedforward_width, width)

    def forward(self, x: Float[Tensor, "... width"], attend: Attention) -> Float[Tensor, "... width"]:
        rate = self.dropout if self.training else 0.0
        seen = attend(self.query_key_value(self.attention_norm(x)), self.heads, rate)
        x = x + self._drop(self.attention_out(seen))
        result: Tensor = x + self._drop(self.contract(F.gelu(self.expand(self.feedforward_norm(x)))))
        return result

    def _drop(self, x: Tensor) -> Tensor:
        dropped: Tensor = F.dropout(x, self.dropout, self.training)
        return dropped


class AttentionPooling(nn.Module):
    """Weighted mean of the tokens: sum_i softmax_i(g_h(x_i)) x_ih, one gate g_h per head slice h."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.gate = nn.Linear(width, heads)

    def forward(
        self,
        x: Float[Tensor, "jets tokens width"],
        valid: Bool[Tensor, "jets tokens"] | None,
    ) -> Float[Tensor, "jets width"]:
        jets, tokens, width = x.shape
        score = self.gate(x)
        if valid is not None:
            score = score.masked_fill(~valid[..., None], float("-inf"))
        share = score.softmax(dim=1)
        slices = x.view(jets, tokens, self.heads, width // self.heads)
        pooled: Tensor = (share[..., None] * slices).sum(dim=1)
        return pooled.reshape(jets, width)


class TransformerEncoder(Encoder):
    """Per-track MLP -> transformer layers -> attention pooling.

    With ``config.attention_bias`` tracks attend to each other by their kinematics too, see
    :mod:`selfcal.tagger.attention_bias`; only that needs ``normalisation``.

    The jet inputs are appended to those of every track, and also make one register
    token of their own, so that a jet without tracks is an ordinary jet.
    """

    def __init__(self, inputs: TaggerInputs, normalisation: Normalisation, config: TaggerConfig) -> None:
        super().__init__(config.width)
        width = config.width
        self.embed = nn.Sequential(
            nn.Linear(len(inputs.track) + len(inputs.jet), width), nn.GELU(), nn.Linear(width, width)
        )
        self.register = nn.Linear(len(inputs.jet), width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.feedforward_width, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.pooling = AttentionPooling(width, config.heads)
        self.bias = (
            AttentionBias(inputs, normalisation, config.heads, BIAS_WIDTH) if config.attention_bias else None
        )

    def forward(self, batch: JetBatch, *, with_tracks: bool = True) -> Encoded:
        # A bias is a padded matrix anyway, a graph has one shape for all, and a GPU wants few large kernels.
        padded = self.bias is not None or torch.compiler.is_exporting() or batch.tracks.is_cuda
        return self._padded(batch, with_tracks) if padded else self._packed(batch, with_tracks)

    def _packed(self, batch: JetBatch, with_tracks: bool) -> Encoded:
        packing = Packing.of(batch.valid)
        jet, tracks = batch.jet, batch.tracks[packing.jet_of_track, packing.place_of_track]
        embedded = self.embed(torch.cat([tracks, jet[packing.jet_of_track]], dim=-1))
        x = torch.cat([self.register(jet[packing.jets]), embedded])[packing.token_source]
        attend = packing.attention()
        for layer in self.layers:
            x = layer(x, attend)
        x = self.norm(x)
        pooled = [self.pooling(part, None) for part in packing.split(x)]
        return Encoded(
            tracks=x[packing.token_of_track] if with_tracks else None,
            jet=torch.cat(pooled)[packing.row] if pooled else x,
        )

    def _padded(self, batch: JetBatch, with_tracks: bool) -> Encoded:
        jets, tracks, _ = batch.tracks.shape
        jet_of_track = batch.jet[:, None].expand(jets, tracks, batch.jet.shape[1])
        embedded = self.embed(torch.cat([batch.tracks, jet_of_track], dim=-1))
        x = torch.cat([self.register(batch.jet)[:, None], embedded], dim=1)
        valid = F.pad(batch.valid, (1, 0), value=True)
        mask: Tensor = valid[:, None, None]
        if self.bias is not None:
            mask = self.bias(batch.tracks, batch.valid).masked_fill(~mask, float("-inf"))

        def attend(query_key_value: Tensor, heads: int, dropout: float) -> Tensor:
            return attend_within(query_key_value, heads, dropout, mask)

        for layer in self.layers:
            x = layer(x, attend)
        x = self.norm(x)
        return Encoded(tracks=x[:, 1:][batch.valid] if with_tracks else None, jet=self.pooling(x, valid))
