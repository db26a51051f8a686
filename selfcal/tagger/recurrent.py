"""A recurrent network along the tracks (RNNIP-like; ATL-PHYS-PUB-2017-003)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.config.tagger import TaggerConfig
from selfcal.errors import ConfigError
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.inputs import Normalisation, TaggerInputs
from selfcal.tagger.network import Encoded, Encoder

SIGNIFICANCE, MOMENTUM = "lifetimeSignedD0Significance", "log_pt_gev"


class RecurrentEncoder(Encoder):
    """LSTM layers along the tracks, by falling |d0 significance| (equal ones by falling momentum).

    The first state comes from the jet inputs; the jet's vector is the state after the last
    track, which without tracks is that first state.

    Raises
    ------
    ConfigError
        If the inputs by which tracks are ordered are missing.
    """

    column: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, inputs: TaggerInputs, normalisation: Normalisation, config: TaggerConfig) -> None:
        super().__init__(config.width)
        missing = [name for name in (SIGNIFICANCE, MOMENTUM) if name not in inputs.track]
        if missing:
            raise ConfigError(
                f"tracks cannot be ordered without the input(s) {', '.join(missing)}",
                where="tagger.kind",
                expected="tracks with d0 significance and momentum",
                fix="choose tagger.kind transformer or deep_sets, which need no order",
            )
        column = torch.tensor([inputs.track.index(name) for name in (SIGNIFICANCE, MOMENTUM)])
        self.register_buffer("column", column)
        self.register_buffer("mean", torch.from_numpy(normalisation.track_mean)[column])
        self.register_buffer("spread", torch.from_numpy(normalisation.track_width)[column])
        self.layers = config.layers
        self.embed = nn.Linear(len(inputs.track) + len(inputs.jet), config.width)
        self.start = nn.Linear(len(inputs.jet), config.layers * config.width)
        self.along = nn.LSTM(
            config.width,
            config.width,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )

    def forward(self, batch: JetBatch, *, with_tracks: bool = True) -> Encoded:
        jets, tracks, _ = batch.tracks.shape
        first = torch.tanh(self.start(batch.jet)).view(jets, self.layers, self.width).transpose(0, 1)
        if tracks == 0:
            return Encoded(tracks=batch.tracks.new_zeros(0, self.width), jet=first[-1])
        order = self._order(batch)
        jet_of_track = batch.jet[:, None].expand(jets, tracks, batch.jet.shape[1])
        x = F.gelu(self.embed(torch.cat([batch.tracks, jet_of_track], dim=-1)))
        ordered = x.gather(1, order[..., None].expand_as(x))
        state = first.contiguous()
        passed, _ = self.along(ordered, (state, torch.zeros_like(state)))
        # Padding stands at the end, where it comes after the state that is read.
        count = batch.valid.sum(dim=1)
        last = (count - 1).clamp(min=0)[:, None, None].expand(jets, 1, self.width)
        jet = torch.where(count[:, None] > 0, passed.gather(1, last)[:, 0], first[-1])
        back = torch.empty_like(passed).scatter(1, order[..., None].expand_as(passed), passed)
        return Encoded(tracks=back[batch.valid] if with_tracks else None, jet=jet)

    def _order(self, batch: JetBatch) -> Int[Tensor, "jets tracks"]:
        """Places of the tracks, most significant first, padding last."""
        raw: Float[Tensor, "jets tracks 2"] = batch.tracks[..., self.column] * self.spread + self.mean
        by_momentum = raw[..., 1].argsort(dim=1, descending=True, stable=True)
        significance = raw[..., 0].abs().masked_fill(~batch.valid, -1.0).gather(1, by_momentum)
        return by_momentum.gather(1, significance.argsort(dim=1, descending=True, stable=True))
