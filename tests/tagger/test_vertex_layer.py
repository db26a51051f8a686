"""Sharing of tracks among vertices, and the fits inside the tagger."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.data.jets import ORIGINS, TRACK_FIELDS
from selfcal.errors import DataError
from selfcal.tagger.batching import join, to_tensors
from selfcal.tagger.bundle import TaggerBundle, build_tagger, load_bundle, save_bundle
from selfcal.tagger.inputs import Normalisation, TaggerInputs, common_inputs, compute_features
from selfcal.tagger.pairs import track_pairs
from selfcal.tagger.perigee import PERIGEE_FIELDS, perigee_columns
from selfcal.tagger.vertex_layer import fit_secondary_vertices, share_tracks


def _same(groups: list[int]) -> torch.Tensor:
    group = torch.tensor(groups)
    return (group[:, None] == group).double()[None]


def test_certain_heads_give_the_clusters():
    """Perfect answers: tracks 0, 2, 3 first (more of them), then 1, 4; the primary track 5 nowhere."""
    secondary = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]).double()
    weights = share_tracks(secondary, _same([0, 1, 0, 0, 1, 2]), 3)
    expected = [[1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert weights[0].tolist() == expected


def test_weights_are_probabilities_and_equal_a_slow_twin():
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(20, 7, generator=generator, dtype=torch.float64)
    P = torch.rand(20, 7, 7, generator=generator, dtype=torch.float64)
    P = 0.5 * (P + P.mT)
    P.diagonal(dim1=1, dim2=2).fill_(1.0)
    weights = share_tracks(u, P, 3)
    assert bool(((weights >= 0) & (weights <= 1)).all())
    assert bool((weights.sum(1) <= u + 1e-12).all())
    for jet in range(20):
        left = u[jet].clone()
        for vertex in range(3):
            company = [float(left[i] * sum(P[jet, i, j] * left[j] for j in range(7))) for i in range(7)]
            seed = int(np.argmax(company))
            expected = [float(P[jet, i, seed] * left[i]) for i in range(7)]
            np.testing.assert_allclose(weights[jet, vertex].numpy(), expected, rtol=1e-12)
            left = left * (1 - P[jet, :, seed])
    order = torch.randperm(7, generator=generator)
    shuffled = share_tracks(u[:, order], P[:, order][:, :, order], 3)
    torch.testing.assert_close(shuffled, weights[..., order], atol=1e-12, rtol=0)


def test_without_tracks_there_are_no_weights():
    assert share_tracks(torch.zeros(4, 0), torch.zeros(4, 0, 0), 2).shape == (4, 2, 0)


def test_certain_heads_find_the_generated_vertices(make_jets):
    """Unsmeared tracks of two decay points (and the primary vertex) come out where they went in, up to
    the pull of the prior."""
    truth = np.array([[2.0, 0.1, 1.5], [6.0, -0.2, 4.0], [0.0, 0.0, 0.0]])
    group = np.array([0, 0, 0, 1, 1, 2, 2])
    phi, deta = np.array([-0.2, 0.1, 0.3, -0.1, 0.25, 0.0, 0.2]), np.linspace(-0.2, 0.2, 7)
    jets = make_jets([7])
    theta = 2 * np.arctan(np.exp(-(jets.eta[0] + deta)))
    x, y, z = truth[group].T
    along = x * np.cos(phi) + y * np.sin(phi)
    d0 = y * np.cos(phi) - x * np.sin(phi)
    values = {
        "d0": d0,
        "z0SinTheta": z * np.sin(theta) - along * np.cos(theta),
        "deta": deta,
        "dphi": phi,
        "qOverP": np.full(7, 1e-7),  # 10 TeV: no curvature
        "lifetimeSignedD0Significance": np.maximum(np.abs(d0), 1e-9) / 0.02,
        "lifetimeSignedZ0SinThetaSignificance": 10.0,
        "phiUncertainty": 1e-3,
        "thetaUncertainty": 1e-3,
        "qOverPUncertainty": 1e-9,
    }
    tracks = jets.tracks.copy()
    for name, column in values.items():
        tracks[:, TRACK_FIELDS.index(name)] = column
    jets = replace(jets, tracks=tracks)
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    batch = to_tensors(jets, inputs, normalisation, with_perigee=True).batch(np.array([0]))
    origin = torch.full((1, 7, len(ORIGINS)), -30.0)
    for track, vertex in enumerate(group):
        origin[0, track, ORIGINS.index(("from_b", "from_bc", "primary")[vertex])] = 30.0
    pairs = track_pairs(batch.valid)
    logits = torch.from_numpy(np.where(group[pairs.first] == group[pairs.second], 30.0, -30.0)).float()
    fit = fit_secondary_vertices(batch, origin, pairs, logits, 2)
    torch.testing.assert_close(fit.position_mm[0], torch.from_numpy(truth[:2]), atol=0.02, rtol=0)
    torch.testing.assert_close(fit.n_tracks[0], torch.tensor([3.0, 2.0]).double(), atol=1e-6, rtol=0)


@pytest.fixture
def with_layer(make_jets):
    jets = make_jets([5, 0, 9, 2])
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    config = TaggerConfig(vertex_fit=True)
    bundle = TaggerBundle(config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed=4))
    return bundle, jets


def test_it_starts_as_the_tagger_without_fits(with_layer):
    """Same seed, same weights, same scores before training: what differs later is what the fits bring."""
    bundle, jets = with_layer
    plain = build_tagger(TaggerConfig(), bundle.inputs, bundle.normalisation, seed=4)
    batch = bundle.tensors(jets).batch(np.arange(4))
    with torch.no_grad():
        assert torch.equal(plain(batch).logits, bundle.model(batch).logits)
    for name, value in plain.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)


def test_the_flavour_loss_reaches_the_heads_through_the_fit(with_layer):
    """Without the fit the flavour's logits do not depend on the heads on tracks; with it they do."""
    bundle, jets = with_layer
    torch.nn.init.normal_(bundle.model.vertex_layer.contract.weight)
    batch = bundle.tensors(jets).batch(np.arange(4))
    bundle.model(batch).logits.logsumexp(dim=1).sum().backward()
    for head in (bundle.model.origin, bundle.model.vertex, bundle.model.vertex_layer):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
        assert any(bool(p.grad.abs().sum() > 0) for p in head.parameters())


