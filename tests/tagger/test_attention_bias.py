"""The pairwise features equal their formulas; the bias knows pairs of tracks and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.errors import ConfigError
from selfcal.tagger.attention_bias import SMALLEST, AttentionBias, pair_features
from selfcal.tagger.batching import to_tensors
from selfcal.tagger.bundle import build_tagger
from selfcal.tagger.inputs import Normalisation, TaggerInputs, common_inputs, compute_features


def _four_momentum(log_pt, eta, phi):
    pt = math.exp(log_pt)
    return np.array([pt * math.cosh(eta), pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta)])


def test_features_are_those_of_four_momenta():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(20, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    found = pair_features(first, second)
    for p, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        distance = math.hypot(a[1] - b[1], a[2] - b[2])
        softer, total = math.exp(min(a[0], b[0])), math.exp(a[0]) + math.exp(b[0])
        energy, *momentum = _four_momentum(*a) + _four_momentum(*b)
        mass_squared = energy**2 - sum(x**2 for x in momentum)
        expected = [distance, softer * distance, softer / total, mass_squared]
        np.testing.assert_allclose(found[p].exp().numpy(), expected, rtol=1e-9)
    torch.testing.assert_close(pair_features(second, first), found, rtol=1e-12, atol=0)


def test_parallel_tracks_have_finite_features_and_gradients():
    track = torch.tensor([[1.0, 0.3, -2.0]], requires_grad=True)
    features = pair_features(track, track.detach().clone())
    assert features[0, 0].item() == pytest.approx(math.log(SMALLEST))
    features.sum().backward()
    assert bool(features.isfinite().all())
    assert bool(track.grad.isfinite().all())


@pytest.fixture
def bias_and_batch(make_jets):
    jets = make_jets([4, 0, 6, 1])
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    torch.manual_seed(2)
    bias = AttentionBias(inputs, normalisation, heads=2, hidden=5)
    torch.nn.init.normal_(bias.contract.weight)
    return bias, to_tensors(jets, inputs, normalisation).batch(np.arange(4)), jets


def test_bias_is_symmetric_and_zero_for_register_diagonal_and_padding(bias_and_batch):
    bias, batch, _ = bias_and_batch
    values = bias(batch.tracks, batch.valid)
    assert values.shape == (4, 2, 7, 7)
    assert torch.equal(values, values.transpose(2, 3))
    both = batch.valid[:, None, :, None] & batch.valid[:, None, None, :] & ~torch.eye(6, dtype=torch.bool)
    assert bool((values[:, :, 1:, 1:] != 0).eq(both.expand(4, 2, 6, 6)).all())
    assert not values[:, :, 0].any()


def test_bias_uses_the_physical_kinematics_of_the_tracks(bias_and_batch):
    """The normalisation is undone: the features are those of the tracks in GeV and rad."""
    bias, batch, jets = bias_and_batch
    columns = {name: jets.tracks[:4, jets.track_fields.index(name)] for name in ("qOverP", "deta", "dphi")}
    log_pt = -np.log(1000 * np.abs(columns["qOverP"]) * np.cosh(jets.eta[0] + columns["deta"]))
    physical = torch.tensor(np.stack([log_pt, columns["deta"], columns["dphi"]], axis=1))
    seen = batch.tracks[0, :4, bias.column] * bias.width + bias.mean
    torch.testing.assert_close(seen, physical, rtol=1e-4, atol=1e-5)


def test_a_fresh_bias_changes_nothing(make_jets):
    jets = make_jets([4, 0, 6])
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    with_bias = build_tagger(TaggerConfig(attention_bias=True), inputs, normalisation, seed=3).eval()
    without = build_tagger(TaggerConfig(), inputs, normalisation, seed=4).eval()
    without.load_state_dict({k: v for k, v in with_bias.state_dict().items() if ".bias." not in k})
    batch = to_tensors(jets, inputs, normalisation).batch(np.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(with_bias(batch).logits, without(batch).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [TaggerConfig(attention_bias=True), TaggerConfig(kind="recurrent")])
def test_missing_kinematics_are_a_configuration_error(config):
    inputs = TaggerInputs(("d0", "deta"))
    normalisation = Normalisation(*(np.ones(n, np.float32) for n in (2, 2, 2, 2)))
    with pytest.raises(ConfigError, match="log_pt_gev"):
        build_tagger(config, inputs, normalisation, seed=1)
