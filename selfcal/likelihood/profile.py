"""Profile likelihoods: how far −2 ln L rises when a parameter or a scale factor is held at a value.

    t(v) = min{−2 ln L(θ) : q(θ) = v} − min −2 ln L

for any differentiable quantity q, a parameter or a scale factor. The constrained minimum is found by
sequential quadratic programming: with the Fisher information F, gradient g and a = ∇q, each step solves

    ⎛ F  a ⎞ ⎛ δ ⎞   ⎛  −g   ⎞
    ⎝ aᵀ 0 ⎠ ⎝ λ ⎠ = ⎝ v − q ⎠

and is shortened until −ln L + c |q − v| falls, with c > |λ| (Nocedal & Wright, Numerical Optimization, 18.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.errors import FitError
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import FitResult, expected_and_jacobian, fisher_information
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import gradient, moving

Quantity = Callable[[Tensor], Tensor]
"""A scalar function of the parameters (D,)."""

ITERATIONS_MAX = 100
DISTANCE_MAX = 1e-7
"""Convergence: estimated −ln L still to be gained, and |q − v| in units of its uncertainty."""
HALVINGS_MAX = 30


@dataclass(frozen=True)
class Scan:
    """t(v) at the points v of one quantity; its best fit and first-order uncertainty."""

    points: NDArray[np.float64]
    rise: NDArray[np.float64]
    best: float
    sigma: float

    def interval(self, level: float = 1.0) -> tuple[float, float]:
        """Where t crosses ``level`` below and above the best fit; NaN where the points do not reach it."""
        below, above = self.points <= self.best, self.points >= self.best
        root = np.sqrt(np.maximum(self.rise, 0.0))
        low = _crossing(self.points[below][::-1], root[below][::-1], self.best, np.sqrt(level))
        return low, _crossing(self.points[above], root[above], self.best, np.sqrt(level))


def scan(
    model: HistFactory,
    result: FitResult,
    quantity: Quantity,
    widths: Sequence[float] = (-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0),
    counts: Float[Tensor, " B"] | None = None,
) -> Scan:
    """Profile ``quantity`` at its best fit plus ``widths`` times its first-order uncertainty.

    Every point starts from the one before it on the same side. A side ends before the first value that the
    parameters cannot reach, such as a negative efficiency.

    Raises
    ------
    FitError
        If the quantity does not depend on the parameters, or nothing is found on one of the sides.
    """
    counts = model.observed if counts is None else counts
    best = torch.from_numpy(result.best_fit)
    centre, slope = float(quantity(best)), torch.func.grad(quantity)(best).numpy()
    sigma = float(np.sqrt(slope @ result.covariance @ slope))
    if not sigma > 0:
        raise FitError("a quantity that no free parameter changes cannot be scanned")
    towards = torch.from_numpy(result.covariance @ slope / sigma**2)
    found: dict[float, float] = {0.0: 0.0}
    for side in (-1, 1):
        theta, last = best, 0.0
        for width in sorted((w for w in widths if w * side > 0), key=abs):
            start = theta + (width - last) * sigma * towards
            try:
                theta = constrained_minimum(model, counts, quantity, centre + width * sigma, start, sigma)
            except FitError:
                if last == 0.0:
                    raise
                break
            found[width] = float(model.deviance(theta, counts)) - result.deviance
            last = width
    ordered = sorted(found)
    return Scan(
        centre + sigma * np.array(ordered), np.array([found[width] for width in ordered]), centre, sigma
    )


def constrained_minimum(
    model: HistFactory,
    counts: Float[Tensor, " B"],
    quantity: Quantity,
    value: float,
    start: Float[Tensor, " D"],
    scale: float,
) -> Float[Tensor, " D"]:
    """The parameters that minimise −ln L where ``quantity`` equals ``value``.

    ``scale`` is the size of a notable change of the quantity.

    Raises
    ------
    FitError
        If no minimum is found.
    """
    theta = torch.clamp(start, model.lower, model.upper)
    penalty = 0.0
    for _ in range(ITERATIONS_MAX):
        step, multiplier, gain, miss = _step(model, counts, quantity, value, theta)
        if gain < DISTANCE_MAX and abs(miss) < DISTANCE_MAX * scale:
            return theta
        penalty = max(penalty, 2 * abs(multiplier))

        def merit(at: Tensor, weight: float = penalty) -> float:
            return 0.5 * float(model.deviance(at, counts)) + weight * abs(float(quantity(at)) - value)

        now, share = merit(theta), 1.0
        for _ in range(HALVINGS_MAX):
            trial = torch.clamp(theta + share * step, model.lower, model.upper)
            if np.isfinite(merit(trial)) and merit(trial) <= now + 1e-12 * abs(now):
                break
            share /= 2
        else:
            break
        theta = trial
    raise FitError(
        "no constrained minimum was found", where=f"quantity held at {value:.6g}", fix="scan a smaller range"
    )


def _step(
    model: HistFactory, counts: Tensor, quantity: Quantity, value: float, theta: Tensor
) -> tuple[Tensor, float, float, float]:
    """Step δ (D,), multiplier λ, what −ln L + λ q could still gain, and v − q."""
    uphill = gradient(Differentiator(model), theta[None], counts[None], model.centre[None])
    free = moving(model, theta[None], uphill)[0]
    slope = torch.func.grad(quantity)(theta)
    miss = value - float(quantity(theta))
    expected, jacobian = expected_and_jacobian(model, theta)
    information = fisher_information(model, theta, expected, jacobian)[free][:, free]
    unit = torch.diagonal(information).clamp_min(1e-12).rsqrt()
    scaled = information * unit[:, None] * unit[None, :]
    right = torch.stack([-uphill[0, free] * unit, slope[free] * unit], dim=1)
    downhill, along = torch.linalg.solve(scaled + 1e-13 * torch.eye(len(scaled)), right).unbind(1)
    strength = (slope[free] * unit) @ along
    multiplier = ((slope[free] * unit) @ downhill - miss) / strength
    inner = downhill - multiplier * along
    step = torch.zeros_like(theta)
    step[free] = inner * unit
    gain = 0.5 * float(inner @ scaled @ inner)
    return step, float(multiplier), gain, miss


def _crossing(points: NDArray[np.float64], root: NDArray[np.float64], best: float, level: float) -> float:
    """First place where √t reaches ``level``, linear between points (exact for a parabola)."""
    beyond = np.flatnonzero(root >= level)
    if not len(beyond):
        return float("nan")
    i = int(beyond[0])
    first = (best, 0.0) if i == 0 else (float(points[i - 1]), float(root[i - 1]))
    share = (level - first[1]) / (float(root[i]) - first[1])
    return first[0] + share * (float(points[i]) - first[0])
