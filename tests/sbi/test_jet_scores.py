"""Where the law of the summaries is known, so is what a network should say of a jet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.inference import NeuralConfig
from selfcal.errors import DataError, FitError
from selfcal.sbi.jet_scores import JetRows, _Columns, empty_scores, train_scores

RESPONSE = np.array([[1.0, 0.3], [-0.2, 0.8]])
"""s ~ N(A u + b_f, 1), u ~ N(0, WIDTH² 1)"""
OFFSET = np.array([[0.0, 0.0], [2.0, -1.0]])
SHARE, WIDTH = 0.3, 0.5
CONFIG = NeuralConfig(hidden_width=16, steps=1500, batch_size=512, learning_rate=5e-3)


def pairs(number, seed):
    """Jets of two flavours under u and, with the same noise, under -u."""
    generator = np.random.default_rng(seed)
    u = WIDTH * generator.normal(size=(number, 2))
    flavour = (generator.random(number) < SHARE).astype(np.int64)
    rest = OFFSET[flavour] + generator.normal(size=(number, 2))
    kinematics = generator.normal(size=(number, 2))
    twice = np.concatenate([flavour, flavour])
    return JetRows(
        np.concatenate([u @ RESPONSE.T + rest, -u @ RESPONSE.T + rest]),
        np.zeros((2 * number, 0), np.uint8),
        np.concatenate([kinematics, kinematics]),
        np.zeros(2 * number, np.int64),
        twice,
        np.ones(2 * number),
        np.concatenate([u, -u]),
        np.tile(np.arange(number, dtype=np.uint64), 2),
    )


def exact(rows):
    """E(u | s) and p(f | s) of the module's law."""
    covariance = WIDTH**2 * RESPONSE @ RESPONSE.T + np.eye(2)
    gain = WIDTH**2 * RESPONSE.T @ np.linalg.inv(covariance)
    residual = rows.summaries[:, None] - OFFSET
    exponent = np.log([1 - SHARE, SHARE]) - 0.5 * np.einsum(
        "nfi,ij,nfj->nf", residual, np.linalg.inv(covariance), residual
    )
    probability = np.exp(exponent)
    probability /= probability.sum(axis=1, keepdims=True)
    return np.einsum("nf,di,nfi->nd", probability, gain, residual), probability


@pytest.fixture(scope="module")
def learnt():
    return train_scores(pairs(10_000, 1), 1, 2, CONFIG, seed=1)


def test_the_network_says_what_bayes_says(learnt):
    rows = pairs(2000, 2)
    mean, probability = exact(rows)
    found = learnt.statistic(rows)
    assert found[:, 2:].sum(axis=1) == pytest.approx(1.0)
    assert (np.sqrt(((found[:, :2] - mean) ** 2).mean(axis=0)) < 0.25 * mean.std(axis=0)).all()
    assert np.abs(found[:, 3] - probability[:, 1]).mean() < 0.02


def test_a_linear_posterior_mean_needs_no_training():
    """One flavour: the linear part alone is exact, from pairs much more so than the noise of single jets."""
    rows = pairs(5000, 3)
    one = replace(
        rows, summaries=rows.summaries - OFFSET[rows.flavour], flavour=np.zeros(len(rows), np.int64)
    )
    quick = train_scores(one, 1, 2, CONFIG.model_copy(update={"steps": 1}), seed=1)
    gain = WIDTH**2 * RESPONSE.T @ np.linalg.inv(WIDTH**2 * RESPONSE @ RESPONSE.T + np.eye(2))
    moved = [replace(one, summaries=one.summaries + np.eye(2)[i]) for i in range(2)]
    plain = quick.linear(quick.inputs(one)).detach()
    slopes = np.stack(
        [(quick.linear(quick.inputs(m)).detach() - plain).mean(0).numpy() for m in moved], axis=1
    )
    assert slopes == pytest.approx(gain, abs=0.01)


def test_what_is_left_out_does_not_matter():
    rows = pairs(600, 4)
    left_out = np.arange(600) % 3 == 0
    strange = replace(rows, summaries=rows.summaries + 100.0 * np.tile(left_out, 2)[:, None])
    quick = CONFIG.model_copy(update={"steps": 5})
    first, other = (train_scores(one, 1, 2, quick, 1, left_out=left_out) for one in (rows, strange))
    for name, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_networks_that_are_stored_are_the_same(learnt, tmp_path):
    rows = pairs(50, 5)
    learnt.save(tmp_path / "network.safetensors")
    again = empty_scores(rows, 1, 2, CONFIG).double()
    again.load(tmp_path / "network.safetensors")
    assert np.array_equal(learnt.statistic(rows), again.statistic(rows))


def test_jets_without_partners_are_refused():
    rows = pairs(20, 6)
    with pytest.raises(DataError, match="pairs"):
        train_scores(rows.select(np.arange(7)), 1, 2, CONFIG, seed=1)


def test_a_step_learns_from_as_many_jets_as_asked_and_in_pairs(monkeypatch):
    """Half of them under u, the same jets under -u; the loss that is no number is an error."""
    seen = []
    usual = _Columns.loss

    def watched(self, chosen):
        seen.append(chosen)
        return usual(self, chosen)

    monkeypatch.setattr(_Columns, "loss", watched)
    steps = []
    config = CONFIG.model_copy(update={"steps": 4, "batch_size": 64})
    train_scores(pairs(300, 7), 1, 2, config, seed=1, on_step=steps.append)
    assert steps == [1, 2, 3, 4]
    assert [len(chosen) for chosen in seen] == [64] * 4
    for chosen in seen:
        assert np.array_equal(chosen[32:], chosen[:32] + 300)
        assert chosen.max() >= 300 > chosen[:32].max()
    monkeypatch.setattr(_Columns, "loss", lambda self, chosen: usual(self, chosen) * float("nan"))
    with pytest.raises(FitError, match="loss of the network is not finite"):
        train_scores(pairs(300, 7), 1, 2, config, seed=1)


def test_the_loss_is_the_weighted_sum_of_both_parts():
    """½ |u − E(u|x)|² − ln p(f|x), with weights of mean one; widths and means are those of the rows."""
    rows = pairs(40, 8)
    rows = replace(rows, weight=np.tile(np.linspace(0.5, 2.0, 40), 2))
    torch.manual_seed(1)
    scores = empty_scores(rows, 1, 2, CONFIG)
    columns, chosen = _Columns(rows, scores), np.arange(0, 80, 3)
    columns.standardise(chosen)
    for centre, width, values in (
        (scores.feature_mean, scores.feature_width, rows.summaries),
        (scores.kinematics_mean, scores.kinematics_width, rows.kinematics),
    ):
        assert centre.numpy() == pytest.approx(values[chosen].mean(axis=0), rel=1e-5, abs=1e-6)
        assert width.numpy() == pytest.approx(values[chosen].std(axis=0), rel=1e-5)
    mean, log_share = scores(scores.inputs(rows, chosen))
    expected = 0.0
    for place, row in enumerate(chosen):
        distance = 0.5 * ((rows.theta[row] - mean[place].detach().numpy()) ** 2).sum()
        entropy = -log_share[place, rows.flavour[row]].item()
        expected += rows.weight[row] / rows.weight.mean() * (distance + entropy) / len(chosen)
    assert columns.loss(chosen).item() == pytest.approx(expected, rel=1e-5)
