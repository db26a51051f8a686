"""The tagger learns; the best epoch is kept; a diverging training is a fit error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.training import TrainingConfig
from selfcal.errors import ConfigError, DataError, FitError
from selfcal.run.metrics import append_metrics, read_metrics
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.evaluation import validation_losses
from selfcal.training.loop import train_tagger
from tests.training.conftest import SMALL


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


def test_two_threads_find_the_same_weights_every_time(setup):
    """Bit for bit: gradients of gathered tracks are added in one order, not in that of the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (trained(setup()) for _ in range(4))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(first[name], value) for name, value in other.items())
    assert not torch.are_deterministic_algorithms_enabled()


def trained(training) -> dict[str, torch.Tensor]:
    """Weights after an epoch of batches large enough to be shared by threads."""
    training.run(epochs=1, batch_size=400)
    return {name: value.clone() for name, value in training.weights().items()}


@pytest.mark.fault(11, "a training loss that becomes NaN")
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


def test_the_number_of_threads_changes_the_training_by_rounding_alone(setup):
    """With the same number it is the same to the last bit. AdamW magnifies what is rounded where a gradient
    is almost zero, so that single weights may differ by a step of it; losses may not."""
    histories, weights = [], []
    before = torch.get_num_threads()
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            training = setup()
            histories.append(training.run(epochs=1).history[0])
            weights.append(training.weights())
    finally:
        torch.set_num_threads(before)
    assert histories[0] == histories[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("train_total_loss", "validation_total_loss"):
        assert histories[2][name] == pytest.approx(histories[0][name], rel=1e-3)


def test_the_global_random_state_is_left_alone(setup):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    setup().run(epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("best_by", ["validation_total_loss", "auc_b_light"])
def test_the_best_epoch_is_chosen_by_the_metric_asked_for(setup, best_by):
    result = setup().run(epochs=5, learning_rate=0.2, warmup_fraction=0.6, best_by=best_by)
    values = [row[best_by] for row in result.history]
    best = min(values) if best_by.endswith("_loss") else max(values)
    assert result.best_epoch == values.index(best)


def test_training_stops_when_it_no_longer_gets_better(setup):
    result = setup().run(epochs=30, learning_rate=0.5, warmup_fraction=0.6, patience=2)
    losses = [row["validation_flavour_loss"] for row in result.history]
    assert len(losses) == result.best_epoch + 3 < 30
    assert min(losses) == losses[-3]


def test_a_training_stopped_early_stays_stopped(setup, tmp_path):
    changes = {"epochs": 30, "learning_rate": 0.5, "warmup_fraction": 0.6, "patience": 2}
    expected, steps = setup().run(tmp_path, **changes), []
    assert setup().run(tmp_path, on_step=steps.append, **changes) == expected
    assert steps == []


def test_mixed_precision_learns_nearly_the_same(setup):
    """bfloat16 has 8 bits: losses agree to about a per cent, weights stay float32."""
    single, mixed = setup(), setup()
    a, b = single.run(), mixed.run(precision="bfloat16")
    assert {value.dtype for value in mixed.weights().values()} == {torch.float32}
    for key in ("train_total_loss", "validation_flavour_loss"):
        assert a.history[0][key] != b.history[0][key]
        assert b.history[-1][key] == pytest.approx(a.history[-1][key], rel=0.03)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_a_configuration_error(setup):
    with pytest.raises(ConfigError, match="GPU"):
        setup().run(device="cuda")


def test_weights_of_jets_reach_the_training(setup):
    plain, weighted = setup(), setup()
    plain.run(epochs=1)
    weighted.run(epochs=1, flavour_weights={"c": 5.0})
    assert any(not torch.equal(plain.weights()[k], v) for k, v in weighted.weights().items())


def test_the_response_is_learnt(make_jets):
    """True pT of heavy jets is larger than measured, of light ones smaller: the flavour tells."""
    samples = []
    for seed, n in ((1, 800), (2, 300)):
        jets = make_jets(6, jets=n, seed=seed)
        response = np.array([0.3, 0.1, -0.2, -0.1])[jets.flavour]
        samples.append(replace(jets, truth_pt_gev=(jets.pt_gev * np.exp(response)).astype(np.float32)))
    inputs = common_inputs(samples)
    norm = Normalisation.measure([compute_features(samples[0], inputs)])
    config = SMALL.model_copy(update={"regress_pt": True})
    bundle = TaggerBundle(config, inputs, norm, build_tagger(config, inputs, norm, seed=3))
    train, validation = (bundle.tensors(jets) for jets in samples)
    expected = np.array([0.3, 0.1, -0.2, -0.1])[samples[0].flavour]
    np.testing.assert_allclose(train.log_response.numpy(), expected, atol=1e-5)
    training = TrainingConfig(epochs=8, batch_size=64, learning_rate=5e-3)
    history = train_tagger(bundle.model, train, validation, training, seed=1).history
    assert history[-1]["validation_response_loss"] < 0.4 * history[0]["validation_response_loss"]
