"""Training with every jet in two detectors: losses in closed form, scores and latents that follow neither."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from selfcal.config.training import TrainingConfig
from selfcal.errors import ConfigError
from selfcal.tagger.batching import TensorJets
from selfcal.training.two_detectors import consistency_loss, contrastive_loss
from tests.training.test_resume import Killed, _equal, _killer

TWO = {"vary_detector": True, "consistency_weight": 0.5, "contrastive_epochs": 2, "epochs": 2}


def shifted(jets: TensorJets, epoch: int) -> TensorJets:
    """Tracks of a detector whose first feature is off, another one in each epoch."""
    tracks = jets.tracks.clone()
    tracks[:, 0] += 1.5 * math.cos(epoch)
    return replace(jets, tracks=tracks)


@pytest.fixture
def elsewhere(setup):
    def make():
        training = setup()
        training.varied = lambda epoch: shifted(training.train, epoch)
        return training

    return make


def test_consistency_is_the_mean_square_of_what_probabilities_differ_by() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]))
    other = torch.log(torch.tensor([[0.2, 0.1, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]))
    weight = torch.tensor([3.0, 1.0])
    expected = 3.0 * 2 * math.log(2.0) ** 2 / 4 / 4.0
    assert float(consistency_loss(logits, other, weight).value) == pytest.approx(expected, rel=1e-6)
    # Logits are known up to a constant of the jet.
    same = consistency_loss(logits + torch.tensor([[5.0], [-2.0]]), logits, weight)
    assert float(same.value) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrast_of_orthogonal_latents_is_known(temperature: float) -> None:
    """n orthogonal vectors: each finds itself with probability e^{1/t} / (e^{1/t} + n - 1)."""
    n = 5
    latent = torch.eye(n, 7) * torch.arange(1.0, n + 1)[:, None]
    e = math.exp(1 / temperature)
    own = contrastive_loss(latent, 3 * latent, temperature)
    assert float(own.value) == pytest.approx(-math.log(e / (e + n - 1)), rel=1e-4, abs=1e-5)
    exchanged = contrastive_loss(latent, latent.roll(1, dims=0), temperature)
    assert float(exchanged.value) == pytest.approx(-math.log(1 / (e + n - 1)), rel=1e-5)


def test_latents_that_say_nothing_cost_the_logarithm_of_the_number_of_jets() -> None:
    same = torch.ones(6, 4)
    assert float(contrastive_loss(same, same, 0.2).value) == pytest.approx(math.log(6), rel=1e-6)


def sensitivity(training, of: str) -> float:
    """What the shift of a detector changes, relative to what jets differ by."""
    rows = np.arange(200)
    with torch.no_grad():
        here, there = (
            getattr(training.bundle.model(jets.batch(rows)), of).double()
            for jets in (training.validation, shifted(training.validation, 0))
        )
    return float((here - there).square().mean() / here.var(0).mean())


def test_scores_follow_the_detector_less_the_more_it_costs(elsewhere) -> None:
    found = []
    for changes in ({}, {"vary_detector": True}, {"vary_detector": True, "consistency_weight": 3.0}):
        training = elsewhere()
        training.run(epochs=6, **changes)
        found.append(sensitivity(training, "logits"))
    blind, varied, consistent = found
    assert consistent < 0.5 * varied
    assert varied < blind


def test_contrastive_epochs_make_latents_that_do_not_follow_the_detector(elsewhere) -> None:
    """Without a label; one epoch with labels follows in both cases."""
    found = []
    for epochs in (0, 8):
        training = elsewhere()
        result = training.run(epochs=1, contrastive_epochs=epochs, warmup_fraction=0.0)
        assert result.best_epoch == epochs
        found.append(sensitivity(training, "latent"))
    assert found[1] < 0.7 * found[0]


def test_contrastive_epochs_come_first_and_are_never_the_best(elsewhere) -> None:
    result = elsewhere().run(**TWO)
    labels = ["train_flavour_loss" in row for row in result.history]
    assert labels == [False, False, True, True]
    assert all(row["train_consistency_loss"] > 0 for row in result.history[2:])
    assert result.best_epoch >= 2
    assert result.history[1]["train_total_loss"] < result.history[0]["train_total_loss"] < math.log(64)


@pytest.mark.fault(1, "training with two detectors stopped at four steps, resumed bit-identical")
@pytest.mark.parametrize("step", [3, 14, 15, 24])
def test_resumed_with_two_detectors_it_is_bit_identical(elsewhere, tmp_path, step: int) -> None:
    """Seven steps per epoch, two epochs of each kind: within both kinds and between them."""
    undisturbed = elsewhere()
    expected = undisturbed.run(**TWO)
    with pytest.raises(Killed):
        elsewhere().run(tmp_path, on_step=_killer(step), **TWO)
    resumed = elsewhere()
    assert resumed.run(tmp_path, **TWO) == expected
    assert _equal(resumed.weights(), undisturbed.weights())


def test_patience_counts_from_the_first_epoch_with_labels(elsewhere) -> None:
    result = elsewhere().run(contrastive_epochs=3, epochs=2, patience=1)
    assert len(result.history) >= 4


def test_the_other_detector_is_asked_for_once_per_epoch_and_only_where_needed(setup) -> None:
    training, asked = setup(), []

    def varied(epoch: int) -> TensorJets:
        asked.append(epoch)
        return training.train

    training.varied = varied
    training.run(epochs=2, contrastive_epochs=1)
    assert asked == [0]
    training.run(**TWO)
    assert asked == [0, 0, 1, 2, 3]


def test_a_second_detector_that_is_not_there_is_a_configuration_error(setup) -> None:
    with pytest.raises(ConfigError, match="no other detectors"):
        setup().run(vary_detector=True)
    with pytest.raises(ValidationError, match="set 'vary_detector: true'"):
        TrainingConfig(consistency_weight=1.0)
