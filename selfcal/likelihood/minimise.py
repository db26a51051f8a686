"""Batched Fisher scoring: many fits of one model at once, with the factors of single bins eliminated exactly.

The step d solves F d = −g with the Fisher information of the free parameters a and the local ones l (one
bin each, constrained; :mod:`selfcal.likelihood.derivatives`),

    F = [[Σ_b J_b J_bᵀ/ν_b + P, C], [Cᵀ, G]],    C_b = J_b u_bᵀ/ν_b,    G_b = u_b u_bᵀ/ν_b + p_b,

u the derivatives by the locals, P and p the constraints. G has one small block per bin, a diagonal plus a
product, so that the Schur complement is in closed form: a bin's variance ν_b grows by Σ_l u_bl²/p_bl,

    F/G = Σ_b J_b J_bᵀ/(ν_b + Σ_l u_bl²/p_bl) + P.

Steps are projected onto the bounds; a parameter at a bound is held while the gradient points outwards.
Levenberg–Marquardt damping grows where no fraction of a step lowers the function. The estimated distance to
the minimum is EDM = −½ gᵀd, in units of −ln L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from selfcal.likelihood.derivatives import Differentiator, Linear, constraint_derivatives
from selfcal.likelihood.histfactory import HistFactory

EDM_GOAL = 1e-10
"""Iterations end below this estimated distance to the minimum, in −ln L ..."""
EDM_MAX = 1e-8
"""... and a fit that can go no further has converged below this one."""
ITERATIONS_MAX = 200
DAMPING_MAX = 1e8
"""Beyond this damping of its steps a fit has failed."""
HALVINGS_MAX = 6
_TINY = 1e-300


@dataclass(frozen=True)
class Minima:
    """Where T minimisations ended.

    Attributes
    ----------
    theta : (T, D)
    deviance : (T,)
    edm : (T,) estimated distance to the minimum
    iterations : (T,)
    """

    theta: Float[Tensor, "T D"]
    deviance: Float[Tensor, " T"]
    edm: Float[Tensor, " T"]
    iterations: Int64[Tensor, " T"]

    @property
    def converged(self) -> Bool[Tensor, " T"]:
        """Whether the estimated distance is small enough."""
        return self.edm < EDM_MAX


class _Step(NamedTuple):
    direction: Tensor
    edm: Tensor


def moving(
    model: HistFactory, theta: Float[Tensor, "T D"], gradient: Float[Tensor, "T D"]
) -> Bool[Tensor, "T D"]:
    """Parameters that may move: not fixed, and not pushed against a bound."""
    held = ((theta <= model.lower) & (gradient > 0)) | ((theta >= model.upper) & (gradient < 0))
    return ~model.fixed & ~held


def gradient(
    differentiator: Differentiator,
    theta: Float[Tensor, "T D"],
    counts: Float[Tensor, "T B"],
    centre: Float[Tensor, "T D"],
) -> Float[Tensor, "T D"]:
    """Slope of −ln L."""
    linear = differentiator.linear(theta)
    return _gradient(differentiator, linear, theta, counts, centre)


def minimise(
    differentiator: Differentiator,
    theta: Float[Tensor, "T D"],
    counts: Float[Tensor, "T B"],
    centre: Float[Tensor, "T D"],
    iterations_max: int = ITERATIONS_MAX,
) -> Minima:
    """Minimise −ln L of T data sets (counts and auxiliary measurements), each from its own start.

    Never raises for a data set that does not converge: its EDM says so.
    """
    model = differentiator.model
    n_toys = len(theta)
    theta = torch.clamp(theta, model.lower, model.upper)
    value = _value(model, theta, counts, centre)
    result = Minima(
        theta.clone(),
        value.clone(),
        torch.full((n_toys,), torch.inf, dtype=torch.float64),
        torch.zeros(n_toys, dtype=torch.long),
    )
    left = torch.arange(n_toys)
    damping = torch.zeros(n_toys, dtype=torch.float64)
    for _ in range(iterations_max):
        step = _step(differentiator, theta, counts, centre, damping)
        undamped = damping == 0
        finite = torch.isfinite(step.edm) & torch.isfinite(value)
        edm = torch.where(finite & undamped, step.edm.abs(), torch.inf)
        result.edm[left] = torch.where(undamped, edm, result.edm[left])
        result.iterations[left] += 1
        trial, trial_value, accepted = _line_search(model, theta, value, step, counts, centre)
        # The last step is taken as well: it costs nothing more and squares the distance.
        theta = torch.where(accepted[:, None], trial, theta)
        value = torch.where(accepted, trial_value, value)
        result.theta[left], result.deviance[left] = theta, value
        grown = torch.where(accepted, damping / 10, (damping * 10).clamp_min(1e-3))
        done = (edm < EDM_GOAL) | (~accepted & (edm < EDM_MAX)) | ~finite | (grown > DAMPING_MAX)
        damping = torch.where(grown < 1e-5, 0.0, grown)
        keep = ~done
        if not keep.any():
            break
        if not keep.all():
            left, theta, value, damping = left[keep], theta[keep], value[keep], damping[keep]
            counts, centre = counts[keep], centre[keep]
    return result


def _value(model: HistFactory, theta: Tensor, counts: Tensor, centre: Tensor) -> Tensor:
    """The deviance, infinite where an expectation is negative or undefined."""
    expected = model.expected(theta)
    value = model.deviance_of(expected, theta, counts, centre)
    negative = (expected < 0).any(-1)
    return torch.where(negative | torch.isnan(value), torch.inf, value)


def _line_search(
    model: HistFactory, theta: Tensor, value: Tensor, step: _Step, counts: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The longest of the steps 1, ½, ¼, … that does not raise the deviance beyond rounding."""
    best, best_value = theta.clone(), value.clone()
    waiting = torch.arange(len(theta))
    fraction = 1.0
    for _ in range(HALVINGS_MAX):
        trial = theta[waiting] + fraction * step.direction[waiting]
        trial = torch.clamp(trial, model.lower, model.upper)
        trial = torch.where(model.fixed, theta[waiting], trial)
        trial_value = _value(model, trial, counts[waiting], centre[waiting])
        good = trial_value <= value[waiting] + 1e-12 * value[waiting].abs()
        chosen = waiting[good]
        best[chosen], best_value[chosen] = trial[good], trial_value[good]
        waiting = waiting[~good]
        if not len(waiting):
            break
        fraction /= 2
    accepted = torch.ones(len(theta), dtype=torch.bool)
    accepted[waiting] = False
    return best, best_value, accepted


