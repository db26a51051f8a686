"""A covariance reduced to a few independent variations, and what the reduction loses.

With the covariance C, σ_i = √C_ii, the correlation ρ = D⁻¹CD⁻¹ (D = diag σ) and ρ = Σ_j λ_j v_j v_jᵀ,
λ_1 ≥ λ_2 ≥ …,

    s_j = √λ_j D v_j,   C = Σ_j s_j s_jᵀ,   e_i² = C_ii − Σ_{j ≤ K} s_ji²

The first K shifts s_j are kept, K the smallest number for which e_i < 0.01 σ_i in every bin; the rest e goes
into an envelope, which is taken as uncorrelated between bins. The correlation is decomposed, not the
covariance: what counts is the residual relative to σ, and a precise bin must not wait for the eigenvectors
of the imprecise ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.errors import FitError

RESIDUAL_MAX = 0.01
"""Largest residual, relative to σ, that may go into the envelope."""
NEGATIVE_MAX = 1e-9
"""Eigenvalues of the correlation below minus this, relative to the largest, are no rounding errors."""


@dataclass(frozen=True)
class Eigenvariations:
    """Independent variations of N bins, largest first.

    Attributes
    ----------
    shifts : (K, N) one standard deviation of each variation; the largest |shift|/σ is positive
    envelope : (N,) uncorrelated remainder, one standard deviation
    """

    shifts: NDArray[np.float64]
    envelope: NDArray[np.float64]

    def covariance(self) -> NDArray[np.float64]:
        """(N, N) Σ_j s_j s_jᵀ + diag(e²): what a user of the variations puts together."""
        return np.asarray(self.shifts.T @ self.shifts + np.diag(self.envelope**2))


@dataclass(frozen=True)
class RoundTripError:
    """Distance of the rebuilt covariance C' from the original.

    Attributes
    ----------
    sigma : max_i |σ'_i / σ_i − 1|
    covariance : max_ij |C'_ij − C_ij| / (σ_i σ_j)
    residual : max_i e_i / σ_i, the part that the envelope holds
    """

    sigma: float
    covariance: float
    residual: float


def reduce_covariance(covariance: NDArray[np.float64], residual_max: float = RESIDUAL_MAX) -> Eigenvariations:
    """The variations of a covariance (N, N), cut where the residual is below ``residual_max`` σ everywhere.

    A bin without uncertainty has zero shifts.

    Raises
    ------
    FitError
        If the matrix is not a covariance: not finite, not symmetric, or with negative eigenvalues.
    """
    sigma = _standard_deviations(covariance)
    eigenvalues, vectors = np.linalg.eigh(_correlation(covariance, sigma))
    if len(sigma) and eigenvalues[0] < -NEGATIVE_MAX * max(eigenvalues[-1], 1.0):
        raise FitError(
            f"the covariance has a negative eigenvalue, {eigenvalues[0]:.3g} relative to σ²",
            expected="a positive semidefinite matrix",
            fix="run 'selfcal fit' again; if it stays, report it with workspace.json",
        )
    shifts = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))[:, ::-1].T
    left = np.maximum((sigma > 0) - np.cumsum(shifts**2, axis=0), 0.0)
    enough = np.nonzero((left < residual_max**2).all(axis=1))[0]
    kept = int(enough[0]) + 1 if len(enough) else len(shifts)
    envelope = np.sqrt(left[kept - 1]) if kept else np.zeros(0)
    chosen = shifts[:kept]
    largest = np.abs(chosen).argmax(axis=1) if kept else np.zeros(0, np.int64)
    sign = np.where(chosen[np.arange(kept), largest] < 0, -1.0, 1.0)
    return Eigenvariations(sign[:, None] * chosen * sigma, envelope * sigma)


def round_trip_error(reduced: Eigenvariations, covariance: NDArray[np.float64]) -> RoundTripError:
    """How well the variations give the covariance (N, N) back; bins without uncertainty are left out."""
    sigma = _standard_deviations(covariance)
    known = sigma > 0
    if not known.any():
        return RoundTripError(0.0, 0.0, 0.0)
    rebuilt = reduced.covariance()[np.ix_(known, known)]
    scale = np.outer(sigma[known], sigma[known])
    difference = np.abs(rebuilt - covariance[np.ix_(known, known)]) / scale
    return RoundTripError(
        sigma=float(np.abs(np.sqrt(np.diag(rebuilt)) / sigma[known] - 1).max()),
        covariance=float(difference.max()),
        residual=float((reduced.envelope[known] / sigma[known]).max()),
    )


def _standard_deviations(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = np.diag(covariance)
    scale = np.sqrt(np.outer(np.abs(variance), np.abs(variance)))
    if (
        not np.isfinite(covariance).all()
        or (variance < 0).any()
        or (np.abs(covariance - covariance.T) > 1e-9 * scale).any()
    ):
        raise FitError(
            "the matrix is no covariance",
            expected="finite values, symmetric, with variances that are not negative",
        )
    return np.asarray(np.sqrt(variance))


def _correlation(covariance: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = np.outer(sigma, sigma)
    correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return np.asarray((correlation + correlation.T) / 2)
