r"""Flavour fractions that vary with pT beyond what simulation says: a linear spline in ln pT.

In one region, flavour f has in data the density ρ_f(x) times that of simulation at x = ln(pT/45 GeV)/0.5,

    ρ_f(x) = Σ_k ρ_fk B_k(x),   B_k hat functions on K knots,   Σ_k B_k(x) = 1.

With s_fk the part of the region's simulation that is of flavour f and under hat k, and s_f = Σ_k s_fk, the
fractions are π_f = Σ_k ρ_fk s_fk. The energy distance is quadratic in the ρ_fk s_fk as it is in constant
fractions (:mod:`selfcal.transport.exact_fractions`), with one component for every (f, k). Their prior is that
of the fractions and a random walk of the ratio to the prior's ratio, r_fk = ρ_fk s_f / π0_f,

    ½ Σ_f ((π_f − π0_f)/σ_f)² + ½ Σ_f Σ_k ((r_f,k+1 − r_fk)/τ)²,

which for τ → 0 leaves the constant fractions. A distance in the bulk counts a slope in pT for much less than
a likelihood would: where τ is small, the prior decides, and hides a slope rather than makes one up.

What is fitted are the steps of the walk in units of τ: the problem is then as well-conditioned for a small τ
as for a large one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.errors import FitError
from selfcal.penalty.energy import pair_distances
from selfcal.transport.exact_fractions import (
    JETS_MAX,
    PAIRED_AT_ONCE,
    MixtureDistance,
    mean_distance,
    some_jets,
)
from selfcal.transport.sample import Sample

OUTERMOST = 0.05
"""The first and the last knot are at this quantile of the data's pT and at one minus it."""

_TINY = 1e-6
Floats = NDArray[np.float64]


def hat_functions(x: Float[Tensor, " jets"], knots: Float[Tensor, " knots"]) -> Float[Tensor, "jets knots"]:
    """B_k(x): 1 at knot k, linear to its neighbours, constant beyond the outermost; the B_k add up to 1.

    ``knots`` are ascending.
    """
    place = x.clamp(float(knots[0]), float(knots[-1]))
    right = torch.searchsorted(knots, place, right=True).clamp(1, len(knots) - 1)
    share = (place - knots[right - 1]) / (knots[right] - knots[right - 1])
    hats = x.new_zeros(len(x), len(knots))
    hats.scatter_(1, right[:, None], share[:, None])
    return hats.scatter_add(1, right[:, None] - 1, 1.0 - share[:, None])


def knots_of(x: Float[Tensor, " jets"], count: int) -> Float[Tensor, " knots"]:
    """``count`` knots at equally spaced quantiles of ``x``."""
    return torch.quantile(x, torch.linspace(OUTERMOST, 1.0 - OUTERMOST, count, dtype=x.dtype))


@dataclass(frozen=True)
class PtShape:
    """ρ_rf(x) / ρ_rf, the pT dependence of every region's fractions: mean one over its simulated jets of f.

    Attributes
    ----------
    knots : (R, K) in the first condition feature
    values : (R, F, K) the ratio at the knots
    """

    knots: Float[Tensor, "regions knots"]
    values: Float[Tensor, "regions flavours knots"]

    def ratio(self, sample: Sample) -> Float[Tensor, "jets flavours"]:
        """The ratio at every jet for each flavour that it may be of."""
        result = torch.ones(len(sample), len(FLAVOURS), dtype=torch.float64)
        for region, knots in enumerate(self.knots):
            rows = sample.region == region
            result[rows] = hat_functions(sample.conditions[rows, 0], knots) @ self.values[region].T
        return result

    def weighted(self, simulation: Sample) -> Sample:
        """Simulated jets with their weights times the ratio of their own flavour."""
        own = self.ratio(simulation).gather(1, simulation.flavour[:, None])[:, 0]
        return simulation.weighted(own)


