"""The joint stage: the tagger sees the data-versus-simulation penalty.

Minimised over the tagger φ, the stiff maps T and the fractions π together:

    L_tagger(φ) + CE(T # simulation; φ)
      + μ Σ_r [D_r - ε_r]₊ / E_r            (reaches φ)
      + Σ_r n_r D_r / (2 s E_r) + prior(π) + stiffness(T)      (reaches T and π)

Steps alternate between φ and (T, π). D_r is the energy distance of region r in a frame
of coordinates fixed before the stage starts, E_r its scale, ε_r the spread of its
moving average under the null. The hinge acts on the moving average, because on a
single minibatch it is biased.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.run import JointConfig, TrainingConfig
from selfcal.data.flavours import LIGHT, B
from selfcal.errors import FitError
from selfcal.penalty.energy import mean_distance_within
from selfcal.tagger.batching import TensorJets
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.network import FlavourTagger
from selfcal.tagger.working_points import area_under_curve
from selfcal.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from selfcal.training.evaluation import log_probabilities
from selfcal.training.objectives import supervised_loss
from selfcal.transport.composition import (
    LEADING_SHARE,
    Composition,
    CompositionFit,
    CompositionPrior,
    distance_features,
    prior_cost,
    region_distance,
)
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.sample import Sample, simulated_fractions

AVERAGE_KEPT = 0.95
"""Memory of the moving average of each D_r: about twenty minibatches."""

NULL_DRAWS = 24
"""Simulation-against-simulation distances from which the noise floor ε_r is taken."""


@dataclass(frozen=True)
class JointSample:
    """Inputs of N jets with what the penalty needs to know of each; rows correspond."""

    jets: TensorJets
    sample: Sample


@dataclass(frozen=True)
class JointResult:
    """What the joint stage did: the epochs kept, and why it stopped."""

    history: list[dict[str, Any]]
    epochs_kept: int
    stopped: str


class _Learnt(nn.Module):
    """Everything that the joint stage changes, as one module with one optimiser."""

    def __init__(self, tagger: FlavourTagger, start: CompositionFit) -> None:
        super().__init__()
        self.tagger = tagger
        self.composition = Composition(start.fractions)
        self.maps = start.maps.requires_grad_()

    def calibration(self) -> list[nn.Parameter]:
        return [*self.composition.parameters(), *self.maps.parameters()]


def train_jointly(
    tagger: FlavourTagger,
    simulation: JointSample,
    data: JointSample,
    validation: TensorJets,
    frame: ScoreFrame,
    prior: CompositionPrior,
    start: CompositionFit,
    config: JointConfig,
    training: TrainingConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> JointResult:
    """Change ``tagger`` in place; an epoch that costs more than ``auc_loss_max`` is undone.

    The cap is relative: AUC(b against light) on ``validation`` may fall by that share of
    what it was before. Killed and called again, it continues from the last epoch.

    Raises
    ------
    FitError
        If the objective becomes NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage = _JointStage(tagger, simulation, data, validation, frame, prior, start, config, training, seed)
        return stage.run(checkpoint, on_step or (lambda _done, _total: None))


