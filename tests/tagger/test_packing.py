"""Packed tokens give what padded and masked tokens give, wherever the tracks stand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfcal.config.tagger import TaggerConfig
from selfcal.tagger.batching import to_tensors, unlabelled_batch
from selfcal.tagger.bundle import build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.packing import Packing


def scattered_valid() -> torch.Tensor:
    """Jets of 0 to 6 tracks at any of 6 places."""
    generator = torch.Generator().manual_seed(7)
    valid = torch.rand(40, 6, generator=generator) < torch.rand(40, 1, generator=generator)
    valid[3], valid[4] = False, True
    return valid


def test_every_token_comes_from_its_own_jet_and_track():
    valid = scattered_valid()
    packing = Packing.of(valid)
    tracks = torch.arange(valid.numel()).view(valid.shape) + 1000
    registers = torch.arange(len(valid))
    tokens = torch.cat([registers[packing.jets], tracks[packing.jet_of_track, packing.place_of_track]])
    tokens = tokens[packing.token_source]
    seen = []
    for part in packing.split(tokens):
        for row in part.tolist():
            assert sorted(row[1:]) == tracks[row[0]][valid[row[0]]].tolist()
            seen.append(row[0])
    assert sorted(seen) == list(range(len(valid)))
    assert [length for _, length in packing.buckets] == sorted({n + 1 for n in valid.sum(1).tolist()})
    assert torch.equal(tokens[packing.token_of_track], tracks[valid])
    assert torch.equal(packing.jets[packing.row], registers)


@pytest.mark.parametrize("scatter", [False, True])
def test_packed_equals_padded_in_value_and_gradient(make_jets, scatter):
    jets = make_jets([3, 0, 30, 8, 8, 1, 0, 25])
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    batch = to_tensors(jets, inputs, normalisation).batch(np.arange(len(jets)))
    if scatter:
        places = torch.randperm(30, generator=torch.Generator().manual_seed(2))
        batch = unlabelled_batch(batch.tracks[:, places], batch.valid[:, places], batch.jet)
    encoder = build_tagger(TaggerConfig(), inputs, normalisation, seed=4).double().encoder
    batch = unlabelled_batch(batch.tracks.double(), batch.valid, batch.jet.double())
    gradients = []
    for run in (encoder._packed, encoder._padded):
        encoder.zero_grad()
        encoded = run(batch, True)
        (encoded.tracks.square().sum() + encoded.jet.cos().sum()).backward()
        gradients.append([encoded.tracks, encoded.jet, *(p.grad.clone() for p in encoder.parameters())])
    for packed, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-9)


def test_attention_is_that_of_the_formula():
    """softmax(q k / sqrt(d)) v of one jet and one head."""
    packing = Packing.of(torch.tensor([[True, True, False]]))
    packed = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    query, key, value = packed.split(4, dim=1)
    expected = F.softmax(query @ key.T / 2.0, dim=1) @ value
    torch.testing.assert_close(packing.attention()(packed, 1, 0.0), expected, rtol=1e-12, atol=1e-12)


def test_no_jets():
    assert Packing.of(torch.zeros(0, 5, dtype=torch.bool)).buckets == ()
