r"""Track quantities relative to the jet axis: angles, lifetime signs, significances.

With :math:`d_0` the signed distance of closest approach in the transverse plane, the point of closest
approach is :math:`(-d_0 \sin\phi,\; d_0 \cos\phi)`. Its projection on the jet axis is
:math:`d_0 \sin(\phi_{jet} - \phi)`, positive if the track crosses the axis downstream of the reference
point, as the tracks of a decay in flight do. Both ATLAS and CMS use this sign of :math:`d_0`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.errors import DataError

Column = NDArray[np.float64]


def relative_angles(eta: Column, phi: Column, jet_eta: Column, jet_phi: Column) -> tuple[Column, Column]:
    """(deta, dphi), track minus jet, dphi in [-pi, pi)."""
    return eta - jet_eta, (phi - jet_phi + np.pi) % (2 * np.pi) - np.pi


def pseudorapidity(theta: Column) -> Column:
    """eta = -ln tan(theta / 2)."""
    result: Column = -np.log(np.tan(theta / 2))
    return result


def signed_d0_significance(d0: Column, sigma_d0: Column, dphi: Column) -> Column:
    """|d0| / sigma(d0) with the sign of d0 sin(phi_jet - phi), dphi = phi - phi_jet."""
    return _signed(d0, sigma_d0, -np.sin(dphi))


def signed_z0_significance(z0_sin_theta: Column, sigma: Column, deta: Column) -> Column:
    """|z0 sin(theta)| / sigma with the sign of z0 (eta_jet - eta), deta = eta - eta_jet."""
    return _signed(z0_sin_theta, sigma, -deta)


def _signed(value: Column, sigma: Column, direction: Column) -> Column:
    with np.errstate(
        divide="ignore", invalid="ignore", over="ignore"
    ):  # sigma = 0 gives infinity, which is refused later
        return np.where(value * direction >= 0, 1.0, -1.0) * np.abs(value) / sigma


def z0_sin_theta_sigma(
    z0: Column, theta: Column, var_z0: Column, var_theta: Column, cov_z0_theta: Column
) -> Column:
    """Standard deviation of z0 sin(theta) from the covariance of z0 and theta.

    sigma^2 = sin^2(theta) var(z0) + z0^2 cos^2(theta) var(theta) + 2 z0 sin(theta) cos(theta) cov(z0, theta)
    """
    sine, cosine = np.sin(theta), np.cos(theta)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are refused later
        variance = sine**2 * var_z0 + (z0 * cosine) ** 2 * var_theta + 2 * z0 * sine * cosine * cov_z0_theta
        result: Column = np.sqrt(variance)
    return result


def require_conventions(card: DataCard, references: tuple[str, ...], file_format: str) -> None:
    """Refuse a card whose stated track conventions are not those of the format.

    Raises
    ------
    DataError
        If ``conventions.reference`` is given and not one of ``references``, or
        ``conventions.lifetime_sign`` is not ``jet_axis``, the only sign that is computed here.
    """
    stated = card.conventions
    if stated.reference is not None and stated.reference not in references:
        raise DataError(
            f"the card says that d0 refers to the {stated.reference}; in {file_format} it does not",
            where=f"data card of '{card.name}', conventions.reference",
            expected=" or ".join(references),
        )
    if stated.lifetime_sign not in (None, "jet_axis"):
        raise DataError(
            "the significances of ROOT files are signed here, by the projection on the jet axis",
            where=f"data card of '{card.name}', conventions.lifetime_sign",
            expected="jet_axis",
        )
