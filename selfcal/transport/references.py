"""The simple classics, against which a learned map is judged: no parameters to train, or few.

They take two samples that belong together (one flavour in simulation and in data, known only in
pseudo-data, or a pure region); none of them takes a mixture apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ot
import torch
from numpy.typing import NDArray
from torch import nn

from selfcal.errors import DataError, FitError

Points = NDArray[np.float64]
"""Coordinates of jets, (N, D)."""

MARGINAL_TOLERANCE = 1e-4
"""Largest part of the mass that a Sinkhorn plan may leave out of place."""


def _mass(weight: NDArray[np.float64] | None, jets: int, name: str) -> NDArray[np.float64]:
    """Weights of total one.

    POT takes negative weights without a word and returns a plan with negative mass; they are refused here.
    """
    mass = np.ones(jets) if weight is None else np.asarray(weight, dtype=np.float64)
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.sum() > 0:
        raise DataError(
            f"{int((mass < 0).sum())} of {jets} jets have a negative weight, or the total is not positive",
            where=name,
            expected="weights of one sign: optimal transport moves mass",
            fix="use a reference that takes signed weights (binned scale factors), or unweighted jets",
        )
    return np.asarray(mass / mass.sum())


def _barycentres(plan: NDArray[np.float64], start: Points, end: Points) -> Points:
    mass = plan.sum(axis=1, keepdims=True)
    # A jet without mass goes nowhere.
    return np.where(mass > 0, plan @ end / np.where(mass > 0, mass, 1.0), start)


def exact_map(
    start: Points,
    end: Points,
    start_weight: NDArray[np.float64] | None = None,
    end_weight: NDArray[np.float64] | None = None,
) -> Points:
    """T(x_i) = Σ_j P_ij y_j / Σ_j P_ij with P the exact plan of least squared distance (``ot.emd``), (N, D).

    Raises
    ------
    DataError
        If a weight is negative.
    """
    a, b = _mass(start_weight, len(start), "start"), _mass(end_weight, len(end), "end")
    plan = ot.emd(a, b, ot.dist(start, end), numItermax=1_000_000)
    return _barycentres(plan, start, end)


def sinkhorn_map(
    start: Points,
    end: Points,
    regularisation: float,
    start_weight: NDArray[np.float64] | None = None,
    end_weight: NDArray[np.float64] | None = None,
) -> Points:
    """The same with the entropic plan argmin ⟨P, C⟩ + ε Σ P (ln P - 1), ε = ``regularisation``.

    ``ot.sinkhorn`` in the log domain (arXiv 1306.0895). Barycentres of a blurred plan shrink towards
    the mean as ε grows.

    Raises
    ------
    DataError
        If a weight is negative.
    FitError
        If the plan does not reach its marginals.
    """
    a, b = _mass(start_weight, len(start), "start"), _mass(end_weight, len(end), "end")
    cost = ot.dist(start, end)
    plan = ot.sinkhorn(
        a,
        b,
        cost,
        regularisation,
        method="sinkhorn_log",
        numItermax=10_000,
        stopThr=0.01 * MARGINAL_TOLERANCE,
        warn=False,
    )
    missed = float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())
    if not missed <= MARGINAL_TOLERANCE:
        raise FitError(
            f"the Sinkhorn plan leaves {missed:.2g} of the mass out of place",
            where=f"regularisation {regularisation:g}",
            fix="raise the regularisation",
        )
    return _barycentres(plan, start, end)


@dataclass(frozen=True)
class QuantileMorphing:
    """y = F_end⁻¹(F_start(x)) in one dimension: the only increasing map that turns one law into the other.

    Both are weighted empirical distributions, linear between jets; beyond the outermost jets
    the shift of those is kept.
    """

    start_values: NDArray[np.float64]
    end_values: NDArray[np.float64]

    @classmethod
    def between(
        cls,
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        start_weight: NDArray[np.float64] | None = None,
        end_weight: NDArray[np.float64] | None = None,
        levels: int = 2000,
    ) -> QuantileMorphing:
        """Quantiles of both at the same ``levels``; raises DataError for negative weights."""
        at = (np.arange(levels) + 0.5) / levels
        values = [
            _quantiles(sample, _mass(weight, len(sample), name), at)
            for sample, weight, name in ((start, start_weight, "start"), (end, end_weight, "end"))
        ]
        return cls(*values)

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The morphed values."""
        moved = np.interp(x, self.start_values, self.end_values)
        below, above = x < self.start_values[0], x > self.start_values[-1]
        moved = np.where(below, x + self.end_values[0] - self.start_values[0], moved)
        return np.where(above, x + self.end_values[-1] - self.start_values[-1], moved)


