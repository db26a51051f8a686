"""The joint stage on files: only the train fold shapes the tagger; the detector can be varied."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.calibration import CalibrationConfig, CompositionConfig
from selfcal.config.card import DataCard
from selfcal.config.fit import FitConfig
from selfcal.config.run import DataConfig, RunConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import JointConfig, TrainingConfig
from selfcal.data.folds import Fold, fold_of
from selfcal.data.hdf5 import write_jets
from selfcal.data.samples import training_fold
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.joint_stage import run_joint_training
from tests.training.conftest import SMALL

REGIONS = ("a", "b")
FOLDS = DataConfig(cards=("unused.yaml",)).data_folds


@pytest.fixture
def make_context(make_jets, tmp_path):
    def make(name: str, changed: tuple[Fold, ...] = (), **joint) -> RunContext:
        """A run whose data have longer tracks in some folds."""
        cards = []
        for seed, (role, region) in enumerate((r, x) for r in ("simulation", "data") for x in REGIONS):
            jets = replace(make_jets(5, jets=900, seed=seed), dataset=f"{role}_{region}")
            if role == "data":
                fold = np.repeat(fold_of(jets, FOLDS), jets.n_tracks)
                factor = np.where(np.isin(fold, [int(one) for one in changed]), 1.3, 1.0)
                jets = replace(jets, tracks=(jets.tracks * factor[:, None]).astype(np.float32))
            path = tmp_path / f"{name}_{role}_{region}.h5"
            write_jets(path, jets, labels=role == "simulation")
            card = {"composition": {}} if role == "data" else {}
            card |= {"name": jets.dataset, "files": (path.name,)}
            cards.append(DataCard(role=role, region=region, use="control", **card))
        config = RunConfig(
            name="test",
            data=DataConfig(cards=("unused.yaml",)),
            tagger=TaggerConfig(width=16, layers=1, heads=2, feedforward_width=16, latent=8),
            training=TrainingConfig(epochs=1, batch_size=64),
            calibration=CalibrationConfig(
                composition=CompositionConfig(steps=4, batch_size=64),
                joint=JointConfig(epochs=1, batch_size=128, auc_loss_max=0.9, learning_rate=1e-3, **joint),
            ),
            fit=FitConfig(working_point_region="a"),
        )
        return RunContext(config, tuple(cards), RunDirectory(tmp_path / name), data_root=tmp_path)

    return make


def trained(context: RunContext) -> tuple[dict[str, torch.Tensor], dict]:
    samples = training_fold(context)
    inputs = common_inputs(samples)
    norm = Normalisation.measure([compute_features(jets, inputs) for jets in samples])
    bundle = TaggerBundle(SMALL, inputs, norm, build_tagger(SMALL, inputs, norm, seed=3))
    (path,) = run_joint_training(context, bundle, REGIONS)
    return bundle.model.state_dict(), json.loads(path.read_text())


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_data_that_derive_or_measure_do_not_shape_the_tagger(make_context) -> None:
    weights, written = trained(make_context("as_it_is"))
    assert written["epochs_kept"] == 1
    others, _ = trained(make_context("others", changed=(Fold.DERIVE, Fold.MEASURE)))
    train, _ = trained(make_context("train", changed=(Fold.TRAIN,)))
    assert equal(weights, others)
    assert not equal(weights, train)


def test_penalty_and_varied_detector_are_chosen_by_configuration(make_context) -> None:
    weights, written = trained(make_context("as_it_is", penalty="mmd", constraint="multiplier"))
    varied, again = (
        trained(
            make_context(
                name,
                penalty="mmd",
                constraint="multiplier",
                vary_detector=True,
                consistency_weight=0.5,
            )
        )
        for name in ("varied", "again")
    )
    assert equal(varied[0], again[0])
    assert not equal(weights, varied[0])
    row = written["history"][0]
    assert len(row["multipliers"]) == len(REGIONS)
    assert row["auc within regions, b against light"] > 0
