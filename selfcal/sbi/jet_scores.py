r"""Numbers of one jet that know θ and flavour, learnt: the posterior mean of both given the jet.

With x all that is seen of a jet (summaries and counts of its tracks, region, ln pT, \|η\|) and u the
detector in prior widths, the networks learn

    t(x) = ( E(u | x), p(f | x) ),    E(u | x) = A x + network(x),

by least squares and cross entropy over jets that are simulated with u drawn from N(0, S). For little
information per jet E(u | x) is S times the score of the mixture of flavours at u = 0, and p(f | x) gives the
scores of its composition: the means over a sample are locally sufficient (arXiv 1805.00020). What does not
depend on θ cancels in a score, so that a network has nothing else to learn; in a density of x it is nearly
everything, and its errors add up over the jets.

The linear part is solved for; the network begins at zero. Jets come in pairs with the same random numbers
under u and -u: whatever of a jet does not answer to the detector has no correlation with u in such a
sample, instead of one by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.errors import DataError, FitError
from selfcal.run.atomic import read_arrays, write_arrays

if TYPE_CHECKING:
    from selfcal.config.inference import NeuralConfig

Floats = NDArray[np.float64]
CLIP = 6.0
"""Inputs beyond so many standard deviations are put there."""
RIDGE = 1e-4
"""Of the linear part, relative to inputs of unit variance."""
SKIP_RATE = 0.1
"""Learning rate of the linear part, relative to that of the network."""
CHUNK = 16_384


@dataclass(frozen=True)
class JetRows:
    """N jets as the networks see them.

    Attributes
    ----------
    summaries : (N, S)
    counts : (N, B) tracks in every bin of the histograms of :mod:`selfcal.sbi.summaries`
    kinematics : (N, 2) ln(pT / GeV) and |η|
    region : (N,) index
    flavour : (N,) index into ``FLAVOURS``; -1 where unknown
    weight : (N,)
    theta : (N, D) the detector of each jet in prior widths; no columns where it is unknown
    event : (N,) what is left out together
    """

    summaries: Floats
    counts: NDArray[np.uint8]
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

    def features(self, chosen: NDArray[np.integer] | slice = slice(None)) -> Floats:
        """Summaries and counts of the chosen jets side by side, (n, S + B)."""
        return np.concatenate([self.summaries[chosen], self.counts[chosen].astype(np.float64)], axis=1)


def joined(parts: list[JetRows]) -> JetRows:
    """Several sets of jets as one."""
    return JetRows(
        **{
            item.name: np.concatenate([getattr(part, item.name) for part in parts])
            for item in fields(JetRows)
        }
    )


class JetScores(torch.nn.Module):
    """The networks of the module's formula; X features, D parameters, R regions, F flavours."""

    feature_mean: Tensor
    feature_width: Tensor
    kinematics_mean: Tensor
    kinematics_width: Tensor

    def __init__(self, features: int, parameters: int, regions: int, flavours: int, *, width: int) -> None:
        super().__init__()
        self.regions, self.flavours = regions, flavours
        inputs = features + regions + 2
        self.linear = torch.nn.Linear(inputs, parameters)
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(inputs, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()
        )
        self.moves = torch.nn.Linear(width, parameters)
        self.classes = torch.nn.Linear(width, flavours)
        torch.nn.init.zeros_(self.moves.weight)
        torch.nn.init.zeros_(self.moves.bias)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_width", torch.ones(features))
        self.register_buffer("kinematics_mean", torch.zeros(2))
        self.register_buffer("kinematics_width", torch.ones(2))

    def inputs(
        self, rows: JetRows, chosen: NDArray[np.integer] | slice = slice(None)
    ) -> Float[Tensor, "n y"]:
        """What the networks see of the chosen jets."""
        dtype = self.feature_mean.dtype
        features = torch.from_numpy(rows.features(chosen)).to(dtype)
        kinematics = torch.from_numpy(rows.kinematics[chosen]).to(dtype)
        scaled = ((features - self.feature_mean) / self.feature_width).clamp(-CLIP, CLIP)
        places = torch.nn.functional.one_hot(torch.from_numpy(rows.region[chosen]), self.regions).to(dtype)
        return torch.cat([scaled, places, (kinematics - self.kinematics_mean) / self.kinematics_width], dim=1)

    def forward(self, inputs: Float[Tensor, "n y"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n f"]]:
        """E(u | x) and ln p(f | x)."""
        hidden = self.trunk(inputs)
        return self.linear(inputs) + self.moves(hidden), torch.log_softmax(self.classes(hidden), 1)

    def statistic(self, rows: JetRows) -> Floats:
        """t, (N, D + F)."""
        found = np.empty((len(rows), self.linear.out_features + self.flavours))
        with torch.no_grad():
            for first in range(0, len(rows), CHUNK):
                part = slice(first, first + CHUNK)
                mean, classes = self(self.inputs(rows, part))
                found[part] = torch.cat([mean, classes.exp()], dim=1).double().numpy()
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


def empty_scores(rows: JetRows, regions: int, flavours: int, config: NeuralConfig) -> JetScores:
    """Untrained networks for jets like ``rows``."""
    features = rows.summaries.shape[1] + rows.counts.shape[1]
    return JetScores(features, rows.theta.shape[1], regions, flavours, width=config.hidden_width)


def train_scores(
    rows: JetRows,
    regions: int,
    flavours: int,
    config: NeuralConfig,
    seed: int,
    *,
    left_out: NDArray[np.bool_] | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> JetScores:
    """Least squares of u, cross entropy of flavours (Adam, cosine schedule, ``config.steps`` batches).

    Parameters
    ----------
    rows : pairs: row i of the first half and row i of the second one are one jet under u and -u
    left_out : (N / 2,) pairs that take no part

    Returns
    -------
    JetScores
        In double precision.

    Raises
    ------
    DataError
        If there are no pairs.
    FitError
        If the loss is not finite.
    """
    half = len(rows) // 2
    pairs = np.arange(half) if left_out is None else np.flatnonzero(~left_out)
    if len(rows) % 2 or not len(pairs):
        raise DataError("no pairs of simulated jets to learn from", where="infer", fix="check the simulation")
    generator = np.random.default_rng([seed, 77])
    torch.manual_seed(seed)
    scores = empty_scores(rows, regions, flavours, config)
    columns = _Columns(rows, scores)
    both = np.concatenate([pairs, pairs + half])
    columns.standardise(both)
    columns.solve_linear(both)
    groups: list[dict[str, object]] = [
        {"params": [p for name, p in scores.named_parameters() if not name.startswith("linear")]},
        {"params": scores.linear.parameters(), "lr": SKIP_RATE * config.learning_rate},
    ]
    optimiser = torch.optim.Adam(groups, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for step in range(1, config.steps + 1):
        chosen = pairs[generator.integers(0, len(pairs), config.batch_size // 2)]
        loss = columns.loss(np.concatenate([chosen, chosen + half]))
        if not bool(torch.isfinite(loss)):
            raise FitError("the loss of the network is not finite", where="infer", fix="lower learning_rate")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(scores.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        on_step(step)
    return scores.double().requires_grad_(False)


@dataclass(frozen=True)
class _Columns:
    """What a network learns from."""

    rows: JetRows
    scores: JetScores

    def standardise(self, chosen: NDArray[np.int64]) -> None:
        """Take means and widths from the chosen rows."""
        sums = np.sum([self.rows.features(part).sum(axis=0) for part in _parts(chosen)], axis=0)
        mean = sums / len(chosen)
        squares = [((self.rows.features(part) - mean) ** 2).sum(axis=0) for part in _parts(chosen)]
        square = np.sum(squares, axis=0) / len(chosen)
        kinematics = self.rows.kinematics[chosen]
        for name, centre, width in (
            ("feature", mean, np.sqrt(square)),
            ("kinematics", kinematics.mean(axis=0), kinematics.std(axis=0)),
        ):
            getattr(self.scores, f"{name}_mean").copy_(torch.from_numpy(centre))
            getattr(self.scores, f"{name}_width").copy_(torch.from_numpy(np.where(width > 0, width, 1.0)))

    def weight(self, chosen: NDArray[np.int64]) -> Floats:
        return np.asarray(self.rows.weight[chosen] / self.rows.weight.mean(), np.float64)

    def solve_linear(self, chosen: NDArray[np.int64]) -> None:
        """The least squares of u in all inputs."""
        size = self.scores.linear.in_features + 1
        square, product = np.zeros((size, size)), np.zeros((size, self.scores.linear.out_features))
        for part in _parts(chosen):
            inputs = self.scores.inputs(self.rows, part).double().numpy()
            matrix = np.concatenate([inputs, np.ones((len(part), 1))], axis=1)
            weighted = matrix * self.weight(part)[:, None]
            square += weighted.T @ matrix
            product += weighted.T @ self.rows.theta[part]
        square += RIDGE * len(chosen) * np.diag([1.0] * (size - 1) + [0.0])
        solved = np.linalg.solve(square, product)
        with torch.no_grad():
            self.scores.linear.weight.copy_(torch.from_numpy(solved[:-1].T))
            self.scores.linear.bias.copy_(torch.from_numpy(solved[-1]))

    def loss(self, chosen: NDArray[np.int64]) -> Tensor:
        weight = torch.from_numpy(self.weight(chosen)).float()
        mean, classes = self.scores(self.scores.inputs(self.rows, chosen))
        distance = (mean - torch.from_numpy(self.rows.theta[chosen]).float()) ** 2
        flavour = torch.from_numpy(self.rows.flavour[chosen])[:, None]
        entropy = torch.gather(classes, 1, flavour)[:, 0]
        found: Tensor = (weight * (0.5 * distance.sum(1) - entropy)).mean()
        return found


def _parts(chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [chosen[first : first + CHUNK] for first in range(0, len(chosen), CHUNK)]
