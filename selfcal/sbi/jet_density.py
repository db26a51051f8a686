r"""A conditional flow p(s | θ, region, flavour, pT, \|η\|) of the summaries of one jet, and its training.

An autoregressive neural spline flow (arXiv 1906.04032, zuko): p(s) = Π_j p(s_j | s_1 ... s_j-1, context),
each factor a monotonic rational-quadratic spline of a standard normal. The activations are smooth, so that
the log-density has second derivatives in θ. Everything is standardised: s and (ln pT, \|η\|) with what the
training jets give, θ in prior widths around the nominal values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import zuko
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from selfcal.errors import FitError
from selfcal.run.atomic import read_arrays, write_arrays

if TYPE_CHECKING:
    from selfcal.config.inference import NeuralConfig

Floats = NDArray[np.float64]
VALIDATION_CHECKS = 12
"""So often during training the density is judged on the jets that the bootstrap left out."""
VALIDATION_ROWS = 20_000


@dataclass(frozen=True)
class JetRows:
    """N jets as the density sees them.

    Attributes
    ----------
    summaries : (N, S)
    kinematics : (N, 2) ln(pT / GeV) and |η|
    region : (N,) index
    flavour : (N,) index into ``FLAVOURS``; -1 where unknown
    weight : (N,)
    theta : (N, D) the detector of each jet in prior widths; no columns where it is unknown
    event : (N,) what is drawn together by a bootstrap
    """

    summaries: Floats
    kinematics: Floats
    region: NDArray[np.int64]
    flavour: NDArray[np.int64]
    weight: Floats
    theta: Floats
    event: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.region)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> JetRows:
        """The chosen jets."""
        return JetRows(**{item.name: getattr(self, item.name)[chosen] for item in fields(self)})


def joined(parts: list[JetRows]) -> JetRows:
    """Several sets of jets as one."""
    return JetRows(
        **{
            item.name: np.concatenate([getattr(part, item.name) for part in parts])
            for item in fields(JetRows)
        }
    )


class JetDensity(torch.nn.Module):
    """The flow with its standardisation; S summaries, D parameters, R regions, F flavours."""

    summary_mean: Tensor
    summary_width: Tensor
    kinematics_mean: Tensor
    kinematics_width: Tensor

    def __init__(
        self, summaries: int, parameters: int, regions: int, flavours: int, *, width: int, bins: int
    ) -> None:
        super().__init__()
        self.regions, self.flavours = regions, flavours
        # Units of an autoregressive network that see no summary are few: the context comes to them digested.
        self.context = torch.nn.Sequential(
            torch.nn.Linear(parameters + regions + flavours + 2, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
        )
        self.flow = zuko.flows.NSF(
            summaries,
            width,
            bins=bins,
            transforms=1,
            hidden_features=(width, width),
            activation=torch.nn.SiLU,
        )
        self.register_buffer("summary_mean", torch.zeros(summaries))
        self.register_buffer("summary_width", torch.ones(summaries))
        self.register_buffer("kinematics_mean", torch.zeros(2))
        self.register_buffer("kinematics_width", torch.ones(2))

    def standardise_by(self, rows: JetRows) -> None:
        """Take means and widths from ``rows``."""
        for name, values in (("summary", rows.summaries), ("kinematics", rows.kinematics)):
            width = values.std(axis=0)
            getattr(self, f"{name}_mean").copy_(torch.from_numpy(values.mean(axis=0)))
            getattr(self, f"{name}_width").copy_(torch.from_numpy(np.where(width > 0, width, 1.0)))

    def log_prob(
        self,
        summaries: Float[Tensor, "n s"],
        kinematics: Float[Tensor, "n 2"],
        region: Int[Tensor, " n"],
        flavour: Int[Tensor, " n"],
        theta: Float[Tensor, "n d"],
    ) -> Float[Tensor, " n"]:
        """ln p per unit of the standardised summaries (a constant factor from that of the summaries)."""
        dtype = self.summary_mean.dtype
        one_hot = torch.nn.functional.one_hot
        context = torch.cat(
            [
                theta,
                one_hot(region, self.regions).to(dtype),
                one_hot(flavour, self.flavours).to(dtype),
                (kinematics - self.kinematics_mean) / self.kinematics_width,
            ],
            dim=1,
        )
        scaled = (summaries - self.summary_mean) / self.summary_width
        found: Tensor = self.flow(self.context(context)).log_prob(scaled)
        return found

    def save(self, path: Path) -> None:
        """Write all weights as one safetensors file."""
        write_arrays(path, {name: value.cpu().numpy() for name, value in self.state_dict().items()})

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            If the file is missing or damaged.
        """
        self.load_state_dict({name: torch.from_numpy(value) for name, value in read_arrays(path).items()})


