"""Relative shifts of the templates: modes of the map's bootstrap and of the detector, other map models.

Shifts may be smoothed along the discriminant and pruned where they are negligible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

SHIFT_MAX = float(np.log(10))
"""Largest logarithmic shift: far beyond it the polynomial of pyhf's code 4 dips below zero."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MapModes:
    """Bootstrap variance of one flavour's templates.

    Attributes
    ----------
    modes : (J, R, P, K) relative shift at one standard deviation of each mode
    rest : (P, K) relative standard deviation that the modes leave over, in the reference region
    """

    modes: Float[Array, "J R P K"]
    rest: Float[Array, "P K"]


def relative_shift(varied: Float[Array, "*shape"], nominal: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """varied/nominal − 1, zero where the nominal template is empty."""
    return np.divide(varied - nominal, nominal, out=np.zeros_like(varied), where=nominal > 0)


def map_modes(
    replicas: Float[Array, "M R P K"],
    calibrated: Float[Array, "R P K"],
    reference: int,
    variance_kept: float,
) -> MapModes:
    """Principal modes of bootstrap replicas in the reference region, carried to all regions.

    With X_m the relative deviation of replica m from their mean in the reference region,
    X/√(M−1) = U S Vᵀ; mode j there is S_j V_j, and in region r it is the projection
    Σ_m U_mj X^r_m/√(M−1) of that region's deviations. The modes kept hold ``variance_kept``
    of the variance; what they leave over is returned per bin.
    """
    count = len(replicas)
    deviation = (replicas - replicas.mean(axis=0)) / np.sqrt(count - 1)
    scaled = np.divide(deviation, calibrated, out=np.zeros_like(deviation), where=calibrated > 0)
    flat = scaled[:, reference].reshape(count, -1)
    left, singular, _ = np.linalg.svd(flat, full_matrices=False)
    total = (singular**2).sum()
    if total == 0:
        return MapModes(np.zeros((0, *calibrated.shape)), np.zeros(calibrated.shape[1:]))
    kept = int(np.searchsorted(np.cumsum(singular**2) / total, variance_kept) + 1)
    modes = np.einsum("mj,mrpk->jrpk", left[:, :kept], scaled)
    variance = (scaled[:, reference] ** 2).sum(axis=0) - (modes[:, reference] ** 2).sum(axis=0)
    return MapModes(modes, np.sqrt(np.maximum(variance, 0.0)))


def smoothed(
    shift: Float[Array, "R P K"], content: Float[Array, "R P K"], degree: int
) -> Float[Array, "R P K"]:
    """Polynomials of ``degree`` in place of the shifts of a channel's K bins.

    The variable is x_k, the part of the template below the middle of bin k; the fit is weighted with the
    template t_k. It has a constant term, so that Σ_k t_k s_k, the change of the yield, stays the same. Bins
    without content, and channels with no more bins than coefficients, stay as they are.
    """
    result = shift.copy()
    for place in np.ndindex(shift.shape[:2]):
        weight, filled = content[place], content[place] > 0
        if filled.sum() <= degree + 1:
            continue
        x = (np.cumsum(weight) - weight / 2) / weight.sum()
        design = np.vander(x[filled] - 0.5, degree + 1)
        root = np.sqrt(weight[filled])
        coefficients = np.linalg.lstsq(design * root[:, None], shift[place][filled] * root, rcond=None)[0]
        result[place][filled] = design @ coefficients
    return result


def pruned(shift: Float[Array, "R P K"], below: float) -> tuple[Float[Array, "R P K"], int, float]:
    """The shift without channels in which no bin moves by ``below`` or more.

    Returns
    -------
    shift, number of channels pruned, and the largest shift (in size) among them
    """
    size = np.abs(shift).max(axis=2)
    small = (size < below) & (size > 0)
    kept = np.where(small[:, :, None], 0.0, shift)
    return kept, int(small.sum()), float(size[small].max(initial=0.0))


def independent_modes(
    varied: Float[Array, "J R F P K"], nominal: Float[Array, "R F P K"], variance_kept: float
) -> Float[Array, "M R F P K"]:
    """Fewer templates for the same Gaussian uncertainty.

    The rows of ``varied`` are templates at one standard deviation of independent parameters. With
    X_j = (varied_j - nominal)/√nominal = U S Vᵀ, rotating these parameters by U leaves them independent
    and makes the shifts S_m V_m √nominal, largest first; those that hold ``variance_kept`` of
    Σ S² are kept.
    """
    scale = np.sqrt(np.maximum(nominal, 1e-12))
    shift = ((varied - nominal) / scale).reshape(len(varied), nominal.size)
    _, singular, right = np.linalg.svd(shift, full_matrices=False)
    total = (singular**2).sum()
    if total == 0:
        return np.zeros((0, *nominal.shape))
    kept = int(np.searchsorted(np.cumsum(singular**2) / total, variance_kept) + 1)
    modes = (singular[:kept, None] * right[:kept]).reshape(-1, *nominal.shape)
    return np.asarray(np.maximum(nominal + modes * scale, 0.0))
