"""The flavour fractions that minimise the energy distance at given maps, without minibatches.

For fixed maps the energy distance of a region is quadratic in its fractions,

    D(π) = 2 Σ_f π_f a_f − Σ_fg π_f π_g B_fg − c,
    a_f = E|X_f − Y|,  B_fg = E|X_f − X_g'|,  c = E|Y − Y'|,

with X_f a transported simulated jet of flavour f and Y a jet of data. Stochastic steps leave
fractions of a few per cent at their prior, because their gradient is small beside the noise of a
minibatch; here all jets are used and the minimum is found directly.
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

JETS_MAX = 4000
"""Jets of a flavour, or half the jets of data, that are compared: distances grow with the square."""

PAIRED_AT_ONCE = 64
"""Jets whose distances to all others are in memory together: they stay in a processor's cache."""

_TINY = 1e-9


@dataclass(frozen=True)
class MixtureDistance:
    """The quadratic form D(π) of one region in the fractions of its components (here: flavours).

    Those without simulated jets are not ``present``.
    """

    to_data: NDArray[np.float64]
    between: NDArray[np.float64]
    within_data: float
    present: NDArray[np.bool_]

    def value(self, fractions: NDArray[np.float64]) -> float:
        """D(π) for fractions (one per component) that add up to one."""
        return float(2.0 * fractions @ self.to_data - fractions @ self.between @ fractions - self.within_data)

    def gradient(self, fractions: NDArray[np.float64]) -> NDArray[np.float64]:
        """dD/dπ, (K,), one per component."""
        slope: NDArray[np.float64] = 2.0 * self.to_data - 2.0 * self.between @ fractions
        return slope


def mixture_distance(
    features: Float[Tensor, "n features"],
    flavour: Int[Tensor, " n"],
    weight: Float[Tensor, " n"],
    data: Float[Tensor, "m features"],
    data_weight: Float[Tensor, " m"],
    generator: torch.Generator,
) -> MixtureDistance:
    """The form from at most ``JETS_MAX`` simulated jets a flavour and twice as many of data.

    Pairs of a jet with itself count (V-statistic): the form is then conditionally negative definite
    for any sample (Schoenberg), so that D is convex on the simplex.
    """
    y, y_weight = some_jets((data, data_weight), 2 * JETS_MAX, generator)
    parts = [
        some_jets((features[flavour == index], weight[flavour == index]), JETS_MAX, generator)
        for index in range(len(FLAVOURS))
    ]
    present = np.array([bool(len(x)) and float(w.sum()) > 0 for x, w in parts])
    to_data, between = np.zeros(len(FLAVOURS)), np.zeros((len(FLAVOURS), len(FLAVOURS)))
    for f in np.flatnonzero(present):
        to_data[f] = mean_distance(*parts[f], y, y_weight)
        for g in np.flatnonzero(present[: f + 1]):
            between[f, g] = between[g, f] = mean_distance(*parts[f], *parts[g])
    return MixtureDistance(to_data, between, mean_distance(y, y_weight, y, y_weight), present)


def some_jets(
    sample: tuple[Float[Tensor, "n features"], Tensor], most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At most ``most`` jets of (features, weights), whose first dimension is jets."""
    x, weight = sample
    if len(x) <= most:
        return x, weight
    chosen = torch.randperm(len(x), generator=generator)[:most]
    return x[chosen], weight[chosen]


def mean_distance(
    x: Float[Tensor, "n features"],
    x_weight: Float[Tensor, " n"],
    y: Float[Tensor, "m features"],
    y_weight: Float[Tensor, " m"],
) -> float:
    """Σ_ij w_i v_j |x_i − y_j| / Σ_ij w_i v_j."""
    total = sum(
        float(
            x_weight[first : first + PAIRED_AT_ONCE]
            @ (pair_distances(x[first : first + PAIRED_AT_ONCE], y) @ y_weight)
        )
        for first in range(0, len(x), PAIRED_AT_ONCE)
    )
    return total / float(x_weight.sum() * y_weight.sum())


def exact_fractions(
    distance: MixtureDistance,
    scale: float,
    prior: NDArray[np.float64],
    uncertainty: NDArray[np.float64],
) -> NDArray[np.float64]:
    """argmin over the simplex of  scale · D(π) + ½ Σ ((π − π0)/σ)², (F,).

    A flavour that the simulation does not have stays at its prior.

    Raises
    ------
    FitError
        If the minimiser does not converge.
    """
    free = distance.present
    fixed = np.where(free, 0.0, prior)

    def completed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        fractions = fixed.copy()
        fractions[free] = values
        return fractions

    def cost(values: NDArray[np.float64]) -> float:
        fractions = completed(values)
        pull = (fractions - prior) / uncertainty
        return scale * distance.value(fractions) + 0.5 * float(pull @ pull)

    def slope(values: NDArray[np.float64]) -> NDArray[np.float64]:
        fractions = completed(values)
        gradient = scale * distance.gradient(fractions) + (fractions - prior) / uncertainty**2
        chosen: NDArray[np.float64] = gradient[free]
        return chosen

    rest = 1.0 - fixed.sum()
    start = prior[free] / prior[free].sum() * rest
    result = optimize.minimize(
        cost,
        start,
        jac=slope,
        method="SLSQP",
        bounds=[(_TINY, 1.0)] * int(free.sum()),
        constraints=optimize.LinearConstraint(np.ones(int(free.sum())), rest, rest),
        options={"ftol": 1e-10, "maxiter": 200},
    )
    if not result.success:
        raise FitError(
            f"the fractions of a region did not converge: {result.message}",
            fix="give the region a prior of its composition that is nearer to its simulation",
        )
    fractions = completed(np.asarray(result.x))
    normalised: NDArray[np.float64] = fractions / fractions.sum()
    return normalised
