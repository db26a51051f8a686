"""The joint stage: the tagger sees the data-versus-simulation penalty.

Minimised over the tagger φ, the stiff maps T and the fractions π together:

    L_tagger(φ) + CE(T # simulation; φ)      (regions and flavours weighted as in the training before)
      + μ Σ_r [D_r - ε_r]₊ / E_r            (reaches φ)
      + Σ_r n_r D_r / (2 s E_r) + prior(π) + stiffness(T)      (reaches T and π)

Steps alternate between φ and (T, π). D_r is the penalty of region r in a frame of coordinates
fixed before the stage starts, E_r its unit, ε_r its noise floor (:mod:`region_penalties`), s the leading
share of its null distribution. With ``before_map`` the D_r that reaches φ has the identity in the place of
T: where the map removes all of the difference, nothing else would reach φ. The hinge acts on a moving
average (:mod:`constraints`). (T, π) follow the energy distance where the penalty is none that could
determine them. A penalty that is seen through networks of its own trains them by one step for each step
of φ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.training import JointConfig, TrainingConfig
from selfcal.data.flavours import LIGHT, B
from selfcal.errors import FitError
from selfcal.penalty.contract import LearntPenalty
from selfcal.tagger.batching import TensorJets
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.network import FlavourTagger
from selfcal.tagger.scoring import score_tensors
from selfcal.tagger.working_points import area_under_curve
from selfcal.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from selfcal.training.constraints import Constraints
from selfcal.training.objectives import supervised_loss
from selfcal.training.region_penalties import PenaltyInputs, RegionPenalty, prepare_penalties
from selfcal.training.reweighting import reweighted
from selfcal.training.schedule import learning_rate
from selfcal.training.separation import Separation, lost_information, measure_separation
from selfcal.transport.composition import (
    Composition,
    CompositionFit,
    CompositionPrior,
    penalty_samples,
    prior_cost,
    region_distance,
)
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps, IdentityMap
from selfcal.transport.sample import Sample, simulated_fractions

GRADIENT_EVERY = 10
"""Steps after which the gradient of the penalty is compared with the rest again."""

Rows = list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class JointSample:
    """Inputs of N jets with what the penalty needs to know of each; rows correspond."""

    jets: TensorJets
    sample: Sample


@dataclass(frozen=True)
class JointInputs:
    """Everything the joint stage starts from.

    Attributes
    ----------
    tagger : changed in place
    simulation, data : of the train fold
    validation : simulated jets kept aside, with their ``validation_region`` (V,)
    frame : the fixed coordinates in which distances are measured
    prior, start : of the fractions; fractions and stiff maps fitted with the tagger as it is
    varied : gives, for an epoch, the jets of ``simulation`` in another detector, row by row; None: no such
        variation
    """

    tagger: FlavourTagger
    simulation: JointSample
    data: JointSample
    validation: TensorJets
    validation_region: np.ndarray[Any, Any]
    frame: ScoreFrame
    prior: CompositionPrior
    start: CompositionFit
    config: JointConfig
    training: TrainingConfig
    seed: int
    varied: Callable[[int], TensorJets] | None = None


@dataclass(frozen=True)
class JointResult:
    """What the joint stage did: the epochs kept, and why it stopped."""

    history: list[dict[str, Any]]
    epochs_kept: int
    stopped: str


class _Learnt(nn.Module):
    """Everything that the joint stage changes, as one module with one optimiser."""

    def __init__(self, tagger: FlavourTagger, start: CompositionFit, critics: list[LearntPenalty]) -> None:
        super().__init__()
        self.tagger = tagger
        self.composition = Composition(start.fractions)
        self.maps = start.maps.requires_grad_()
        self.critics = nn.ModuleList(critics)

    def calibration(self) -> list[nn.Parameter]:
        return [*self.composition.parameters(), *self.maps.parameters()]


def train_jointly(
    inputs: JointInputs,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> JointResult:
    """Change the tagger in place; an epoch after which it says too little is undone.

    AUC(b against light) on the validation jets may fall by the part ``auc_loss_max`` of what it was
    before, and the separation of any two flavours within regions by what :mod:`separation` allows. Killed
    and called again, it continues from the last epoch.

    Raises
    ------
    FitError
        If the objective becomes NaN or infinite.
    ConfigError, DataError
        If the penalty cannot be used with these regions or weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs.seed)
        return _JointStage(inputs).run(checkpoint, on_step or (lambda _done, _total: None))


