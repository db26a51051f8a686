"""A quadratic emulator of binned summaries, and how wrong it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from selfcal.errors import FitError

Floats = NDArray[np.float64]
DESIGN_REACH = 2.5
"""No point of a design lies further out, in units of its width."""


@dataclass(frozen=True)
class QuadraticEmulator:
    """y(θ) = y(θ_0) + Σ_i a_i u_i + Σ_i≤j b_ij u_i u_j with u = (θ - centre)/width.

    Attributes
    ----------
    centre, width : (D,)
    coefficients : (C, M) of M outputs
    error : (M,) root mean square of the leave-one-out residuals
    cross : whether products of different parameters are among the terms
    """

    centre: Floats
    width: Floats
    coefficients: Floats
    error: Floats
    cross: bool

    def __call__(self, theta: Floats) -> Floats:
        """Outputs at ``theta`` (D,) or (n, D): (M,) or (n, M)."""
        return terms((theta - self.centre) / self.width, cross=self.cross) @ self.coefficients


def terms(u: Floats, *, cross: bool) -> Floats:
    """1, u_i, u_i² and, with ``cross``, u_i u_j (i < j) along the last axis."""
    parts = [np.ones((*u.shape[:-1], 1)), u, u**2]
    if cross:
        first, second = np.triu_indices(u.shape[-1], 1)
        parts.append(u[..., first] * u[..., second])
    return np.concatenate(parts, axis=-1)


def n_terms(dimension: int, *, cross: bool) -> int:
    """Number of coefficients."""
    return 1 + 2 * dimension + cross * dimension * (dimension - 1) // 2


def gaussian_design(centre: Floats, width: Floats, points: int, seed: int) -> Floats:
    """Points spread like a Gaussian, evenly filled (scrambled Sobol numbers), (points, D)."""
    sobol = qmc.Sobol(len(centre), scramble=True, rng=seed)
    uniform = sobol.random_base2(max(int(np.ceil(np.log2(points))), 1))[:points]
    normal = np.clip(ndtri(np.clip(uniform, 1e-9, 1 - 1e-9)), -DESIGN_REACH, DESIGN_REACH)
    return np.asarray(centre + width * normal, dtype=np.float64)


def fit_emulator(
    design: Floats, outputs: Floats, centre: Floats, width: Floats, *, cross: bool
) -> QuadraticEmulator:
    """Least squares; the error of each output is that of points left out, e_i / (1 - H_ii).

    Parameters
    ----------
    design : (n, D) and outputs : (n, M)

    Raises
    ------
    FitError
        If there are not more points than terms.
    """
    matrix = terms((design - centre) / width, cross=cross)
    if len(matrix) <= matrix.shape[1]:
        raise FitError(
            f"{len(matrix)} points for {matrix.shape[1]} terms of the emulator",
            expected="more points than terms",
            fix="raise inference.points",
        )
    coefficients, *_ = np.linalg.lstsq(matrix, outputs, rcond=None)
    leverage = (np.linalg.qr(matrix)[0] ** 2).sum(axis=1)
    left_out = (outputs - matrix @ coefficients) / np.maximum(1 - leverage, 1e-6)[:, None]
    error = np.sqrt((left_out**2).mean(axis=0))
    return QuadraticEmulator(centre, width, np.asarray(coefficients, np.float64), error, cross)