def empty_density(rows: JetRows, regions: int, flavours: int, config: NeuralConfig) -> JetDensity:
    """An untrained density for jets like ``rows``."""
    sizes = (rows.summaries.shape[1], rows.theta.shape[1], regions, flavours)
    return JetDensity(*sizes, width=config.hidden_width, bins=config.spline_bins)


def train_density(
    rows: JetRows,
    regions: int,
    flavours: int,
    config: NeuralConfig,
    seed: int,
    *,
    bootstrap: bool = True,
    on_step: Callable[[int], None] = lambda _: None,
) -> JetDensity:
    """Maximise the mean log-density over ``rows`` (Adam, cosine schedule, ``config.steps`` batches).

    With ``bootstrap`` events count Poisson(1) times, and the weights of the check are kept that describe the
    events left out best; without, all events count once and the last weights are kept. In double precision.

    Raises
    ------
    FitError
        If the log-density is not finite.
    """
    generator = np.random.default_rng([seed, 77])
    torch.manual_seed(seed)
    density = empty_density(rows, regions, flavours, config)
    density.standardise_by(rows)
    multiple = _event_multiples(rows, generator, bootstrap=bootstrap)
    training = np.flatnonzero(multiple > 0)
    left_out = generator.permutation(np.flatnonzero(multiple == 0))[:VALIDATION_ROWS]
    columns = _Columns.of(rows, multiple)
    optimiser = torch.optim.Adam(density.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    best, best_state = np.inf, None
    every = max(config.steps // VALIDATION_CHECKS, 1)
    order, place = generator.permutation(training), 0
    for step in range(1, config.steps + 1):
        if place + config.batch_size > len(order) and place > 0:
            order, place = generator.permutation(training), 0
        batch = torch.from_numpy(order[place : place + config.batch_size])
        place += config.batch_size
        loss = columns.loss(density, batch)
        if not bool(torch.isfinite(loss)):
            raise FitError("the density of the jets is not finite", where="infer", fix="lower learning_rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(density.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        on_step(step)
        if len(left_out) and (step % every == 0 or step == config.steps):
            held = float(columns.judged(density, left_out))
            if held < best:
                best, best_state = held, {k: v.clone() for k, v in density.state_dict().items()}
    if best_state is not None:
        density.load_state_dict(best_state)
    return density.double().requires_grad_(False)


def _event_multiples(rows: JetRows, generator: np.random.Generator, *, bootstrap: bool) -> Floats:
    if not bootstrap:
        return np.ones(len(rows))
    events, of = np.unique(rows.event, return_inverse=True)
    return np.asarray(generator.poisson(1.0, len(events))[of], np.float64)


@dataclass(frozen=True)
class _Columns:
    """The rows as tensors in single precision."""

    inputs: tuple[Tensor, ...]
    weight: Tensor

    @classmethod
    def of(cls, rows: JetRows, multiple: Floats) -> _Columns:
        real = [torch.from_numpy(part).float() for part in (rows.summaries, rows.kinematics, rows.theta)]
        indices = [torch.from_numpy(part) for part in (rows.region, rows.flavour)]
        weight = rows.weight / rows.weight.mean()
        counted = np.where(multiple > 0, multiple, 1.0) * weight
        return cls((real[0], real[1], *indices, real[2]), torch.from_numpy(counted).float())

    def loss(self, density: JetDensity, index: Tensor) -> Tensor:
        weight = self.weight[index]
        found: Tensor = -(weight * density.log_prob(*(part[index] for part in self.inputs))).mean()
        return found

    def judged(self, density: JetDensity, index: NDArray[np.int64]) -> Tensor:
        with torch.no_grad():
            return self.loss(density, torch.from_numpy(index))