def _gradient(
    differentiator: Differentiator, linear: Linear, theta: Tensor, counts: Tensor, centre: Tensor
) -> Tensor:
    residual = 1 - torch.where(counts > 0, counts / linear.expected, 0.0)
    full = torch.zeros(len(theta), theta.shape[1] + 1, dtype=theta.dtype)
    full[:, differentiator.global_index] = (residual[:, None] @ linear.by_global)[:, 0]
    full.scatter_(
        1,
        differentiator.local_index.flatten().expand(len(theta), -1),
        (residual[:, :, None] * linear.by_local).flatten(1),
    )
    return full[:, :-1] + constraint_derivatives(differentiator.model, theta, centre)[0]


def _step(
    differentiator: Differentiator, theta: Tensor, counts: Tensor, centre: Tensor, damping: Tensor
) -> _Step:
    """Solution of F d = −g with the locals eliminated."""
    model, wide, narrow = differentiator.model, differentiator.global_index, differentiator.local_index
    n_toys, n_bins = counts.shape
    linear = differentiator.linear(theta)
    slope = _gradient(differentiator, linear, theta, counts, centre)
    precision = constraint_derivatives(model, theta, centre)[2]
    free = moving(model, theta, slope)
    slope = torch.where(free, slope, 0.0)

    def of_bins(values: Tensor, filler: float) -> Tensor:
        """(T, D) -> (T, B, L): the values of the local parameters of every bin."""
        padded = torch.cat([values, values.new_full((n_toys, 1), filler)], dim=1)
        return padded.index_select(1, narrow.flatten()).reshape(n_toys, n_bins, -1)

    expected = linear.expected.clamp_min(1e-12)
    u = linear.by_local * of_bins(free.to(theta.dtype), 0.0)
    p, slope_local = of_bins(precision, 1.0), of_bins(slope, 0.0)
    free_wide = free.index_select(1, wide)
    held = (~free_wide).to(theta.dtype)
    jacobian = linear.by_global * (1 - held)[:, None]
    weight = 1 / (expected + (u * u / p).sum(2))
    weighted = jacobian * weight[:, :, None]
    schur = jacobian.transpose(1, 2) @ weighted
    diagonal = torch.diagonal(schur, dim1=1, dim2=2)
    diagonal += torch.where(free_wide, precision.index_select(1, wide), 1.0)
    eliminated = (u * slope_local / p).sum(2)
    right = (eliminated[:, None] @ weighted)[:, 0] - slope.index_select(1, wide)
    wide_step = _solve(schur, right, damping)
    # Back substitution: G d_l = −(g_l + Cᵀ d_a), with G a diagonal plus a product.
    pulled = slope_local + u * ((jacobian @ wide_step[:, :, None])[:, :, 0] / expected)[:, :, None]
    shared = (u * pulled / p).sum(2) * weight
    narrow_step = (u * shared[:, :, None] - pulled) / p
    direction = torch.zeros(n_toys, theta.shape[1] + 1, dtype=theta.dtype)
    direction[:, wide] = wide_step
    direction.scatter_(1, narrow.flatten().expand(n_toys, -1), narrow_step.flatten(1))
    direction = torch.where(free, direction[:, :-1], 0.0)
    return _Step(direction, -0.5 * (slope * direction).sum(1))


def _solve(matrix: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """Solve with the matrix scaled to unit diagonal, plus damping; least squares where it is singular."""
    scale = torch.diagonal(matrix, dim1=1, dim2=2).clamp_min(_TINY).rsqrt()
    scale = torch.where(scale > 1e100, 1.0, scale)
    scaled = matrix * scale[:, :, None] * scale[:, None]
    scaled.diagonal(dim1=1, dim2=2).add_(damping.clamp_min(1e-13)[:, None])
    factor, failed = torch.linalg.cholesky_ex(scaled)
    solution = torch.cholesky_solve((right * scale)[:, :, None], factor)[:, :, 0]
    for i in torch.nonzero(failed)[:, 0].tolist():
        if torch.isfinite(scaled[i]).all():
            solution[i] = torch.linalg.lstsq(scaled[i], (right * scale)[i, :, None]).solution[:, 0]
        else:
            solution[i] = torch.nan
    return solution * scale
