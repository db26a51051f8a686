r"""The likelihood of θ from the means of what networks say of single jets, calibrated by simulation.

For region r let z_r be the mean over its jets of a vector t of B numbers per jet. It is learnt, but any
vector gives an unbiased estimate; how good it is decides how narrow. With its means T over the simulation
of one flavour under a detector, from an emulator, and fractions π,

    z_r ~ N( Σ_f π_rf T_rf(θ_r), C_r ),     π_rf ∝ π⁰_rf exp(σ_rf η_rf),     θ_r = θ + ε_r m e,

e the parameter that a wrong multiplicity of the generator looks like, m its width. With u = (θ - θ⁰)/w

    -2 ln L = Σ_r |z_r - Σ_f π_rf T_rf(θ_r)|²_(C_r⁻¹) + |u|² + |η|² + |ε|².

C_r = Cov(t)/n of the data, the same of the simulation for every flavour, the emulator's squared error, and
what a relative error μ of every bin of the histograms of tracks does, μ² Σ_b g_b g_b^T with
g_b = Σ_i w_i n_ib (t_i - z_r) / Σ_i w_i: a jet with n tracks in a bin then has 1 + μ n times its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from selfcal.errors import FitError
from selfcal.sbi.binned_likelihood import central_jacobian
from selfcal.sbi.emulator import QuadraticEmulator
from selfcal.sbi.jet_scores import JetRows

Floats = NDArray[np.float64]
DIRECTION_MIN = 1e-8
"""Directions of t with a smaller part than this of the largest variance say nothing and are left out."""


@dataclass(frozen=True)
class SetObservation:
    """What one region gives.

    Attributes
    ----------
    mean : (B,) z
    covariance : (B, B) C but for the emulator's error
    fractions, relative_width : (F,) prior of the composition
    """

    mean: Floats
    covariance: Floats
    fractions: Floats
    relative_width: Floats


@dataclass(frozen=True)
class SetLikelihood:
    """R regions, F flavours, B numbers, D parameters.

    Attributes
    ----------
    emulator : θ -> means T (R F B,)
    multiplicity : (D,) m e in prior widths
    prior_mean, prior_width : (D,)
    """

    observations: tuple[SetObservation, ...]
    emulator: QuadraticEmulator
    multiplicity: Floats
    prior_mean: Floats
    prior_width: Floats

    @property
    def fractions(self) -> Floats:
        """Prior of the composition, (R, F)."""
        return np.stack([one.fractions for one in self.observations])

    @property
    def relative_width(self) -> Floats:
        """Its relative width, (R, F)."""
        return np.stack([one.relative_width for one in self.observations])

    @property
    def dimension(self) -> int:
        """Number of free numbers x: u, then η by region and flavour, then ε."""
        return len(self.prior_mean) + self.fractions.size + len(self.observations)

    def theta(self, x: Floats) -> Floats:
        """Parameters in their own units, (..., dimension) -> (..., D)."""
        return np.asarray(self.prior_mean + self.prior_width * x[..., : len(self.prior_mean)])

    def expected(self, x: Floats) -> Floats:
        """Σ_f π_rf T_rf(θ_r), (..., R, B)."""
        size, (regions, flavours) = len(self.prior_mean), self.fractions.shape
        tilt = x[..., size : size + regions * flavours].reshape(*x.shape[:-1], regions, flavours)
        share = self.fractions * np.exp(self.relative_width * tilt)
        share = share / share.sum(axis=-1, keepdims=True)
        rows = []
        for r in range(regions):
            moved = x[..., :size] + x[..., size + regions * flavours + r, None] * self.multiplicity
            means = self.emulator(self.theta(moved)).reshape(*x.shape[:-1], regions, flavours, -1)
            rows.append(np.einsum("...f,...fb->...b", share[..., r, :], means[..., r, :, :]))
        return np.stack(rows, axis=-2)

    def whitening(self) -> list[Floats]:
        """Per region a matrix (G, B) with W^T W = C⁻¹ on the directions that say something."""
        error = self.emulator.error.reshape(*self.fractions.shape, -1)
        found = []
        for r, one in enumerate(self.observations):
            total = one.covariance + np.diag(one.fractions**2 @ error[r] ** 2)
            scale = np.sqrt(np.maximum(np.diag(total), 1e-300))
            values, vectors = np.linalg.eigh(total / np.outer(scale, scale))
            kept = values > DIRECTION_MIN * values.max()
            found.append((vectors[:, kept] / np.sqrt(values[kept])).T / scale)
        return found

    def residuals(self, x: Floats, whitening: list[Floats]) -> Floats:
        """Half their square sum is -ln L, (..., M)."""
        difference = np.stack([one.mean for one in self.observations]) - self.expected(x)
        parts = [difference[..., r, :] @ matrix.T for r, matrix in enumerate(whitening)]
        return np.concatenate([*parts, x], axis=-1)


@dataclass(frozen=True)
class SetFit:
    """Best fit x and its covariance."""

    best: Floats
    covariance: Floats


def fit_sets(likelihood: SetLikelihood, start: Floats | None = None) -> SetFit:
    """Minimum of -2 ln L; covariance (J^T J)⁻¹ of the residuals.

    Raises
    ------
    FitError
        If the minimisation does not converge.
    """
    whitening = likelihood.whitening()
    best = np.zeros(likelihood.dimension) if start is None else start
    result = least_squares(likelihood.residuals, best, method="lm", args=(whitening,))
    if not result.success:
        raise FitError(f"the fit of the detector parameters failed: {result.message}", where="infer")
    found = np.asarray(result.x, np.float64)
    jacobian = central_jacobian(lambda x: likelihood.residuals(x, whitening), found)
    return SetFit(found, np.asarray(np.linalg.inv(jacobian.T @ jacobian), np.float64))


def set_observation(
    rows: JetRows,
    statistic: Floats,
    simulated: Floats,
    fractions: Floats,
    relative_width: Floats,
    modelling_error: float,
) -> SetObservation:
    """One region: data and their t, (N, B); ``simulated``: covariance of its mean in simulation, (B, B)."""
    total = rows.weight.sum()
    mean = rows.weight @ statistic / total
    weighted = rows.weight[:, None] * (statistic - mean)
    gradient = rows.counts.astype(np.float64).T @ weighted / total
    covariance = weighted.T @ weighted / total**2 + modelling_error**2 * gradient.T @ gradient
    return SetObservation(mean, covariance + simulated, fractions, relative_width)


def simulation_variance(rows: JetRows, weight: Floats, statistic: Floats, fractions: Floats) -> Floats:
    """Covariance of Σ_f π_f T_f from the jets of one region's simulation, (B, B)."""
    found = np.zeros((statistic.shape[1], statistic.shape[1]))
    for flavour, share in enumerate(fractions):
        inside = rows.flavour == flavour
        if weight[inside].sum() > 0:
            part = weight[inside] / weight[inside].sum()
            deviation = part[:, None] * (statistic[inside] - part @ statistic[inside])
            found += share**2 * deviation.T @ deviation
    return found