def _quantiles(
    sample: NDArray[np.float64], mass: NDArray[np.float64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(sample, kind="stable")
    cumulative = np.cumsum(mass[order]) - 0.5 * mass[order]
    return np.asarray(np.interp(levels, cumulative, sample[order]))


@dataclass(frozen=True)
class BinnedScaleFactors:
    """Factors per bin of a discriminant: share in data / share in simulation, 1 where that has none."""

    edges: NDArray[np.float64]
    factors: NDArray[np.float64]

    @classmethod
    def between(
        cls,
        simulation: NDArray[np.float64],
        data: NDArray[np.float64],
        edges: NDArray[np.float64],
        simulation_weight: NDArray[np.float64] | None = None,
        data_weight: NDArray[np.float64] | None = None,
    ) -> BinnedScaleFactors:
        """From two samples of the discriminant and inner bin ``edges`` (K - 1,); signed weights are taken."""
        shares = []
        for values, weight in ((simulation, simulation_weight), (data, data_weight)):
            counts = np.bincount(np.digitize(values, edges), weights=weight, minlength=len(edges) + 1)
            shares.append(counts / counts.sum())
        known = shares[0] > 0
        return cls(edges, np.where(known, shares[1] / np.where(known, shares[0], 1.0), 1.0))

    def weights(self, discriminant: NDArray[np.float64]) -> NDArray[np.float64]:
        """The factor of every simulated jet, (N,)."""
        return np.asarray(self.factors[np.digitize(discriminant, self.edges)])


@dataclass(frozen=True)
class ClassifierReweighting:
    """Factors w(x) = p(data | x) / p(simulation | x) of a fresh classifier (DCTR, arXiv 1907.08209).

    The classifier is logistic in (x, x²) plus a network of one hidden layer that starts at zero.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    linear: nn.Linear
    hidden: nn.Linear
    out: torch.Tensor

    @classmethod
    def between(
        cls,
        simulation: Points,
        data: Points,
        simulation_weight: NDArray[np.float64] | None = None,
        data_weight: NDArray[np.float64] | None = None,
        hidden_width: int = 16,
        steps: int = 300,
        seed: int = 0,
    ) -> ClassifierReweighting:
        """Trained with both samples of equal total weight by L-BFGS on all jets.

        ``hidden_width`` 0: without the network. The small penalty on the weights only keeps separable
        samples finite.
        """
        both = torch.from_numpy(np.concatenate([simulation, data]))
        label = torch.cat([torch.zeros(len(simulation)), torch.ones(len(data))]).double()
        given = [
            np.ones(len(points)) if weight is None else weight
            for points, weight in ((simulation, simulation_weight), (data, data_weight))
        ]
        balanced = torch.from_numpy(np.concatenate([weight / weight.sum() for weight in given]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            linear = nn.Linear(2 * both.shape[1], 1).double()
            hidden = nn.Linear(both.shape[1], max(hidden_width, 1)).double()
        out = torch.zeros(max(hidden_width, 1), dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        parameters = list(linear.parameters())
        if hidden_width:
            # Not all zero, so that the hidden layer has a gradient.
            out = nn.Parameter(torch.full((hidden_width,), 1e-2, dtype=torch.float64))
            parameters += [*hidden.parameters(), out]
        optimiser = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")
        trained = cls(both.mean(0), both.std(0), linear, hidden, out)

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            logit = trained._logit(both)
            loss = (balanced * nn.functional.softplus(logit * (1.0 - 2.0 * label))).sum()
            loss = loss + 1e-5 * torch.stack([p.square().sum() for p in parameters]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return trained

    def _logit(self, points: torch.Tensor) -> torch.Tensor:
        x = (points - self.mean) / self.scale
        linear: torch.Tensor = self.linear(torch.cat([x, x.square()], dim=1))[:, 0]
        return linear + torch.tanh(self.hidden(x)) @ self.out

    @torch.no_grad()
    def log_ratio(self, points: Points) -> NDArray[np.float64]:
        """ln p(data | x) - ln p(simulation | x) of every jet, (N,)."""
        return np.asarray(self._logit(torch.from_numpy(points)).numpy())

    def weights(
        self, simulation: Points, simulation_weight: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """The factor of every simulated jet, mean one, (N,)."""
        ratio = np.exp(self.log_ratio(simulation))
        given = np.ones(len(simulation)) if simulation_weight is None else simulation_weight
        return np.asarray(ratio * given.sum() / (ratio * given).sum())
