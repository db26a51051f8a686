"""A small tagger with its jets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.tagger.batching import TensorJets
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.loop import TrainingFiles, TrainingResult, VariedJets, train_tagger

SMALL = TaggerConfig(width=16, layers=1, heads=2, feedforward_width=16, latent=8, dropout=0.1)


@dataclass
class Setup:
    """Everything a training needs, made anew and the same each time."""

    bundle: TaggerBundle
    train: TensorJets
    validation: TensorJets
    config: TrainingConfig
    varied: VariedJets | None = None

    def run(self, folder: Path | None = None, on_step=None, **changes) -> TrainingResult:
        """Train; checkpoints after every step if a folder is given."""
        files = folder and TrainingFiles(folder / "training.safetensors", folder / "metrics.jsonl", 0.0)
        config = self.config.model_copy(update=changes)
        return train_tagger(
            self.bundle.model,
            self.train,
            self.validation,
            config,
            seed=7,
            files=files,
            on_step=on_step,
            varied=self.varied,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return self.bundle.model.state_dict()


@pytest.fixture
def setup(make_jets):
    def make() -> Setup:
        train, validation = make_jets(6, jets=400, seed=1), make_jets(6, jets=200, seed=2)
        inputs = common_inputs([train])
        norm = Normalisation.measure([compute_features(train, inputs)])
        bundle = TaggerBundle(SMALL, inputs, norm, build_tagger(SMALL, inputs, norm, seed=3))
        config = TrainingConfig(epochs=3, batch_size=64, learning_rate=5e-3)
        return Setup(bundle, bundle.tensors(train), bundle.tensors(validation), config)

    return make