class _JointStage:
    def __init__(self, inputs: JointInputs) -> None:
        self.inputs, self.config, self.seed = inputs, inputs.config, inputs.seed
        self.simulation, self.data = inputs.simulation, inputs.data
        self.regions = len(inputs.prior.fractions)
        self.simulated = simulated_fractions(self.simulation.sample, self.regions)
        # Regions have minibatches of one size, and the share of the training that they had before: else the
        # tagger would learn other flavour fractions, and trade charm rejection against light rejection.
        self.learning = reweighted(self.simulation.jets, inputs.training)
        region, weight = self.simulation.sample.region, self.learning.weight.double()
        self.shares = (
            torch.zeros(self.regions, dtype=torch.float64).index_add(0, region, weight) / weight.sum()
        )
        self.per_region = max(64, self.config.batch_size // self.regions)
        self.rows: Rows = [
            (
                (self.simulation.sample.region == region).nonzero().squeeze(1).numpy(),
                (self.data.sample.region == region).nonzero().squeeze(1).numpy(),
            )
            for region in range(self.regions)
        ]
        self.seen = inputs.start
        if self.config.before_map:
            self.seen = replace(inputs.start, maps=FlavourMaps(IdentityMap))
        self.penalties = self._prepared(self.config.penalty, self.seen)
        penalty = self.penalties[0].penalty
        # Networks that have learnt the simulation before the map know nothing of how to fit the map.
        unfit = self.config.before_map and isinstance(penalty, LearntPenalty)
        drives = penalty.drives_calibration and not unfit
        self.calibrating = self.penalties if drives else self._prepared("energy", inputs.start)
        self.gradient_ratios: list[float] = []
        self.constraints = Constraints([one.floor for one in self.penalties], self.config)
        critics = [one.penalty for one in self.penalties if isinstance(one.penalty, LearntPenalty)]
        self.learnt = _Learnt(inputs.tagger, inputs.start, critics)
        groups = [
            {"params": list(inputs.tagger.parameters()), "lr": self.config.learning_rate},
            {"params": self.learnt.calibration(), "lr": self.config.map_learning_rate},
        ]
        if critics:
            critic_parameters = list(self.learnt.critics.parameters())
            groups.append({"params": critic_parameters, "lr": self.config.critic_learning_rate})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.steps_per_epoch = max(1, len(self.simulation.jets) // self.config.batch_size)

    def _prepared(self, name: str, start: CompositionFit) -> list[RegionPenalty]:
        inputs = PenaltyInputs(
            simulation=self.simulation.sample,
            data=self.data.sample,
            rows=self.rows,
            simulated=self.simulated,
            frame=self.inputs.frame,
            prior=self.inputs.prior,
            start=start,
            per_region=self.per_region,
        )
        return prepare_penalties(name, inputs, self.config, np.random.default_rng([self.seed, 1]))

    def run(self, checkpoint: Path | None, on_step: Callable[[int, int], None]) -> JointResult:
        tagger = self.learnt.tagger
        reference, separated = self._validated()
        fingerprint = self._fingerprint(tagger)
        state = load_checkpoint(checkpoint, self.learnt, self.optimiser, fingerprint) if checkpoint else None
        if state is None:
            state = TrainingState(best=_copy(tagger), best_epoch=0)
        else:
            self.constraints.continue_from(state.history[-1])
        total = self.config.epochs * self.steps_per_epoch
        stopped = "all epochs done"
        while state.epoch < self.config.epochs:
            varied = self._varied(state.epoch)
            sums = np.zeros(3)
            self.gradient_ratios.clear()
            for step in range(self.steps_per_epoch):
                done = state.epoch * self.steps_per_epoch + step
                sums += self._tagger_step(done, varied)
                self._calibration_step(done)
                on_step(done + 1, total)
            auc, separation = self._validated()
            state.epoch += 1
            means = sums / self.steps_per_epoch
            state.history.append(
                {
                    "stage": "joint",
                    "epoch": state.epoch,
                    "tagger_loss": means[0],
                    "transported_loss": means[1],
                    "penalty": means[2],
                    "penalty_gradient": float(np.mean(self.gradient_ratios)),
                    **self.constraints.as_row(),
                    "validation_auc": auc,
                    **separation.as_row(),
                }
            )
            lost = lost_information(separated, separation)
            if auc < (1.0 - self.config.auc_loss_max) * reference:
                lost.insert(0, f"AUC {auc:.4f} against {reference:.4f} before")
            if lost:
                stopped = f"epoch {state.epoch} undone: {'; '.join(lost)}"
                break
            state.best, state.best_epoch = _copy(tagger), state.epoch
            if checkpoint:
                save_checkpoint(checkpoint, state, self.learnt, self.optimiser, fingerprint)
        tagger.load_state_dict(state.best)
        tagger.eval()
        return JointResult(state.history, state.best_epoch, stopped)

    def _varied(self, epoch: int) -> TensorJets | None:
        """The simulation in this epoch's detectors, if it varies: the same jets with the same weights."""
        if self.inputs.varied is None:
            return None
        return replace(self.inputs.varied(epoch), weight=self.learning.weight)

    def _fingerprint(self, tagger: FlavourTagger) -> str:
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        digest.update(self.inputs.training.model_dump_json().encode())
        digest.update(repr((self.seed, self.inputs.frame)).encode())
        tensors = [
            *tagger.state_dict().values(),
            *self.learnt.composition.state_dict().values(),
            *self.learnt.maps.state_dict().values(),
            self.inputs.prior.fractions,
            self.inputs.prior.uncertainty,
        ]
        for sample in (self.simulation.sample, self.data.sample):
            columns = (getattr(sample, field.name) for field in fields(sample))
            tensors += [column for column in columns if column is not None]
        for value in tensors:
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _validated(self) -> tuple[float, Separation]:
        """AUC of D_b for b against light, and the separation of all flavours."""
        validation = self.inputs.validation
        log_p = score_tensors(self.learnt.tagger, validation).log_probability
        flavour = validation.flavour.numpy()
        d_b, weight = discriminant_b(log_p), validation.weight.numpy().astype(np.float64)
        b, light = flavour == B, flavour == LIGHT
        auc = area_under_curve(d_b[b], d_b[light], weight[b], weight[light])
        return auc, measure_separation(log_p, flavour, self.inputs.validation_region, weight)

    def _draw(self, done: int, purpose: int) -> Rows:
        """Rows of this step's jets per region, a function of (seed, step, purpose) alone."""
        generator = np.random.default_rng([self.seed, 2, done, purpose])
        size = self.per_region
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
        coordinates = self.inputs.frame.enter(F.log_softmax(logits.double(), dim=1))
        return Sample(coordinates, part.conditions, part.flavour, part.region, part.event, part.weight)

    def _ratio(self, region: int, fractions: Tensor) -> Tensor:
        return fractions[region] / self.simulated[region].clamp_min(1e-9)

    def _distance(
        self, chosen: RegionPenalty, maps: FlavourMaps, pair: tuple[Sample, Sample], ratio: Tensor
    ) -> Tensor:
        """D_r / E_r."""
        return region_distance(*pair, maps, ratio, chosen.penalty) / chosen.unit

    def _tagger_step(self, done: int, varied: TensorJets | None) -> Float[np.ndarray, " 3"]:
        tagger = self.learnt.tagger
        tagger.train()
        self.optimiser.param_groups[0]["lr"] = learning_rate(
            done,
            self.config.epochs * self.steps_per_epoch,
            self.config.learning_rate,
            self.inputs.training.warmup_fraction,
        )
        own = torch.zeros((), dtype=torch.float64)
        transported = torch.zeros((), dtype=torch.float64)
        pairs = []
        for share, (sim_rows, data_rows) in zip(self.shares, self._draw(done, 0), strict=True):
            batch = (self.learning if varied is None else varied).batch(sim_rows)
            loss, output = supervised_loss(tagger, batch, self.inputs.training)
            own = own + share * loss.total
            simulated = self._at(self.simulation, sim_rows, output.logits)
            if varied is not None:
                moved, simulated = simulated.coordinates, self._scored(self.simulation, sim_rows)
                apart = (moved - simulated.coordinates).square().mean()
                own = own + share * self.config.consistency_weight * apart
            pairs.append((simulated, self._scored(self.data, data_rows)))
            moved = self.learnt.maps(simulated.coordinates, simulated.flavour, simulated.conditions)
            log_p = self.inputs.frame.leave(moved).gather(1, simulated.flavour[:, None])[:, 0]
            jet_weight = batch.weight.double()
            transported = transported - share * (jet_weight * log_p).sum() / jet_weight.sum()
        with torch.no_grad():
            fractions = self.learnt.composition()
        self._critic_step(pairs, fractions, done)
        penalty = torch.zeros((), dtype=torch.float64)
        for region, pair in enumerate(pairs):
            if self.penalties[region].active:
                ratio = self._ratio(region, fractions)
                distance = self._distance(self.penalties[region], self.seen.maps, pair, ratio)
                if weight := self.constraints.observe(region, distance):
                    penalty = penalty + weight * distance
        supervised = own + transported
        weighted = self.config.penalty_weight * penalty
        if done % self.steps_per_epoch % GRADIENT_EVERY == 0:
            self.gradient_ratios.append(self._gradient_ratio(weighted, supervised))
        objective = supervised + weighted
        self._step(objective, list(tagger.parameters()), done)
        return np.array([float(part.detach()) for part in (own, transported, penalty)])

    def _gradient_ratio(self, penalty: Tensor, supervised: Tensor) -> float:
        """|∂(μ Σ_r D_r) / ∂φ| / |∂(all the rest) / ∂φ|: how much the penalty has to say."""
        if not penalty.requires_grad:
            return 0.0
        squares = []
        for loss in (penalty, supervised):
            parameters = list(self.learnt.tagger.parameters())
            found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            squares.append(sum(float(one.square().sum()) for one in found))
        return float((squares[0] / squares[1]) ** 0.5) if squares[1] else 0.0

    def _critic_step(self, pairs: list[tuple[Sample, Sample]], fractions: Tensor, done: int) -> None:
        """One step of the penalties' own networks, if they have any, on the jets of the tagger's step."""
        if not len(self.learnt.critics):
            return
        loss = torch.zeros((), dtype=torch.float64)
        for region, pair in enumerate(pairs):
            one = self.penalties[region]
            if one.active and isinstance(one.penalty, LearntPenalty):
                with torch.no_grad():
                    samples = penalty_samples(*pair, self.seen.maps, self._ratio(region, fractions))
                loss = loss + one.penalty.critic_loss(*samples)
        self._step(loss, list(self.learnt.critics.parameters()), done)

    def _calibration_step(self, done: int) -> None:
        with torch.no_grad():
            pairs = [
                (self._scored(self.simulation, sim), self._scored(self.data, obs))
                for sim, obs in self._draw(done, 1)
            ]
        fractions = self.learnt.composition()
        loss = prior_cost(fractions, self.inputs.prior) + self.learnt.maps.stiffness()
        for region, pair in enumerate(pairs):
            sim, obs = (len(rows) for rows in self.rows[region])
            ratio = self._ratio(region, fractions)
            distance = self._distance(self.calibrating[region], self.learnt.maps, pair, ratio)
            share = self.calibrating[region].leading_share
            loss = loss + 0.5 / share * sim * obs / (sim + obs) * distance
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
        nn.utils.clip_grad_norm_(parameters, self.inputs.training.gradient_clip)
        self.optimiser.step()


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
