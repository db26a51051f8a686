"""The tagger learns; the best epoch is kept; a diverging training is a fit error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from selfcal.errors import DataError, FitError
from selfcal.run.metrics import append_metrics, read_metrics
from selfcal.training.evaluation import validation_losses


def test_learns_to_separate_displaced_flavours(setup):
    training = setup()
    result = training.run(epochs=8)
    first, last = result.history[0], result.history[-1]
    assert last["validation_flavour_loss"] < first["validation_flavour_loss"] < math.log(4) + 0.1
    assert last["validation_flavour_loss"] < 0.9
    assert last["auc_b_light"] > 0.97


def test_ends_with_the_weights_of_the_best_epoch(setup):
    training = setup()
    # A learning rate far too large near the end of the first epochs makes later ones worse.
    result = training.run(epochs=4, learning_rate=0.5, warmup_fraction=0.6)
    losses = [row["validation_flavour_loss"] for row in result.history]
    assert result.best_epoch == losses.index(min(losses))
    again = validation_losses(training.bundle.model, training.validation)
    assert again["flavour"] == pytest.approx(min(losses), rel=1e-12)


def test_metrics_keep_the_rows_of_other_stages(setup, tmp_path):
    append_metrics(tmp_path / "metrics.jsonl", {"stage": "generate", "jets": 5})
    result = setup().run(tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == {"stage": "generate", "jets": 5}
    assert rows[1:] == result.history
    assert [row["epoch"] for row in rows[1:]] == [0, 1, 2]


def test_progress_counts_every_step_once(setup):
    steps = []
    setup().run(on_step=steps.append)
    assert steps == list(range(1, 3 * 7 + 1))


def test_a_loss_that_is_not_finite_stops_the_training(setup, tmp_path):
    training = setup()
    training.train.jet[17, 0] = 1e38
    before = {name: value.clone() for name, value in training.weights().items()}
    with pytest.raises(FitError, match="NaN or infinite") as caught:
        training.run(tmp_path, batch_size=512)
    assert caught.value.exit_code == 4
    assert all(torch.equal(before[name], value) for name, value in training.weights().items())


def test_jets_without_label_are_refused(setup):
    training = setup()
    training.train = replace(training.train, flavour=torch.full_like(training.train.flavour, -1))
    with pytest.raises(DataError, match="without label"):
        training.run()


def test_the_global_random_state_is_left_alone(setup):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    setup().run(epochs=1)
    assert torch.equal(torch.rand(3), expected)
