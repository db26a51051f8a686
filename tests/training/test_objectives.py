"""The losses equal slow readable twins, and are defined where there is nothing to learn from."""

from __future__ import annotations

import math

import pytest
import torch

from selfcal.config.training import TrainingConfig
from selfcal.tagger.batching import JetBatch
from selfcal.tagger.network import TaggerOutput
from selfcal.tagger.pairs import pair_matrix, track_pairs
from selfcal.training.objectives import (
    LOSSES,
    flavour_loss,
    origin_loss,
    response_loss,
    tagger_loss,
    vertex_loss,
)


def _slow_origin_loss(logits, origin):
    """-mean ln softmax(logits)[origin] over all tracks of known origin."""
    terms = []
    for jet in range(origin.shape[0]):
        for track in range(origin.shape[1]):
            label = int(origin[jet, track])
            if label >= 0:
                row = logits[jet, track].tolist()
                terms.append(math.log(sum(math.exp(x) for x in row)) - row[label])
    return sum(terms) / len(terms) if terms else 0.0


def test_origin_loss_equals_its_slow_twin():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 7, 8, generator=generator, dtype=torch.float64)
    origin = torch.randint(-1, 8, (5, 7), generator=generator)
    assert float(origin_loss(logits, origin).value) == pytest.approx(
        _slow_origin_loss(logits, origin), rel=1e-12
    )


@pytest.mark.parametrize("tracks", [0, 3])
def test_origin_loss_without_any_known_track_is_zero_with_zero_gradient(tracks):
    logits = torch.zeros(4, tracks, 8, requires_grad=True)
    loss = origin_loss(logits, torch.full((4, tracks), -1)).value
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def _slow_vertex_loss(matrix, valid, vertex):
    """Mean of -ln sigmoid(+-logit) over all pairs i < j of tracks whose vertices are known."""
    terms = []
    for jet in range(len(vertex)):
        for i in range(len(vertex[jet])):
            for j in range(i + 1, len(vertex[jet])):
                a, b = int(vertex[jet, i]), int(vertex[jet, j])
                if valid[jet, i] and valid[jet, j] and a != -2 and b != -2:
                    sign = 1 if a == b and a >= 0 else -1
                    terms.append(math.log(1 + math.exp(-sign * float(matrix[jet, i, j]))))
    return sum(terms) / len(terms) if terms else 0.0


def test_vertex_loss_equals_its_slow_twin():
    """Primary (0), secondary (1, 2), no vertex (-1) and unknown (-2) tracks, in padded jets."""
    generator = torch.Generator().manual_seed(4)
    valid = torch.arange(7) < torch.tensor([7, 3, 1, 0, 5])[:, None]
    vertex = torch.randint(-2, 3, (5, 7), generator=generator)
    pairs = track_pairs(valid)
    logits = 2 * torch.randn(len(pairs.jet), generator=generator, dtype=torch.float64)
    expected = _slow_vertex_loss(pair_matrix(logits, pairs, 5, 7), valid, vertex)
    assert float(vertex_loss(logits, pairs, vertex).value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tracks", [0, 1, 3])
def test_vertex_loss_without_any_known_pair_is_zero_with_zero_gradient(tracks):
    pairs = track_pairs(torch.ones(4, tracks, dtype=torch.bool))
    logits = torch.zeros(len(pairs.jet), requires_grad=True)
    loss = vertex_loss(logits, pairs, torch.full((4, tracks), -2)).value
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()


def test_response_loss_equals_its_formula():
    predicted = torch.tensor([0.0, 0.05, 0.5, -1.0, 3.0], dtype=torch.float64)
    truth = torch.tensor([0.02, 0.0, 0.1, -1.3, float("nan")], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.0, 0.5, 7.0], dtype=torch.float64)
    each = [0.02**2 / 0.2, 0.05**2 / 0.2, 0.4 - 0.05, 0.3 - 0.05]
    expected = sum(w * x for w, x in zip([1.0, 2.0, 1.0, 0.5], each, strict=True)) / 4.5
    assert float(response_loss(predicted, truth, weight).value) == pytest.approx(expected, rel=1e-12)


def test_response_loss_without_any_true_pt_is_zero_with_zero_gradient():
    predicted = torch.ones(3, requires_grad=True)
    loss = response_loss(predicted, torch.full((3,), float("nan")), torch.ones(3)).value
    loss.backward()
    assert loss.item() == 0.0
    assert not predicted.grad.any()


def test_flavour_loss_is_the_weighted_mean_over_labelled_jets():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    flavour = torch.tensor([0, 1, -1, 3, 2, 2])
    weight = torch.tensor([1.0, 2.0, 50.0, 0.5, 1.0, -0.2], dtype=torch.float64)
    total = norm = 0.0
    for i in (0, 1, 3, 4, 5):
        w = float(weight[i])
        row = logits[i].tolist()
        total += w * (math.log(sum(math.exp(x) for x in row)) - row[int(flavour[i])])
        norm += w
    mean = flavour_loss(logits, flavour, weight)
    assert float(mean.denominator) == pytest.approx(norm, rel=1e-12)
    assert float(mean.value) == pytest.approx(total / norm, rel=1e-12)


def test_total_is_the_weighted_sum_of_its_parts():
    generator = torch.Generator().manual_seed(3)
    batch = JetBatch(
        tracks=torch.zeros(2, 3, 1),
        valid=torch.ones(2, 3, dtype=torch.bool),
        jet=torch.zeros(2, 2),
        flavour=torch.tensor([0, 2]),
        origin=torch.tensor([[0, 1, -1], [2, 7, 3]]),
        vertex=torch.tensor([[-1, 0, 0], [-2, 1, 1]]),
        weight=torch.ones(2),
    )
    output = TaggerOutput(
        torch.randn(2, 4, generator=generator),
        torch.zeros(2, 5),
        torch.randn(2, 3, 8, generator=generator),
        track_pairs(batch.valid),
        torch.randn(6, generator=generator),
    )
    config = TrainingConfig(origin_loss_weight=0.5, vertex_loss_weight=1.5)
    loss = tagger_loss(output, batch, config)
    flavour, origin, vertex = (float(loss.parts[name]) for name in ("flavour", "origin", "vertex"))
    expected = flavour + 0.5 * origin + 1.5 * vertex
    assert float(loss.total) == pytest.approx(expected, rel=1e-6)
    assert min(origin, vertex) > 0
    without = tagger_loss(output._replace(origin_logits=None, vertex_logits=None), batch, config)
    assert float(without.total) == flavour


def test_every_loss_but_that_of_the_flavour_has_a_weight_in_the_configuration():
    weights = {name for name in TrainingConfig.model_fields if name.endswith("_loss_weight")}
    assert weights == {f"{name}_loss_weight" for name in LOSSES if name != "flavour"}
