"""The recurrent encoder walks along the tracks by falling significance and reads the last real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.tagger.batching import to_tensors
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.recurrent import RecurrentEncoder

COUNTS = [5, 0, 1, 8]


@pytest.fixture
def encoder_jets_and_batch(make_jets):
    jets = make_jets(COUNTS)
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    torch.manual_seed(1)
    encoder = RecurrentEncoder(inputs, normalisation, TaggerConfig(kind="recurrent", width=8, heads=2)).eval()
    return encoder, jets, to_tensors(jets, inputs, normalisation).batch(np.arange(4))


def test_order_is_by_falling_absolute_significance_with_padding_last(encoder_jets_and_batch):
    encoder, jets, batch = encoder_jets_and_batch
    order = encoder._order(batch).numpy()
    significance = np.abs(jets.tracks[:, jets.track_fields.index("lifetimeSignedD0Significance")])
    for jet, n in enumerate(COUNTS):
        mine = significance[jets.track_offsets[jet] : jets.track_offsets[jet + 1]]
        np.testing.assert_array_equal(order[jet, :n], np.argsort(-mine, kind="stable"))
        np.testing.assert_array_equal(np.sort(order[jet]), np.arange(8))


def test_jets_equal_a_walk_track_by_track(encoder_jets_and_batch):
    encoder, _, batch = encoder_jets_and_batch
    with torch.no_grad():
        encoded = encoder(batch)
        for jet, n in enumerate(COUNTS):
            state = torch.tanh(encoder.start(batch.jet[jet])).view(3, 1, 8)
            hidden, cell = state.contiguous(), torch.zeros_like(state)
            for track in encoder._order(batch)[jet, :n]:
                x = torch.cat([batch.tracks[jet, track], batch.jet[jet]])
                step = torch.nn.functional.gelu(encoder.embed(x)).view(1, 1, 8)
                out, (hidden, cell) = encoder.along(step, (hidden, cell))
                found = encoded.tracks[sum(COUNTS[:jet]) + track]
                torch.testing.assert_close(found, out[0, 0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(encoded.jet[jet], hidden[-1, 0], rtol=1e-5, atol=1e-6)
