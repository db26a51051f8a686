"""Resolution of the parametric tracker.

``sigma(d0) = a (+) b / (pT sqrt(sin theta))`` with a = 10 um, b = 95 um GeV, the
same for ``z0 sin theta`` with a = 38 um, b = 120 um GeV ((+): sum in quadrature).
Against ATLAS full simulation sigma(d0) is 42 / 21.9 / 15.1 um (35 / 21.6 / 14.1)
for pT of 2-5 / 5-10 / >10 GeV. Momentum: sigma(pT)/pT = 0.013 (+) 3.5e-4 pT/GeV.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

D0_ASYMPTOTIC_MM, D0_SCATTERING_MM_GEV = 0.010, 0.095
Z0_ASYMPTOTIC_MM, Z0_SCATTERING_MM_GEV = 0.038, 0.120
NO_INNERMOST_ASYMPTOTIC, NO_INNERMOST_SCATTERING = 2.0, 1.35
SHARED_INNERMOST = 1.2
"""Factor of σ(d0) and σ(z0) for tracks that share their innermost hit."""

TAIL_FRACTIONS = (0.06, 0.008)
TAIL_WIDTHS = (2.0, 5.0)


def impact_sigma_mm(
    pt_gev: Floats,
    sin_theta: Floats,
    asymptotic_mm: float,
    scattering_mm_gev: float,
    has_innermost: NDArray[np.bool_] | None = None,
    shared_innermost: NDArray[np.bool_] | None = None,
) -> Floats:
    """Core resolution a (+) b/(pT sqrt(sin theta)) in mm, any common shape.

    Without a hit in the innermost layer a is doubled and b grows by 1.35 (lever
    arm); a shared innermost hit costs 1.2. Left out, both are as good as can be.
    """
    a, b = np.full_like(pt_gev, asymptotic_mm), np.full_like(pt_gev, scattering_mm_gev)
    if has_innermost is not None:
        a = np.where(has_innermost, a, NO_INNERMOST_ASYMPTOTIC * a)
        b = np.where(has_innermost, b, NO_INNERMOST_SCATTERING * b)
    sigma = np.hypot(a, b / (pt_gev * np.sqrt(sin_theta)))
    if shared_innermost is not None:
        sigma = np.where(shared_innermost, SHARED_INNERMOST * sigma, sigma)
    return sigma


def relative_momentum_sigma(pt_gev: Floats) -> Floats:
    """sigma(pT)/pT = 0.013 (+) 3.5e-4 pT/GeV."""
    return np.hypot(0.013, 3.5e-4 * pt_gev)


def phi_sigma(pt_gev: Floats) -> Floats:
    """sigma(phi) = 0.07 mrad (+) 0.9 mrad GeV / pT."""
    return np.hypot(7.0e-5, 9.0e-4 / pt_gev)


def theta_sigma(pt_gev: Floats, sin_theta: Floats) -> Floats:
    """sigma(theta) = (0.3 mrad (+) 1.1 mrad GeV / pT) sin(theta)."""
    return np.hypot(3.0e-4, 1.1e-3 / pt_gev) * sin_theta


def jet_relative_sigma(pt_gev: Floats) -> Floats:
    """Relative jet momentum resolution 0.60/sqrt(pT/GeV) (+) 0.04."""
    return np.hypot(0.60 / np.sqrt(pt_gev), 0.04)


def jet_axis_sigma(pt_gev: Floats) -> Floats:
    """Resolution of the jet direction in eta and in phi, 0.3 GeV/pT (+) 0.004 rad."""
    return np.hypot(0.3 / pt_gev, 0.004)


def tail_width(uniform: Floats, fraction_scale: float, crowding: Floats) -> Floats:
    """Width of each track's error in units of its core: 1, or 2 (6 %), or 5 (0.8 %).

    The fractions are multiplied by ``fraction_scale`` and by (1 + 2 crowding),
    ``crowding`` in [0, 1]; together they are kept below 0.9.
    """
    wide = np.minimum(TAIL_FRACTIONS[1] * fraction_scale * (1.0 + 2.0 * crowding), 0.3)
    medium = np.minimum(TAIL_FRACTIONS[0] * fraction_scale * (1.0 + 2.0 * crowding), 0.6)
    return np.select([uniform < wide, uniform < wide + medium], [TAIL_WIDTHS[1], TAIL_WIDTHS[0]], 1.0)
