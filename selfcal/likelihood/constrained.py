"""Minima of −2 ln L where several quantities are held at given values, many points at once.

    t(v) = min{−2 ln L(θ) + |η|² : q(θ, η) = v} − min −2 ln L

for K differentiable quantities q of the D parameters θ and of E unit Gaussians η that no data constrain (E =
0 where q has none). Sequential quadratic programming: with the Fisher information F, gradient g, A = ∂q/∂θ
and B = ∂q/∂η, the step and its multipliers λ solve

    ⎛ F  0  Aᵀ ⎞ ⎛ δ  ⎞   ⎛   −g  ⎞
    ⎜ 0  1  Bᵀ ⎟ ⎜ ε  ⎟ = ⎜   −η  ⎟
    ⎝ A  B  0  ⎠ ⎝ λ  ⎠   ⎝ v − q ⎠

by elimination of δ and ε, and are shortened until −ln L + |η|²/2 + Σ_k c_k |q_k − v_k| falls, c_k > |λ_k|
(Nocedal & Wright, Numerical Optimization, 18.3). At the minimum ∂t/∂v = −2λ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfcal.likelihood.derivatives import Differentiator, constraint_derivatives
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import gradient, moving

Quantities = Callable[[Tensor, Tensor], Tensor]
"""(θ (D,), η (E,)) -> the K quantities, (K,)."""

ITERATIONS_MAX = 100
DISTANCE_MAX = 1e-7
"""Convergence: estimated −ln L still to be gained, and |q − v| in units of ``scale``."""
HALVINGS_MAX = 30
_TINY = 1e-12


@dataclass(frozen=True)
class ConstrainedMinima:
    """Where T constrained minimisations ended; of no meaning where not ``converged``.

    Attributes
    ----------
    theta, eta : (T, D), (T, E)
    deviance : (T,) deviance of the model plus |η|²
    multiplier : (T, K) λ: the deviance grows by −2λ per unit of the values held
    converged : (T,)
    """

    theta: Float[Tensor, "T D"]
    eta: Float[Tensor, "T E"]
    deviance: Float[Tensor, " T"]
    multiplier: Float[Tensor, "T K"]
    converged: Bool[Tensor, " T"]


class _Step(NamedTuple):
    theta: Tensor
    eta: Tensor
    multiplier: Tensor
    gain: Tensor
    miss: Tensor


def constrained_minima(
    model: HistFactory,
    counts: Float[Tensor, " B"],
    quantities: Quantities,
    values: Float[Tensor, "T K"],
    theta: Float[Tensor, "T D"],
    eta: Float[Tensor, "T E"],
    scale: Float[Tensor, " K"],
    distance_max: float = DISTANCE_MAX,
) -> ConstrainedMinima:
    """Minimise −ln L + |η|²/2 at T points where ``quantities`` equal ``values``, from T starts.

    ``scale`` is the size of a notable change of each quantity; ``distance_max`` is how near a minimum has to
    be, as :data:`DISTANCE_MAX` says. Never raises for a point that does not
    converge: ``converged`` says so.
    """
    problem = _Problem(model, counts, quantities)
    theta, eta = torch.clamp(theta, model.lower, model.upper), eta.clone()
    result = ConstrainedMinima(
        theta.clone(),
        eta.clone(),
        torch.full((len(values),), torch.inf, dtype=torch.float64),
        torch.zeros_like(values),
        torch.zeros(len(values), dtype=torch.bool),
    )
    left = torch.arange(len(values))
    penalty = torch.zeros_like(values)
    for _ in range(ITERATIONS_MAX):
        step = problem.step(theta, eta, values)
        penalty = torch.maximum(penalty, 2 * step.multiplier.abs())
        done = (step.gain < distance_max) & ((step.miss / scale).abs() < distance_max).all(1)
        finished = left[done]
        result.theta[finished], result.eta[finished] = theta[done], eta[done]
        result.multiplier[finished], result.converged[finished] = step.multiplier[done], True
        result.deviance[finished] = problem.deviance(theta[done], eta[done])
        theta, eta, moved = problem.line_search(theta, eta, step, values, penalty)
        # A point that cannot move and is not done never will be.
        keep = moved & ~done
        if not keep.any():
            break
        left, theta, eta, values, penalty = left[keep], theta[keep], eta[keep], values[keep], penalty[keep]
    return result


class _Problem:
    """The function to be minimised, the quantities, and their derivatives at T points."""

    def __init__(self, model: HistFactory, counts: Tensor, quantities: Quantities) -> None:
        self.model, self.counts = model, counts
        self.differentiator = Differentiator(model)
        self.values = torch.func.vmap(quantities)
        self.jacobians = torch.func.vmap(torch.func.jacrev(quantities, argnums=(0, 1)))

    def deviance(self, theta: Tensor, eta: Tensor) -> Tensor:
        """Of the model, plus |η|², (T,)."""
        return self.model.deviance(theta, self.counts) + eta.square().sum(1)

    def merit(self, theta: Tensor, eta: Tensor, values: Tensor, penalty: Tensor) -> Tensor:
        """What a step must lower, (T,); infinite where it is undefined."""
        miss = (self.values(theta, eta) - values).abs()
        found = 0.5 * self.deviance(theta, eta) + (penalty * miss).sum(1)
        return torch.where(torch.isfinite(found), found, torch.inf)

    def step(self, theta: Tensor, eta: Tensor, values: Tensor) -> _Step:
        """The solution of the equations above with F scaled to unit diagonal; parameters at bounds stay."""
        model, n = self.model, len(theta)
        centre = model.centre.expand(n, -1)
        uphill = gradient(self.differentiator, theta, self.counts.expand(n, -1), centre)
        free = moving(model, theta, uphill).to(theta.dtype)
        by_theta, by_eta = self.jacobians(theta, eta)
        miss = values - self.values(theta, eta)
        linear = self.differentiator.linear(theta)
        root = self.differentiator.jacobian(linear) / linear.expected.clamp_min(_TINY).sqrt()[:, :, None]
        information = root.transpose(1, 2) @ root
        information.diagonal(dim1=1, dim2=2).add_(constraint_derivatives(model, theta, centre)[2])
        unit = free * torch.diagonal(information, dim1=1, dim2=2).clamp_min(_TINY).rsqrt()
        scaled = information * unit[:, :, None] * unit[:, None, :]
        scaled.diagonal(dim1=1, dim2=2).add_((1 - free) + 1e-13)
        factor, _ = torch.linalg.cholesky_ex(scaled)
        slopes = by_theta * unit[:, None, :]
        right = torch.cat([(uphill * unit)[:, :, None], slopes.transpose(1, 2)], dim=2)
        solved = torch.cholesky_solve(right, factor)
        downhill, along = solved[:, :, 0], solved[:, :, 1:]
        strength = slopes @ along + by_eta @ by_eta.transpose(1, 2)
        lacking = -miss - (slopes @ downhill[:, :, None] + by_eta @ eta[:, :, None])[:, :, 0]
        # Rows and columns in units of the quantities' own reach: they may differ by many orders.
        reach = torch.diagonal(strength, dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        conditioned = strength * reach[:, :, None] * reach[:, None, :]
        multiplier = torch.linalg.solve_ex(conditioned, (lacking * reach)[:, :, None])[0][:, :, 0] * reach
        inner = -(downhill + (along @ multiplier[:, :, None])[:, :, 0])
        move_eta = -eta - (multiplier[:, None] @ by_eta)[:, 0]
        gain = 0.5 * ((inner[:, None] @ scaled @ inner[:, :, None])[:, 0, 0] + move_eta.square().sum(1))
        return _Step(inner * unit, move_eta, multiplier, torch.where(gain.isnan(), torch.inf, gain), miss)

    def line_search(
        self, theta: Tensor, eta: Tensor, step: _Step, values: Tensor, penalty: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """θ and η after the longest of the steps 1, ½, ¼, … that does not raise the merit, and whether
        any."""
        now = self.merit(theta, eta, values, penalty)
        waiting = torch.nonzero(torch.isfinite(step.gain))[:, 0]
        moved = torch.zeros(len(theta), dtype=torch.bool)
        theta, eta = theta.clone(), eta.clone()
        share = 1.0
        for _ in range(HALVINGS_MAX):
            trial = theta[waiting] + share * step.theta[waiting]
            trial = torch.clamp(trial, self.model.lower, self.model.upper)
            trial_eta = eta[waiting] + share * step.eta[waiting]
            found = self.merit(trial, trial_eta, values[waiting], penalty[waiting])
            good = torch.isfinite(found) & (found <= now[waiting] + 1e-12 * now[waiting].abs())
            chosen = waiting[good]
            theta[chosen], eta[chosen], moved[chosen] = trial[good], trial_eta[good], True
            waiting = waiting[~good]
            if not len(waiting):
                break
            share /= 2
        return theta, eta, moved
