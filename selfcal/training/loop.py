"""Stage 0: the tagger alone on labelled simulation."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.run import TrainingConfig
from selfcal.errors import DataError, FitError
from selfcal.run.atomic import write_text
from selfcal.run.metrics import read_metrics
from selfcal.tagger.batching import TensorJets, epoch_batches
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.network import FlavourTagger
from selfcal.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from selfcal.training.evaluation import log_probabilities, summary, validation_losses
from selfcal.training.objectives import TaggerLoss, balanced_flavour_weights, supervised_loss
from selfcal.training.schedule import learning_rate

METRICS_STAGE = "train"


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training keeps its state, and the run's metrics (rows of other stages stay)."""

    checkpoint: Path
    metrics: Path
    checkpoint_interval_s: float = 20.0


@dataclass(frozen=True)
class TrainingResult:
    """The epoch whose weights the model holds now, and the metrics of all epochs."""

    best_epoch: int
    history: list[dict[str, Any]]


def train_tagger(
    model: FlavourTagger,
    train: TensorJets,
    validation: TensorJets,
    config: TrainingConfig,
    *,
    seed: int,
    files: TrainingFiles | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place with AdamW; it ends with the weights of the smallest validation loss.

    Killed at any point and called again with the same arguments, it continues from
    the last checkpoint, and on CPU ends with bit-identical weights.

    Parameters
    ----------
    files : no checkpoints and no metrics file without it
    on_step : called after every step with the number of steps done so far

    Raises
    ------
    DataError
        If there are no jets to train on or to validate with, or jets without label.
    FitError
        If the loss becomes NaN or infinite.
    """
    _refuse_unusable(train, validation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = _Training(model, train, validation, config, seed, files)
        return run.to_the_end(on_step or (lambda _: None))


def _refuse_unusable(train: TensorJets, validation: TensorJets) -> None:
    for name, jets in (("training", train), ("validation", validation)):
        if len(jets) == 0:
            raise DataError(f"no {name} jets", expected="labelled simulation in the train fold")
        if bool((jets.flavour < 0).any()):
            raise DataError(f"{name} jets without label", expected="labelled simulation only")


def fingerprint(train: TensorJets, validation: TensorJets, config: TrainingConfig, seed: int) -> str:
    """SHA-256 of all that decides a training's numbers, the model excepted."""
    digest = hashlib.sha256(json.dumps([config.model_dump(mode="json"), seed]).encode())
    for jets in (train, validation):
        for tensor in (
            jets.tracks,
            jets.offsets,
            jets.jet,
            jets.flavour,
            jets.origin,
            jets.vertex,
            jets.weight,
        ):
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


class _Training:
    """One training under way."""

    def __init__(
        self,
        model: FlavourTagger,
        train: TensorJets,
        validation: TensorJets,
        config: TrainingConfig,
        seed: int,
        files: TrainingFiles | None,
    ) -> None:
        self.model, self.train, self.validation = model, train, validation
        self.config, self.seed, self.files = config, seed, files
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.flavour_weights: Tensor | None = (
            balanced_flavour_weights(train.flavour) if config.balance_flavours else None
        )
        self.steps_per_epoch = len(self._batches(0))
        self.steps = config.epochs * self.steps_per_epoch
        self.fingerprint = fingerprint(train, validation, config, seed) if files else ""
        saved = load_checkpoint(files.checkpoint, model, self.optimiser, self.fingerprint) if files else None
        self.state = saved or TrainingState()
        self.last_saved = time.monotonic()

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        return epoch_batches(self.train.n_tracks, self.config.batch_size, seed=self.seed, epoch=epoch)

    def to_the_end(self, on_step: Callable[[int], None]) -> TrainingResult:
        """All epochs that are still to be done."""
        state = self.state
        self.model.train()
        while state.epoch < self.config.epochs:
            batches = self._batches(state.epoch)
            while state.step_in_epoch < len(batches):
                done = state.epoch * self.steps_per_epoch + state.step_in_epoch
                self._step(done, batches[state.step_in_epoch])
                state.step_in_epoch += 1
                self._save_if_due()
                on_step(done + 1)
            self._finish_epoch(len(batches))
        self.model.load_state_dict(state.best)
        self.model.eval()
        return TrainingResult(state.best_epoch, state.history)

    def _step(self, done: int, index: NDArray[np.int64]) -> None:
        rate = learning_rate(done, self.steps, self.config.learning_rate, self.config.warmup_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self.train.batch(index)
        loss, _ = supervised_loss(self.model, batch, self.config, self.flavour_weights)
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._refuse_divergence(loss, norm, done)
        self.optimiser.step()
        sums = self.state.sums
        for name in ("total", "flavour", "origin", "vertex"):
            sums[name] = sums.get(name, 0.0) + float(getattr(loss, name).detach())

    def _refuse_divergence(self, loss: TaggerLoss, norm: Tensor, done: int) -> None:
        if not math.isfinite(float(loss.total.detach())) or not bool(norm.isfinite()):
            raise FitError(
                "the training loss or its gradient is NaN or infinite",
                where=f"epoch {self.state.epoch}, step {done} of {self.steps}",
                expected="finite numbers",
                fix="lower training.learning_rate or training.gradient_clip",
            )

    def _finish_epoch(self, steps: int) -> None:
        state = self.state
        losses = validation_losses(self.model, self.validation)
        log_probability, _ = log_probabilities(self.model, self.validation)
        record: dict[str, Any] = {
            "stage": METRICS_STAGE,
            "epoch": state.epoch,
            "step": (state.epoch + 1) * self.steps_per_epoch,
            **{f"train_{name}_loss": value / steps for name, value in state.sums.items()},
            **{f"validation_{name}_loss": value for name, value in losses.items()},
            **summary(discriminant_b(log_probability), log_probability, self.validation.flavour.numpy()),
        }
        state.history.append(record)
        if losses["flavour"] < state.best_loss:
            state.best_loss, state.best_epoch = losses["flavour"], state.epoch
            state.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        state.epoch, state.step_in_epoch, state.sums = state.epoch + 1, 0, {}
        self._save()
        if self.files:
            _write_history(self.files.metrics, state.history)

    def _save_if_due(self) -> None:
        if self.files and time.monotonic() - self.last_saved >= self.files.checkpoint_interval_s:
            self._save()

    def _save(self) -> None:
        if self.files:
            save_checkpoint(self.files.checkpoint, self.state, self.model, self.optimiser, self.fingerprint)
            self.last_saved = time.monotonic()


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Replace this stage's rows: a resumed training must not leave an epoch there twice."""
    others = [row for row in read_metrics(path) if row.get("stage") != METRICS_STAGE]
    write_text(path, "".join(json.dumps(row) + "\n" for row in (*others, *history)))
