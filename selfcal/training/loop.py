"""Stage 0: the tagger alone on labelled simulation."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.training import TrainingConfig
from selfcal.errors import ConfigError, DataError, FitError
from selfcal.run.atomic import write_text
from selfcal.run.metrics import read_metrics
from selfcal.tagger.batching import JetBatch, TensorJets, epoch_batches
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.network import FlavourTagger, TaggerOutput
from selfcal.tagger.scoring import device_of, score_tensors
from selfcal.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from selfcal.training.evaluation import summary, validation_losses
from selfcal.training.objectives import WeightedMean, supervised_loss, weighted_total
from selfcal.training.processes import current_processes
from selfcal.training.reweighting import reweighted
from selfcal.training.schedule import learning_rate
from selfcal.training.two_detectors import consistency_loss, contrastive_loss

METRICS_STAGE = "train"

VariedJets = Callable[[int], TensorJets]
"""The training's jets in an epoch, as other detectors would have measured them."""


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
    varied: VariedJets | None = None,
) -> TrainingResult:
    """Train ``model`` in place with AdamW; it ends with the weights of the epoch best by ``config.best_by``.

    The contrastive epochs of ``config``, if any, come first, and none of them is the best.

    Killed at any point and called again with the same arguments, it continues from
    the last checkpoint, and on CPU ends with bit-identical weights. Processes that have
    joined (see :mod:`selfcal.training.processes`) share every batch; only the first writes.
    The model ends on the CPU.

    Parameters
    ----------
    files : no checkpoints and no metrics file without it
    on_step : called after every step with the number of steps done so far
    varied : the jets of ``train`` in the detectors of an epoch, row by row

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none, or other detectors and ``varied`` is not given.
    DataError
        If there are no jets to train on or to validate with, or jets without label.
    FitError
        If the loss becomes NaN or infinite.
    """
    _refuse_unusable(train, validation)
    device = training_device(config)
    with torch.random.fork_rng(devices=[]), _sums_in_order(device):
        torch.manual_seed(seed)
        model.to(device)
        run = _Training(model, reweighted(train, config), validation, config, seed, files, varied)
        result = run.to_the_end(on_step or (lambda _: None))
    model.to("cpu")
    return result


