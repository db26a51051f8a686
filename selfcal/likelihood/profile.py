"""Profile likelihoods: how far −2 ln L rises when a parameter or a scale factor is held at a value.

    t(v) = min{−2 ln L(θ) : q(θ) = v} − min −2 ln L

for any differentiable quantity q, a parameter or a scale factor (:mod:`selfcal.likelihood.constrained`).
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
from selfcal.likelihood.constrained import constrained_minima
from selfcal.likelihood.fit import FitResult
from selfcal.likelihood.histfactory import HistFactory

Quantity = Callable[[Tensor], Tensor]
"""A scalar function of the parameters (D,)."""


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
    found = constrained_minima(
        model,
        counts,
        lambda theta, _: quantity(theta)[None],
        torch.tensor([[value]], dtype=torch.float64),
        start[None],
        start.new_zeros(1, 0),
        torch.tensor([scale], dtype=torch.float64),
    )
    if not bool(found.converged):
        raise FitError(
            "no constrained minimum was found",
            where=f"quantity held at {value:.6g}",
            fix="scan a smaller range",
        )
    return found.theta[0]


def _crossing(points: NDArray[np.float64], root: NDArray[np.float64], best: float, level: float) -> float:
    """First place where √t reaches ``level``, linear between points (exact for a parabola)."""
    beyond = np.flatnonzero(root >= level)
    if not len(beyond):
        return float("nan")
    i = int(beyond[0])
    first = (best, 0.0) if i == 0 else (float(points[i - 1]), float(root[i - 1]))
    share = (level - first[1]) / (float(root[i]) - first[1])
    return first[0] + share * (float(points[i]) - first[0])