class _JointStage:
    def __init__(
        self,
        tagger: FlavourTagger,
        simulation: JointSample,
        data: JointSample,
        validation: TensorJets,
        frame: ScoreFrame,
        prior: CompositionPrior,
        start: CompositionFit,
        config: JointConfig,
        training: TrainingConfig,
        seed: int,
    ) -> None:
        self.simulation, self.data, self.validation = simulation, data, validation
        self.frame, self.prior, self.config, self.training = frame, prior, config, training
        self.seed = seed
        self.regions = len(prior.fractions)
        self.simulated = simulated_fractions(simulation.sample, self.regions)
        self.learnt = _Learnt(tagger, start)
        self.optimiser = torch.optim.AdamW(
            [
                {"params": list(tagger.parameters()), "lr": config.learning_rate},
                {"params": self.learnt.calibration(), "lr": config.map_learning_rate},
            ],
            weight_decay=0.0,
        )
        self.steps_per_epoch = max(1, len(simulation.jets) // config.batch_size)
        self.rows = [
            (
                (simulation.sample.region == region).nonzero().squeeze(1).numpy(),
                (data.sample.region == region).nonzero().squeeze(1).numpy(),
            )
            for region in range(self.regions)
        ]
        self.scale, self.floor = self._null_distances()
        # Starts at the floor: the hinge closes only where the data ask for it.
        self.average = [floor.clone() for floor in self.floor]

    def _null_distances(self) -> tuple[list[float], list[Tensor]]:
        """E_r of each region's data, and the spread of the averaged distance for equal laws."""
        generator = np.random.default_rng([self.seed, 1])
        scales, floors = [], []
        per_region = self._per_region()
        for _, observed in self.rows:
            draws = []
            for _ in range(NULL_DRAWS):
                chosen = torch.from_numpy(
                    generator.choice(observed, min(2 * per_region, len(observed)), replace=False)
                )
                features = distance_features(self.data.sample.rows(chosen))
                half = len(features) // 2
                ones = torch.ones(half, dtype=torch.float64)
                within = mean_distance_within(features[:half], ones)
                other = mean_distance_within(features[half : 2 * half], ones)
                between = torch.cdist(features[:half], features[half : 2 * half]).mean()
                draws.append(2 * between - within - other)
            some = torch.from_numpy(generator.choice(observed, min(2000, len(observed)), replace=False))
            part = distance_features(self.data.sample.rows(some))
            scale = float(mean_distance_within(part, torch.ones(len(part), dtype=torch.float64)))
            spread = torch.stack(draws).std() * ((1 - AVERAGE_KEPT) / (1 + AVERAGE_KEPT)) ** 0.5
            scales.append(scale)
            floors.append(spread / scale)
        return scales, floors

    def _per_region(self) -> int:
        return max(64, self.config.batch_size // self.regions)

    def run(self, checkpoint: Path | None, on_step: Callable[[int, int], None]) -> JointResult:
        tagger = self.learnt.tagger
        reference = self._validation_auc()
        fingerprint = self._fingerprint(tagger)
        state = load_checkpoint(checkpoint, self.learnt, self.optimiser, fingerprint) if checkpoint else None
        if state is None:
            state = TrainingState(best=_copy(tagger), best_epoch=0)
        else:
            self.average = [
                torch.tensor(value, dtype=torch.float64) for value in state.history[-1]["averages"]
            ]
        total = self.config.epochs * self.steps_per_epoch
        stopped = "all epochs done"
        while state.epoch < self.config.epochs:
            sums = np.zeros(3)
            for step in range(self.steps_per_epoch):
                done = state.epoch * self.steps_per_epoch + step
                sums += self._tagger_step(done)
                self._calibration_step(done)
                on_step(done + 1, total)
            auc = self._validation_auc()
            state.epoch += 1
            means = sums / self.steps_per_epoch
            state.history.append(
                {
                    "stage": "joint",
                    "epoch": state.epoch,
                    "tagger_loss": means[0],
                    "transported_loss": means[1],
                    "penalty": means[2],
                    "averages": [float(value) for value in self.average],
                    "floors": [float(value) for value in self.floor],
                    "validation_auc": auc,
                }
            )
            if auc < (1.0 - self.config.auc_loss_max) * reference:
                stopped = f"epoch {state.epoch} undone: AUC {auc:.4f} against {reference:.4f} before"
                break
            state.best, state.best_epoch = _copy(tagger), state.epoch
            if checkpoint:
                save_checkpoint(checkpoint, state, self.learnt, self.optimiser, fingerprint)
        tagger.load_state_dict(state.best)
        tagger.eval()
        return JointResult(state.history, state.best_epoch, stopped)

    def _fingerprint(self, tagger: FlavourTagger) -> str:
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        digest.update(self.training.model_dump_json().encode())
        digest.update(repr((self.seed, self.frame)).encode())
        tensors = [
            *tagger.state_dict().values(),
            *self.learnt.composition.state_dict().values(),
            *self.learnt.maps.state_dict().values(),
            self.prior.fractions,
            self.prior.uncertainty,
        ]
        for sample in (self.simulation.sample, self.data.sample):
            tensors += [getattr(sample, field.name) for field in fields(sample)]
        for value in tensors:
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _validation_auc(self) -> float:
        log_p, _ = log_probabilities(self.learnt.tagger, self.validation)
        flavour = self.validation.flavour.numpy()
        d_b, weight = discriminant_b(log_p), self.validation.weight.numpy().astype(np.float64)
        b, light = flavour == B, flavour == LIGHT
        return area_under_curve(d_b[b], d_b[light], weight[b], weight[light])

    def _draw(self, done: int, purpose: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Rows of this step's jets per region, a function of (seed, step, purpose) alone."""
        generator = np.random.default_rng([self.seed, 2, done, purpose])
        size = self._per_region()
        return [
            (
                generator.choice(sim, min(size, len(sim)), replace=False),
                generator.choice(obs, min(size, len(obs)), replace=False),
            )
            for sim, obs in self.rows
        ]

    def _scored(self, source: JointSample, rows: np.ndarray[Any, Any]) -> Sample:
        output = self.learnt.tagger(source.jets.batch(rows), with_origin=False, with_vertex=False)
        return self._at(source, rows, output.logits)

    def _at(self, source: JointSample, rows: np.ndarray[Any, Any], logits: Tensor) -> Sample:
        part = source.sample.rows(torch.from_numpy(rows))
        coordinates = self.frame.enter(F.log_softmax(logits.double(), dim=1))
        return Sample(coordinates, part.conditions, part.flavour, part.region, part.event, part.weight)

    def _distances(self, pairs: list[tuple[Sample, Sample]], fractions: Tensor) -> list[Tensor]:
        return [
            region_distance(
                sim, obs, self.learnt.maps, fractions[region] / self.simulated[region].clamp_min(1e-9)
            )
            / self.scale[region]
            for region, (sim, obs) in enumerate(pairs)
        ]

    def _tagger_step(self, done: int) -> Float[np.ndarray, " 3"]:
        tagger = self.learnt.tagger
        tagger.train()
        loss_tagger = torch.zeros(())
        transported = torch.zeros((), dtype=torch.float64)
        pairs = []
        for sim_rows, data_rows in self._draw(done, 0):
            batch = self.simulation.jets.batch(sim_rows)
            loss, output = supervised_loss(tagger, batch, self.training)
            simulated = self._at(self.simulation, sim_rows, output.logits)
            observed = self._scored(self.data, data_rows)
            pairs.append((simulated, observed))
            loss_tagger = loss_tagger + loss.total
            moved = self.learnt.maps(simulated.coordinates, simulated.flavour, simulated.conditions)
            log_p = self.frame.leave(moved).gather(1, simulated.flavour[:, None])[:, 0]
            transported = transported - (simulated.weight * log_p).sum() / simulated.weight.sum()
        with torch.no_grad():
            fractions = self.learnt.composition()
        penalty = torch.zeros((), dtype=torch.float64)
        for region, distance in enumerate(self._distances(pairs, fractions)):
            self.average[region] = (
                AVERAGE_KEPT * self.average[region] + (1 - AVERAGE_KEPT) * distance.detach()
            )
            if self.average[region] > self.floor[region]:
                penalty = penalty + distance
        objective = (
            loss_tagger / self.regions + transported / self.regions + self.config.penalty_weight * penalty
        )
        self._step(objective, list(tagger.parameters()), done)
        return np.array(
            [
                float(loss_tagger.detach()) / self.regions,
                float(transported.detach()) / self.regions,
                float(penalty.detach()),
            ]
        )

    def _calibration_step(self, done: int) -> None:
        with torch.no_grad():
            pairs = [
                (self._scored(self.simulation, sim), self._scored(self.data, obs))
                for sim, obs in self._draw(done, 1)
            ]
        fractions = self.learnt.composition()
        loss = prior_cost(fractions, self.prior) + self.learnt.maps.stiffness()
        for region, distance in enumerate(self._distances(pairs, fractions)):
            sim, obs = (len(rows) for rows in self.rows[region])
            loss = loss + 0.5 / LEADING_SHARE * sim * obs / (sim + obs) * distance
        self._step(loss, self.learnt.calibration(), done)

    def _step(self, loss: Tensor, parameters: list[nn.Parameter], done: int) -> None:
        if not torch.isfinite(loss):
            raise FitError(
                "the joint objective is NaN or infinite",
                where=f"step {done}",
                fix="lower calibration.joint.learning_rate or calibration.joint.penalty_weight",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        others = {id(p) for p in parameters}
        for parameter in self.learnt.parameters():
            if id(parameter) not in others:
                parameter.grad = None
        nn.utils.clip_grad_norm_(parameters, self.training.gradient_clip)
        self.optimiser.step()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
