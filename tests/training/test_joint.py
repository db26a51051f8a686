"""The joint stage: gradients reach all three parts, the cap holds, a killed stage resumes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from selfcal.config.run import JointConfig, TrainingConfig
from selfcal.data.scored import ScoredJets
from selfcal.tagger.batching import TensorJets
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.joint import JointResult, JointSample, train_jointly
from selfcal.training.scores_stage import event_index, scored, scorer_of
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.composition import CompositionFit, CompositionPrior
from selfcal.transport.conditions import CONDITIONS, ScoreFrame
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.sample import build_sample, simulated_fractions
from tests.training.conftest import SMALL

REGIONS = ("all",)


@dataclass
class JointSetup:
    bundle: TaggerBundle
    simulation: JointSample
    data: JointSample
    validation: TensorJets
    frame: ScoreFrame
    prior: CompositionPrior
    start: CompositionFit

    def run(self, checkpoint=None, on_step=None, **changes) -> JointResult:
        config = JointConfig(epochs=2, batch_size=128, learning_rate=1e-3).model_copy(update=changes)
        return train_jointly(
            self.bundle.model,
            self.simulation,
            self.data,
            self.validation,
            self.frame,
            self.prior,
            self.start,
            config,
            TrainingConfig(),
            seed=5,
            checkpoint=checkpoint,
            on_step=on_step,
        )


def of_region(bundle: TaggerBundle, jets, *, labelled: bool) -> ScoredJets:
    result = scored(scorer_of(bundle), [jets], "all", (1.0, 0.0, 0.0), labelled=labelled)
    assert (result.event == event_index(jets.run, jets.event)).all()
    return result


@pytest.fixture
def joint(make_jets):
    def make() -> JointSetup:
        torch.set_num_threads(1)
        simulated = make_jets(6, jets=400, seed=1)
        observed = make_jets(6, jets=400, seed=2)
        observed = replace(observed, tracks=observed.tracks * np.float32(1.3))
        inputs = common_inputs([simulated])
        norm = Normalisation.measure([compute_features(simulated, inputs)])
        bundle = TaggerBundle(SMALL, inputs, norm, build_tagger(SMALL, inputs, norm, seed=3))
        scores = {
            "simulation": {"all": of_region(bundle, simulated, labelled=True)},
            "data": {"all": of_region(bundle, observed, labelled=False)},
        }
        frame = ScoreFrame.from_jets(scores["simulation"]["all"])
        samples = {role: build_sample(jets, REGIONS, frame) for role, jets in scores.items()}
        fractions = simulated_fractions(samples["simulation"], 1)
        return JointSetup(
            bundle,
            JointSample(bundle.tensors(simulated), samples["simulation"]),
            JointSample(bundle.tensors(observed), samples["data"]),
            bundle.tensors(make_jets(6, jets=300, seed=4)),
            frame,
            CompositionPrior(fractions, 0.25 * fractions),
            CompositionFit(fractions, FlavourMaps(lambda: AffineMap(3, CONDITIONS, 0.3))),
        )

    return make


def weights(setup: JointSetup) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in setup.bundle.model.state_dict().items()}


def test_tagger_and_maps_all_learn(joint) -> None:
    setup = joint()
    before = weights(setup)
    result = setup.run(auc_loss_max=0.9)
    assert result.epochs_kept == 2
    assert any(not torch.equal(before[name], value) for name, value in weights(setup).items())
    assert setup.start.maps.of(0).constant.abs().max() > 0  # type: ignore[union-attr,operator]
    assert result.history[-1]["tagger_loss"] < result.history[0]["tagger_loss"]


def test_penalty_changes_the_tagger(joint) -> None:
    """Same seed, same jets: only the penalty's weight differs, and so do the weights."""
    without, with_penalty = joint(), joint()
    without.run(penalty_weight=0.0, auc_loss_max=0.9)
    with_penalty.run(penalty_weight=5.0, auc_loss_max=0.9)
    first, second = weights(without), weights(with_penalty)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_an_epoch_that_ruins_the_tagger_is_undone(joint) -> None:
    setup = joint()
    setup.run(auc_loss_max=0.9, epochs=8, penalty_weight=0.0)  # a tagger with something to lose
    before = weights(setup)
    result = setup.run(learning_rate=2.0, auc_loss_max=0.01)
    assert result.epochs_kept == 0
    assert "undone" in result.stopped
    after = weights(setup)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resumed_stage_is_bit_identical(joint, tmp_path) -> None:
    undisturbed = joint()
    expected = undisturbed.run(auc_loss_max=0.9)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == total - 1:
            raise Killed

    with pytest.raises(Killed):
        joint().run(tmp_path / "joint.safetensors", on_step=kill, auc_loss_max=0.9)
    resumed, steps = joint(), []
    result = resumed.run(
        tmp_path / "joint.safetensors", on_step=lambda done, _: steps.append(done), auc_loss_max=0.9
    )
    assert steps[0] > 1
    assert result == expected
    first, second = weights(undisturbed), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
