"""The transformer over tracks (a small GN2; arXiv 2505.19689)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from selfcal.config.run import TaggerConfig
from selfcal.tagger.attention_bias import AttentionBias
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.inputs import Normalisation, TaggerInputs
from selfcal.tagger.network import Encoded, Encoder

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

    def forward(
        self,
        x: Float[Tensor, "jets tokens width"],
        mask: Bool[Tensor, "jets 1 1 tokens"] | Float[Tensor, "jets heads tokens tokens"] | None,
    ) -> Float[Tensor, "jets tokens width"]:
        jets, tokens, width = x.shape
        packed = self.query_key_value(self.attention_norm(x))
        packed = packed.view(jets, tokens, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        x = x + self._drop(self.attention_out(seen.transpose(1, 2).reshape(jets, tokens, width)))
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

    def forward(self, batch: JetBatch) -> Encoded:
        jets, tracks, _ = batch.tracks.shape
        jet_of_track = batch.jet[:, None].expand(jets, tracks, batch.jet.shape[1])
        embedded = self.embed(torch.cat([batch.tracks, jet_of_track], dim=-1))
        x = torch.cat([self.register(batch.jet)[:, None], embedded], dim=1)
        # Without padding there is nothing to mask, and attention is faster; a graph has no choice.
        unpadded = not torch.compiler.is_exporting() and bool(batch.valid.all())
        valid = None if unpadded else F.pad(batch.valid, (1, 0), value=True)
        mask = None if valid is None else valid[:, None, None]
        if self.bias is not None:
            bias = self.bias(batch.tracks, batch.valid)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return Encoded(tracks=x[:, 1:], jet=self.pooling(x, valid))
