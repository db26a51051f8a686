"""The scale factors whose profile likelihood is wanted, and its exact values.

    t(x) = min{−2 ln L(θ) + |η|² : ln SF(θ, η) = x} − min −2 ln L,    ∂t/∂x = −2λ

with all parameters θ of the fit and the fluctuations η of the nominal simulation, which the covariance of the
scale factors holds as well. Near the best fit x̂, t = (x − x̂)ᵀ C⁻¹ (x − x̂) with

    C = J H⁻¹ Jᵀ + M Mᵀ

of the observed information H and the derivatives J, M of x by θ and η. With C = L Lᵀ, points are counted in
u = L⁻¹ (x − x̂): t = |u|² for a Gaussian. In logarithms the likelihood is much nearer to one, and no scale
factor is negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from selfcal.config.neural_profile import NeuralProfileConfig
from selfcal.errors import ConfigError, FitError
from selfcal.likelihood.constrained import constrained_minima
from selfcal.likelihood.efficiencies import EfficiencyRatios, Row
from selfcal.likelihood.fit import FitResult

CORRELATION_MIN = 1e-8
"""Smallest eigenvalue of the correlations: below it one scale factor follows from the others."""
DISTANCE_MAX = 1e-6
"""Convergence of a point, in −ln L and in σ: far below what the network resolves."""
SPARSE_SHARE, SPARSE_SIGMA = 0.4, 4.0
"""Part of the points along the profiles of one or two scale factors, and how far; the others in all
directions."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProfileTarget:
    """K scale factors of a fit.

    Attributes
    ----------
    rows : the rows, in the order of the inputs
    slots : (K,) their positions among the measured ones
    best : (K,) scale factors at the best fit
    covariance, root : (K, K) C and L
    """

    ratios: EfficiencyRatios
    result: FitResult
    rows: tuple[Row, ...]
    slots: tuple[int, ...]
    best: Floats
    covariance: Floats
    root: Floats

    def quantities(self, theta: Float[Tensor, " D"], eta: Float[Tensor, " E"]) -> Float[Tensor, " K"]:
        """ln of the K scale factors."""
        return self.ratios.values(theta, eta)[list(self.slots)].log()

    def whitened(self, values: Float[NDArray[np.float64], "T K"]) -> Float[NDArray[np.float64], "T K"]:
        """u of scale factors."""
        found: Floats = np.asarray(np.linalg.solve(self.root, np.log(values / self.best).T).T, np.float64)
        return found

    def log_jacobians(self) -> tuple[Floats, Floats]:
        """J (K, D) and M (K, E) at the best fit."""
        by_theta, by_eta = self.ratios.jacobians(torch.from_numpy(self.result.best_fit))
        slots = list(self.slots)
        return by_theta[slots].numpy() / self.best[:, None], by_eta[slots].numpy() / self.best[:, None]


def profile_target(ratios: EfficiencyRatios, result: FitResult, config: NeuralProfileConfig) -> ProfileTarget:
    """The scale factors that the configuration names.

    Raises
    ------
    ConfigError
        If a working point is not measured, nothing is left, or one scale factor follows from the others.
    """
    measured = [ratios.rows[i] for i in ratios.measured]
    known = {row.working_point for row in measured if row.working_point is not None}
    if unknown := sorted(set(config.working_points) - known):
        raise ConfigError(
            f"no scale factor at the working points {unknown}",
            where="neural_profile.working_points",
            expected=f"some of {', '.join(f'{point:g}' for point in sorted(known))}",
        )
    slots = [
        s
        for s, row in enumerate(measured)
        if row.working_point in config.working_points
        and (not config.flavours or row.flavour in config.flavours)
    ]
    if not slots:
        raise ConfigError("no flavour of 'neural_profile.flavours' is measured", where="neural_profile")
    theta = torch.from_numpy(result.best_fit)
    best = ratios.values(theta)[slots].numpy()
    by_theta, by_eta = (part[slots].numpy() / best[:, None] for part in ratios.jacobians(theta))
    covariance = by_theta @ result.covariance @ by_theta.T + by_eta @ by_eta.T
    sigma = np.sqrt(np.diag(covariance))
    smallest = float(np.linalg.eigvalsh(covariance / np.outer(sigma, sigma))[0]) if (sigma > 0).all() else 0.0
    if smallest < CORRELATION_MIN:
        raise ConfigError(
            "one of the scale factors is fixed, or follows from the others",
            where=f"neural_profile, smallest eigenvalue of their correlations {smallest:.1g}",
            fix="name fewer working points or flavours",
        )
    return ProfileTarget(
        ratios,
        result,
        tuple(measured[s] for s in slots),
        tuple(slots),
        best,
        covariance,
        np.linalg.cholesky(covariance),
    )


