"""The score of a jet depends on its tracks as a set, and on nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.tagger.batching import to_tensors
from selfcal.tagger.bundle import build_tagger
from selfcal.tagger.inputs import TRACK_INPUTS, Normalisation, TaggerInputs, common_inputs, compute_features
from selfcal.tagger.pairs import pair_matrix

ALL_INPUTS = TaggerInputs(tuple(i.name for i in TRACK_INPUTS))
COUNTS = [3, 0, 200, 8, 8, 1, 25]


def no_normalisation(inputs):
    tracks, jets = len(inputs.track), len(inputs.jet)
    return Normalisation(*(make(n, np.float32) for n in (tracks, jets) for make in (np.zeros, np.ones)))


VARIANTS = {
    "transformer": {},
    "attention_bias": {"attention_bias": True},
    "regress_pt": {"regress_pt": True},
    "deep_sets": {"kind": "deep_sets"},
    "recurrent": {"kind": "recurrent", "layers": 2},
    "vertex_fit": {"vertex_fit": True},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def model_and_jets(make_jets, request):
    """Every encoder must keep the same promises."""
    jets = make_jets(COUNTS)
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    model = build_tagger(TaggerConfig(**request.param), inputs, normalisation, seed=4).eval()
    if "attention_bias" in request.param:
        torch.nn.init.normal_(model.encoder.bias.contract.weight, generator=torch.Generator().manual_seed(1))
    if "vertex_fit" in request.param:
        torch.nn.init.normal_(model.vertex_layer.contract.weight, std=0.1)
    return model, to_tensors(jets, inputs, normalisation, with_perigee="vertex_fit" in request.param)


def _scores(model, batch):
    with torch.no_grad():
        return model(batch).logits.log_softmax(dim=1)


@pytest.mark.parametrize(
    ("size", "least", "most"), [("small", 0.08, 0.15), ("medium", 0.45, 0.65), ("gn2", 2.2, 2.5)]
)
def test_sizes_in_million_parameters(size, least, most):
    model = build_tagger(TaggerConfig(size=size), ALL_INPUTS, no_normalisation(ALL_INPUTS), seed=1)
    assert least < sum(p.numel() for p in model.parameters()) / 1e6 < most


def test_a_size_sets_what_is_not_given():
    config = TaggerConfig(size="gn2", layers=2)
    assert (config.width, config.layers, config.latent) == (256, 2, 128)
    assert TaggerConfig(size="small") == TaggerConfig()
    assert TaggerConfig.model_validate(config.model_dump(mode="json")) == config


def test_permutation_of_tracks_leaves_the_scores(model_and_jets):
    model, tensors = model_and_jets
    batch = tensors.batch(np.array([3]))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = replace(
        batch,
        tracks=batch.tracks[:, order],
        perigee=None if batch.perigee is None else batch.perigee[:, order],
    )
    with torch.no_grad():
        a, b = model(batch), model(shuffled)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.origin_logits[:, order], b.origin_logits, atol=1e-5, rtol=0)
    matrices = [pair_matrix(output.vertex_logits, output.pairs, 1, 8) for output in (a, b)]
    torch.testing.assert_close(matrices[0][:, order][:, :, order], matrices[1], atol=1e-5, rtol=0)


def test_scores_depend_on_the_tracks(model_and_jets):
    model, tensors = model_and_jets
    batch = tensors.batch(np.array([3]))
    moved = replace(batch, tracks=batch.tracks + 0.1)
    assert (_scores(model, batch) - _scores(model, moved)).abs().max() > 1e-4


def test_padding_is_never_seen(model_and_jets):
    """Whatever stands in padded places changes nothing."""
    model, tensors = model_and_jets
    batch = tensors.batch(np.array([0, 3]))
    garbage = batch.tracks.clone()
    garbage[~batch.valid] = 1e3
    a, b = _scores(model, batch), _scores(model, replace(batch, tracks=garbage))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_jet_has_the_same_score_in_any_batch(model_and_jets):
    model, tensors = model_and_jets
    together = _scores(model, tensors.batch(np.arange(len(COUNTS))))
    for jet in range(len(COUNTS)):
        alone = _scores(model, tensors.batch(np.array([jet])))
        torch.testing.assert_close(together[jet : jet + 1].exp(), alone.exp(), atol=1e-6, rtol=0)


def test_jets_without_tracks_and_with_many_have_finite_scores_and_gradients(model_and_jets):
    model, tensors = model_and_jets
    for index in ([1], [2], [1, 2]):
        model.zero_grad()
        output = model(tensors.batch(np.array(index)))
        assert output.origin_logits.shape == (len(index), 0 if index == [1] else 200, 8)
        assert output.vertex_logits.shape == (0 if index == [1] else 200 * 199 // 2,)
        loss = output.logits.logsumexp(dim=1).sum() + output.vertex_logits.sum() + output.origin_logits.sum()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(bool(g.isfinite().all()) for g in gradients)


def test_padding_and_other_jets_leave_the_heads_on_tracks(model_and_jets):
    model, tensors = model_and_jets
    with torch.no_grad():
        together, alone = model(tensors.batch(np.arange(len(COUNTS)))), model(tensors.batch(np.array([3])))
    torch.testing.assert_close(together.origin_logits[3, :8], alone.origin_logits[0], atol=1e-5, rtol=0)
    mine = together.vertex_logits[together.pairs.jet == 3]
    torch.testing.assert_close(mine, alone.vertex_logits, atol=1e-5, rtol=0)


def test_the_gradient_of_a_jet_does_not_reach_its_neighbours(model_and_jets):
    model, tensors = model_and_jets
    batch = tensors.batch(np.array([0, 3, 4]))
    tracks = batch.tracks.clone().requires_grad_()
    model(replace(batch, tracks=tracks)).logits[1].logsumexp(0).backward()
    assert bool(tracks.grad[1].abs().sum() > 0)
    assert not tracks.grad[[0, 2]].any()


def test_same_seed_same_weights():
    norm = no_normalisation(ALL_INPUTS)
    a, b, c = (build_tagger(TaggerConfig(), ALL_INPUTS, norm, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_in_float64_a_jet_has_the_same_score_in_any_batch(model_and_jets):
    model, jets = model_and_jets
    exact, precise = copy.deepcopy(model).double(), jets.double()
    whole = exact(precise.batch(np.arange(len(precise)))).logits
    assert whole.dtype == torch.float64
    for i in range(len(precise)):
        alone = exact(precise.batch(np.array([i]))).logits[0]
        torch.testing.assert_close(whole[i], alone, rtol=0, atol=1e-11)
