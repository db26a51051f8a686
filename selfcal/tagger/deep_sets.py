"""Deep Sets over tracks (DIPS; ATL-PHYS-PUB-2020-014, arXiv 1703.06114): e = F(sum_i Phi(x_i), jet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfcal.config.tagger import TaggerConfig
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.heads import dense_layers
from selfcal.tagger.inputs import TaggerInputs
from selfcal.tagger.network import Encoded, Encoder


class DeepSetsEncoder(Encoder):
    """Each track through Phi, their sum through F; both have ``config.layers`` dense layers.

    Tracks never see each other: what a track's vector knows of the jet are the jet's inputs.
    """

    def __init__(self, inputs: TaggerInputs, config: TaggerConfig) -> None:
        super().__init__(config.width)
        widths = [config.width] * config.layers
        jet_inputs = len(inputs.jet)
        self.track = nn.Sequential(
            nn.Linear(len(inputs.track) + jet_inputs, config.width), dense_layers(widths), nn.GELU()
        )
        self.jet = nn.Sequential(nn.Linear(config.width + jet_inputs, config.width), dense_layers(widths))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: JetBatch, *, with_tracks: bool = True) -> Encoded:
        jets, tracks, _ = batch.tracks.shape
        jet_of_track = batch.jet[:, None].expand(jets, tracks, batch.jet.shape[1])
        each: Tensor = self.track(torch.cat([batch.tracks, jet_of_track], dim=-1))
        total = self.dropout((each * batch.valid[..., None]).sum(dim=1))
        return Encoded(
            tracks=each[batch.valid] if with_tracks else None,
            jet=self.jet(torch.cat([total, batch.jet], dim=-1)),
        )