def rise_max(dimension: int, level: float) -> float:
    """−2 ln λ below which a K-dimensional Gaussian holds ``level`` of its probability."""
    return float(stats.chi2.ppf(level, dimension))


def draw_points(target: ProfileTarget, number: int, level: float, seed: int) -> Floats:
    """Scale factors (number, K) with |u| uniform up to the root of ``rise_max``.

    A part of them lies along the profiles of one or two scale factors, where scans go, not beyond
    ``SPARSE_SIGMA``: u ∝ Lᵀ z / σ with one or two entries in z.
    """
    rng = np.random.default_rng(seed)
    size = len(target.best)
    sigma = np.sqrt(np.diag(target.covariance))
    direction = rng.normal(size=(number, size))
    largest = np.full((number, 1), np.sqrt(rise_max(size, level)))
    for point in np.flatnonzero(rng.random(number) < SPARSE_SHARE):
        kept = rng.choice(size, size=min(size, int(rng.integers(1, 3))), replace=False)
        direction[point] = target.root.T[:, kept] @ (direction[point, kept] / sigma[kept])
        largest[point] = min(SPARSE_SIGMA, largest[point, 0])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    whitened = rng.uniform(0, 1, (number, 1)) * largest * direction
    found: Floats = target.best * np.exp(whitened @ target.root.T)
    return found


@dataclass(frozen=True)
class ExactProfile:
    """t (T,) and ∂t/∂x (T, K) at the scale factors ``values`` (T, K); of no meaning where not ``converged``
    (T,)."""

    values: Floats
    rise: Floats
    gradient: Floats
    converged: Bool[NDArray[np.bool_], " T"]


def exact_profile(target: ProfileTarget, values: Float[NDArray[np.float64], "T K"]) -> ExactProfile:
    """The profile at T points, by constrained minimisation from the linear extrapolation of the best fit.

    Raises
    ------
    FitError
        If no point converges.
    """
    result, model = target.result, target.ratios.model
    best = torch.from_numpy(result.best_fit)
    by_theta, by_eta = target.log_jacobians()
    logarithm = np.log(values)
    shift = np.linalg.solve(target.covariance, (logarithm - np.log(target.best)).T).T
    found = constrained_minima(
        model=model,
        counts=model.observed,
        quantities=target.quantities,
        values=torch.from_numpy(logarithm),
        theta=best + torch.from_numpy(shift @ (by_theta @ result.covariance)),
        eta=torch.from_numpy(shift @ by_eta),
        scale=torch.from_numpy(np.sqrt(np.diag(target.covariance))),
        distance_max=DISTANCE_MAX,
    )
    if not bool(found.converged.any()):
        raise FitError(
            "no point of the profile likelihood converged",
            where=f"{len(values)} points",
            fix="choose a smaller neural_profile.level, or fewer scale factors",
        )
    return ExactProfile(
        values,
        (found.deviance - result.deviance).numpy(),
        (-2 * found.multiplier).numpy(),
        found.converged.numpy(),
    )