@contextmanager
def _sums_in_order(device: torch.device) -> Iterator[None]:
    """On a CPU: scattered gradients are added in one order; else it is that in which threads come first.

    A GPU has no such order for all of its sums, and PyTorch would refuse the others.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def training_device(config: TrainingConfig) -> torch.device:
    """``config.device``; with ``auto`` this process's GPU, or the CPU where there is none.

    Raises
    ------
    ConfigError
        If a GPU is asked for where there is none.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "a GPU is asked for, but PyTorch sees none",
            where="training.device",
            expected="auto or cpu on this machine",
        )
    return torch.device("cuda", torch.cuda.current_device())


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
        for one in fields(jets):
            tensor = getattr(jets, one.name)
            digest.update(f"{one.name}: {tensor is not None}".encode())
            if tensor is not None:
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
        varied: VariedJets | None,
    ) -> None:
        if config.sees_other_detectors and varied is None:
            raise ConfigError("no other detectors to train with", where="training.vary_detector")
        self.model, self.train, self.validation = model, train, validation
        self.config, self.seed, self.files = config, seed, files
        self.varied, self.elsewhere = varied, train
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.device = device_of(model)
        self.processes = current_processes()
        self.steps_per_epoch = len(self._batches(0))
        self.epochs = config.contrastive_epochs + config.epochs
        self.fingerprint = fingerprint(train, validation, config, seed) if files else ""
        saved = load_checkpoint(files.checkpoint, model, self.optimiser, self.fingerprint) if files else None
        self.state = saved or TrainingState()
        self.processes.equalise(model)
        self.last_saved = time.monotonic()

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        return epoch_batches(self.train.n_tracks, self.config.batch_size, seed=self.seed, epoch=epoch)

    def to_the_end(self, on_step: Callable[[int], None]) -> TrainingResult:
        """All epochs that are still to be done."""
        state = self.state
        self.model.train()
        while state.epoch < self.epochs and not self._out_of_patience():
            batches = self._batches(state.epoch)
            if self.varied is not None and (self._contrastive or self.config.vary_detector):
                self.elsewhere = replace(self.varied(state.epoch), weight=self.train.weight)
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

    @property
    def _contrastive(self) -> bool:
        """Whether the epoch under way is one of those without labels."""
        return self.state.epoch < self.config.contrastive_epochs

    def _out_of_patience(self) -> bool:
        patience, state = self.config.patience, self.state
        return (
            patience is not None and state.best_epoch >= 0 and state.epoch - 1 - state.best_epoch >= patience
        )

    def _learning_rate(self, done: int) -> float:
        """It rises and falls once in the contrastive epochs, and once in all others."""
        first = self.config.contrastive_epochs * self.steps_per_epoch
        place, steps = (
            (done, first) if done < first else (done - first, self.epochs * self.steps_per_epoch - first)
        )
        return learning_rate(place, steps, self.config.learning_rate, self.config.warmup_fraction)

    def _losses(self, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """What is minimised, ``total``, and its parts; shares of this process."""
        config, processes = self.config, self.processes
        own = self.train.batch(index).to(self.device)
        elsewhere = own
        if config.vary_detector or self._contrastive:
            elsewhere = self.elsewhere.batch(index).to(self.device)

        def share(mean: WeightedMean) -> Tensor:
            return WeightedMean(mean.numerator, processes.total(mean.denominator)).value

        if self._contrastive:
            latent, other = (self._bare(jets).latent.float() for jets in (own, elsewhere))
            return {"total": share(contrastive_loss(latent, other, config.contrastive_temperature))}
        loss, output = supervised_loss(self.model, elsewhere, config, processes)
        losses = {"total": loss.total, **loss.parts}
        if config.consistency_weight:
            apart = share(consistency_loss(output.logits, self._bare(own).logits, own.weight))
            losses |= {"total": loss.total + config.consistency_weight * apart, "consistency": apart}
        return losses

    def _bare(self, jets: JetBatch) -> TaggerOutput:
        """The output without the heads on tracks."""
        lower = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            output: TaggerOutput = self.model(jets, with_origin=False, with_vertex=False)
        return output

    def _step(self, done: int, index: NDArray[np.int64]) -> None:
        rate = self._learning_rate(done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        processes = self.processes
        # Dropout depends on (seed, step, process) alone, like the batches.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, done, processes.rank]).generate_state(1)[0]))
        losses = self._losses(index[processes.rank :: processes.size])
        self.optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()  # type: ignore[no-untyped-call]
        processes.total_gradients(list(self.model.parameters()))
        values = processes.total(torch.stack(list(losses.values()))).tolist()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self._refuse_divergence(values[0], norm, done)
        self.optimiser.step()
        sums = self.state.sums
        for name, value in zip(losses, values, strict=True):
            sums[name] = sums.get(name, 0.0) + value

    def _refuse_divergence(self, loss: float, norm: Tensor, done: int) -> None:
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            raise FitError(
                "the training loss or its gradient is NaN or infinite",
                where=f"epoch {self.state.epoch}, step {done} of {self.epochs * self.steps_per_epoch}",
                expected="finite numbers",
                fix="lower training.learning_rate or training.gradient_clip",
            )

    def _finish_epoch(self, steps: int) -> None:
        state = self.state
        losses = validation_losses(self.model, self.validation)
        losses["total"] = weighted_total(losses, self.config)
        log_probability = score_tensors(self.model, self.validation).log_probability
        record: dict[str, Any] = {
            "stage": METRICS_STAGE,
            "epoch": state.epoch,
            "step": (state.epoch + 1) * self.steps_per_epoch,
            **{f"train_{name}_loss": value / steps for name, value in state.sums.items()},
            **{f"validation_{name}_loss": value for name, value in losses.items()},
            **summary(discriminant_b(log_probability), log_probability, self.validation.flavour.numpy()),
        }
        state.history.append(record)
        cost = _cost(record, self.config.best_by)
        if not self._contrastive and (cost < state.best_cost or state.best_epoch < 0):
            state.best_cost, state.best_epoch = cost, state.epoch
            state.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        state.epoch, state.step_in_epoch, state.sums = state.epoch + 1, 0, {}
        self._save()
        if self.files and self.processes.rank == 0:
            _write_history(self.files.metrics, state.history)

    def _save_if_due(self) -> None:
        if self.files and time.monotonic() - self.last_saved >= self.files.checkpoint_interval_s:
            self._save()

    def _save(self) -> None:
        if self.files and self.processes.rank == 0:
            save_checkpoint(self.files.checkpoint, self.state, self.model, self.optimiser, self.fingerprint)
            self.last_saved = time.monotonic()


def _cost(record: dict[str, Any], best_by: str) -> float:
    """What is to become small; infinite where the metric is undefined (no b jets, no background passes)."""
    value = record[best_by]
    if value is None:
        return math.inf
    return float(value) if best_by.endswith("_loss") else -float(value)


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Replace this stage's rows: a resumed training must not leave an epoch there twice."""
    others = [row for row in read_metrics(path) if row.get("stage") != METRICS_STAGE]
    write_text(path, "".join(json.dumps(row) + "\n" for row in (*others, *history)))