def test_unasked_heads_still_serve_the_fit(with_layer):
    bundle, jets = with_layer
    torch.nn.init.normal_(bundle.model.vertex_layer.contract.weight)
    batch = bundle.tensors(jets).batch(np.arange(4))
    with torch.no_grad():
        full, bare = bundle.model(batch), bundle.model(batch, with_origin=False, with_vertex=False)
    assert torch.equal(full.logits, bare.logits)
    assert full.vertices.position_mm.shape == (4, 2, 3)


def test_half_precision_of_the_network_leaves_the_fit_in_double(with_layer):
    """Under autocast the heads say bfloat16 numbers; what is fitted with them is as exact as ever."""
    bundle, jets = with_layer
    batch = bundle.tensors(jets).batch(np.arange(4))
    with torch.autocast("cpu", torch.bfloat16):
        output = bundle.model(batch)
    assert output.origin_logits.dtype == output.vertex_logits.dtype == torch.bfloat16
    expected = fit_secondary_vertices(batch, output.origin_logits, output.pairs, output.vertex_logits, 2)
    for name in ("position_mm", "covariance", "chi2", "mass_gev"):
        found = getattr(output.vertices, name)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, getattr(expected, name), atol=1e-12, rtol=1e-12)
    output.logits.float().logsumexp(dim=1).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in bundle.model.parameters() if p.grad is not None)


def test_the_field_bends_the_tracks(with_layer):
    """The configured field reaches the fit: other helices, other vertices."""
    bundle, jets = with_layer
    config = TaggerConfig(vertex_fit=True, field_tesla=0.0)
    straight = build_tagger(config, bundle.inputs, bundle.normalisation, seed=4)
    batch = bundle.tensors(jets).batch(np.arange(4))
    with torch.no_grad():
        found = [model(batch).vertices.position_mm for model in (bundle.model, straight)]
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_bundle_keeps_the_layer(with_layer, tmp_path):
    bundle, jets = with_layer
    torch.nn.init.normal_(bundle.model.vertex_layer.contract.weight)
    save_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path)
    batch = again.tensors(jets).batch(np.arange(4))
    with torch.no_grad():
        assert torch.equal(again.model(batch).logits, bundle.model.eval()(batch).logits)


def test_perigee_columns_travel_with_the_tracks(with_layer):
    bundle, jets = with_layer
    halves = [bundle.tensors(jets.select(np.array(rows))) for rows in ([0, 1], [2, 3])]
    whole = bundle.tensors(jets)
    assert torch.equal(join(halves).perigee, whole.perigee)
    batch = whole.batch(np.array([2, 0]))
    last = batch.perigee[1, :5]
    assert torch.equal(last[:, -1], torch.full((5,), float(jets.eta[0])))
    np.testing.assert_array_equal(last[:, 0].numpy(), jets.tracks[:5, TRACK_FIELDS.index("d0")])


def test_missing_or_broken_fields_are_refused(with_layer):
    bundle, jets = with_layer
    fewer = [i for i, name in enumerate(TRACK_FIELDS) if name != "phiUncertainty"]
    without = replace(jets, tracks=jets.tracks[:, fewer], track_fields=tuple(TRACK_FIELDS[i] for i in fewer))
    with pytest.raises(DataError, match="phiUncertainty"):
        perigee_columns(without)
    broken = jets.tracks.copy()
    broken[3, TRACK_FIELDS.index(PERIGEE_FIELDS[4])] = np.nan
    with pytest.raises(DataError, match="NaN"):
        perigee_columns(replace(jets, tracks=broken))
    plain = to_tensors(jets, TaggerInputs(bundle.inputs.track), bundle.normalisation)
    with pytest.raises(DataError, match="lacks the parameters"):
        bundle.model(plain.batch(np.array([0])))