def spline_distance(
    features: Float[Tensor, "n features"],
    flavour: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    hats: Float[Tensor, "n knots"],
    data: Float[Tensor, "m features"],
    data_weight: Float[Tensor, " m"],
    generator: torch.Generator,
) -> MixtureDistance:
    """The form D(π) whose components are (f, k), the knot varying fastest.

    It is made from as many jets as that of constant fractions. A component without jets is not ``present``.
    """
    count = hats.shape[1]
    y, y_weight = some_jets((data, data_weight), 2 * JETS_MAX, generator)
    y_share = y_weight / y_weight.sum()
    parts: list[tuple[Tensor, Tensor]] = []
    present = np.zeros(len(FLAVOURS) * count, dtype=bool)
    for index in range(len(FLAVOURS)):
        own = flavour == index
        x, shares = some_jets((features[own], weight[own, None] * hats[own]), JETS_MAX, generator)
        total = shares.sum(0)
        there = total > 0
        present[index * count : (index + 1) * count] = there.numpy()
        parts.append((x, torch.where(there, shares / torch.where(there, total, 1.0), 0.0)))
    size = len(FLAVOURS) * count
    to_data, between = np.zeros(size), np.zeros((size, size))
    for f, (x, shares) in enumerate(parts):
        here = slice(f * count, (f + 1) * count)
        to_data[here] = _sums(x, shares, y, y_share[:, None])[:, 0]
        for g, (other, other_shares) in enumerate(parts[: f + 1]):
            there_g = slice(g * count, (g + 1) * count)
            between[here, there_g] = _sums(x, shares, other, other_shares)
            between[there_g, here] = between[here, there_g].T
    return MixtureDistance(to_data, between, mean_distance(y, y_weight, y, y_weight), present)


def _sums(x: Tensor, x_share: Tensor, y: Tensor, y_share: Tensor) -> Floats:
    """Σ_ij a_ik |x_i − y_j| b_jl, (K, L)."""
    total = torch.zeros(x_share.shape[1], y_share.shape[1], dtype=torch.float64)
    for first in range(0, len(x), PAIRED_AT_ONCE):
        rows = slice(first, first + PAIRED_AT_ONCE)
        total += x_share[rows].T @ (pair_distances(x[rows], y) @ y_share)
    return np.asarray(total.numpy(), np.float64)


def exact_spline(
    distance: MixtureDistance,
    scale: float,
    prior: Floats,
    uncertainty: Floats,
    simulated: Float[Tensor, "flavours knots"],
    variation: float,
) -> tuple[Floats, Floats]:
    """argmin of  scale · D(π) + prior (see above) with τ = ``variation``: π (F,) and ρ_fk s_f / π_f (F, K).

    ``simulated`` is s_fk. A flavour that the simulation does not have stays at its prior.

    Raises
    ------
    FitError
        If the minimiser does not converge.
    """
    parts = np.maximum(simulated.numpy(), 0.0)
    flavours, count = parts.shape
    there = parts.sum(1) > 0
    free = np.flatnonzero(there)
    within = parts[free] / parts[free].sum(1, keepdims=True)
    # Ratios from (first ratio, steps): r_fk = r_f0 + τ Σ_{j<=k} d_fj.
    walk = np.hstack([np.ones((count, 1)), variation * np.tri(count, count, -1)[:, :-1]])
    ratios = np.kron(np.eye(len(free)), walk)
    # Fractions of the components, and of the flavours, from the same.
    components = np.zeros((flavours * count, len(ratios)))
    for i, f in enumerate(free):
        rows = slice(f * count, (f + 1) * count)
        components[rows] = (prior[f] * within[i])[:, None] * ratios[i * count : (i + 1) * count]
    summed = np.kron(np.eye(flavours), np.ones((1, count))) @ components
    steps = np.tile(np.arange(count) > 0, len(free)).astype(np.float64)
    fixed = np.where(there, 0.0, prior)

    def cost(values: Floats) -> float:
        pull = (fixed + summed @ values - prior) / uncertainty
        of_prior = 0.5 * float(pull @ pull) + 0.5 * float(steps @ values**2)
        return scale * distance.value(components @ values) + of_prior

    def slope(values: Floats) -> Floats:
        pull = (fixed + summed @ values - prior) / uncertainty**2
        of_distance = scale * components.T @ distance.gradient(components @ values)
        gradient: Floats = of_distance + summed.T @ pull + steps * values
        return gradient

    rest = 1.0 - fixed.sum()
    result = optimize.minimize(
        cost,
        (1.0 - steps) * rest / prior[free].sum(),
        jac=slope,
        method="SLSQP",
        constraints=[
            optimize.LinearConstraint(summed.sum(0), rest, rest),
            optimize.LinearConstraint(ratios, _TINY, np.inf),
        ],
        options={"ftol": 1e-10, "maxiter": 500},
    )
    if not result.success:
        raise FitError(
            f"the pT dependence of a region's fractions did not converge: {result.message}",
            where="calibration.composition",
            fix="choose fewer 'pt_knots' or a smaller 'pt_variation'",
        )
    fractions = fixed + summed @ result.x
    shape = np.ones((flavours, count))
    found = (ratios @ result.x).reshape(len(free), count)
    shape[free] = found / (found * within).sum(1, keepdims=True)
    return fractions / fractions.sum(), shape
