"""Tracks as lines or helices through their perigee, and where they pass a point.

Frame of a jet: origin at the reconstructed primary vertex, z along the beam, x along the
jet's transverse direction (so the azimuth of a track is ``dphi``), lengths in mm. The
perigee is the point closest to the z axis,

    P = (−d0 sin φ, d0 cos φ, z0),    direction (cos φ sin θ, sin φ sin θ, cos θ),

with φ the azimuth at P; d0 > 0 if the z axis is to the right of the track as seen along it.
κ is the signed curvature: the centre of the transverse circle is (d0 − 1/κ)(−sin φ, cos φ)
and φ falls by κ per mm of transverse path for κ > 0, as for positive charge in a field
along +z. κ = 0 is a straight line; all formulas are smooth there. Jet axis, primary vertex
and perigee of the tracks are those of the file: no transverse beam-spot offset is applied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.data.field_names import require_track_fields
from selfcal.data.jets import Jets
from selfcal.errors import DataError

PERIGEE_FIELDS: tuple[str, ...] = (
    "d0",
    "z0SinTheta",
    "deta",
    "dphi",
    "qOverP",
    "lifetimeSignedD0Significance",
    "lifetimeSignedZ0SinThetaSignificance",
    "phiUncertainty",
    "thetaUncertainty",
    "qOverPUncertainty",
)
"""The track fields from which :func:`perigee_from_fields` computes lines or helices, in its column order."""

CURVATURE_GEV_PER_MM_TESLA = 0.299792458e-3
"""κ pT / (q B): the curvature of 1 GeV of transverse momentum in 1 T."""

SMALLEST_IMPACT_SIGMA_MM = 1e-3
SMALLEST_ANGLE_SIGMA = 1e-6
SMALLEST_INVERSE_MOMENTUM_PER_GEV = 1e-5
_MISSING_SIGMA_MM = ((0.010, 0.095), (0.038, 0.120))
"""(a, b) of a ⊕ b/(pT √sin θ) for d0 and z0 sin θ, where a significance of zero hides the uncertainty."""


def perigee_columns(jets: Jets) -> NDArray[np.float32]:
    """The columns ``PERIGEE_FIELDS`` and η of the jet for every track, (T, 11).

    Raises
    ------
    DataError
        If the jets lack one of the fields, or one is NaN or infinite.
    """
    without = "set 'tagger.vertex_fit' to false"
    require_track_fields(jets, PERIGEE_FIELDS, by="a fit of vertices", instead=without)
    fields = jets.tracks[:, [jets.track_fields.index(name) for name in PERIGEE_FIELDS]]
    jet_eta = np.repeat(jets.eta, jets.n_tracks)[:, None]
    columns = np.concatenate([fields, jet_eta], axis=1).astype(np.float32)
    if not np.isfinite(columns).all():
        raise DataError(
            "NaN or infinite parameters of tracks",
            where=jets.dataset,
            expected="finite numbers: the tagger never replaces missing values",
            fix="find out where they come from, or drop these jets with a selection in the data card",
        )
    return columns


@dataclass(frozen=True)
class Perigee:
    """Tracks of any batch shape ``*T`` (packed, or padded jets × tracks).

    Attributes
    ----------
    parameters : (*T, 5) d0 (mm), z0 sin θ (mm), φ (rad), θ (rad), κ (1/mm)
    covariance : (*T, 5, 5) of these, positive definite in d0 and z0 sin θ
    pt_gev : (*T,) transverse momentum
    """

    parameters: Float[Tensor, "*tracks 5"]
    covariance: Float[Tensor, "*tracks 5 5"]
    pt_gev: Float[Tensor, "*tracks"]

    def padded_safely(self, valid: Bool[Tensor, "*tracks"]) -> Perigee:
        """Tracks that are not ``valid`` become harmless: unit covariance, θ = π/2, no NaN from garbage."""
        neutral = self.parameters.new_tensor([0.0, 0.0, 0.0, torch.pi / 2, 0.0])
        unit = torch.eye(5, dtype=self.covariance.dtype, device=self.covariance.device)
        return Perigee(
            torch.where(valid[..., None], self.parameters, neutral),
            torch.where(valid[..., None, None], self.covariance, unit),
            torch.where(valid, self.pt_gev, 1.0),
        )


def perigee_from_fields(
    fields: Float[Tensor, "*tracks 10"],
    jet_eta: Float[Tensor, "*tracks"],
    *,
    field_tesla: float = 2.0,
) -> Perigee:
    """Perigee parameters and covariance of tracks from the fields of a file, in float64.

    η = η_jet + deta, θ = 2 atan(e^−η), φ = dphi, pT = sin θ / |q/p|, κ = 0.2998e-3 B (q/p) / sin θ.
    σ(d0) = |d0 / significance| and likewise z0 sin θ (a significance of exactly zero hides σ:
    then 10 µm ⊕ 95 µm GeV/(pT √sin θ), and 38 ⊕ 120 µm). A file quotes no correlations: the
    covariance is diagonal in (d0, z0 sin θ, φ, θ, q/p), and κ inherits its dependence on θ.

    Parameters
    ----------
    fields : columns :data:`PERIGEE_FIELDS`, in the units of the file (mm, rad, 1/MeV)
    jet_eta : η of each track's jet
    field_tesla : solenoid field; 0 makes straight lines
    """
    columns = fields.double().unbind(-1)
    d0, z0_sin, deta, phi, q_over_p_mev, d0_significance, z0_significance = columns[:7]
    theta = 2.0 * torch.atan(torch.exp(-(jet_eta.double() + deta)))
    sin = theta.sin()
    charge = torch.where(q_over_p_mev < 0, -1.0, 1.0)
    inverse_momentum = (1000.0 * q_over_p_mev.abs()).clamp(min=SMALLEST_INVERSE_MOMENTUM_PER_GEV)
    pt = sin / inverse_momentum
    curvature = CURVATURE_GEV_PER_MM_TESLA * field_tesla * charge / pt

    sigma_d0, sigma_z0 = (
        torch.where(
            (significance != 0) & (value != 0),
            (value / torch.where(significance != 0, significance, 1.0)).abs(),
            torch.hypot(torch.full_like(pt, a), b / (pt * sin.sqrt())),
        ).clamp(min=SMALLEST_IMPACT_SIGMA_MM)
        for value, significance, (a, b) in zip(
            (d0, z0_sin), (d0_significance, z0_significance), _MISSING_SIGMA_MM, strict=True
        )
    )
    sigma_phi, sigma_theta = (column.clamp(min=SMALLEST_ANGLE_SIGMA) for column in columns[7:9])
    relative = 1000.0 * columns[9] / inverse_momentum
    per_theta = -curvature * theta.cos() / sin
    covariance = torch.diag_embed(
        torch.stack(
            [
                sigma_d0**2,
                sigma_z0**2,
                sigma_phi**2,
                sigma_theta**2,
                (relative * curvature) ** 2 + (per_theta * sigma_theta) ** 2,
            ],
            dim=-1,
        )
    )
    covariance[..., 3, 4] = covariance[..., 4, 3] = per_theta * sigma_theta**2
    return Perigee(torch.stack([d0, z0_sin, phi, theta, curvature], dim=-1), covariance, pt)


@dataclass(frozen=True)
class Approach:
    """How tracks pass points; ``*S`` is the common batch shape of points and tracks.

    Attributes
    ----------
    transverse, longitudinal : (*S,) r_d and r_z = (z_track − z_point) sin θ at the closest approach, mm
    transverse_by_point, longitudinal_by_point : (*S, 3) their derivatives in the point
    azimuth : (*S,) φ of the track at the closest approach
    along, across : (*S,) coordinates a, b of the point along and to the left of the track's direction
    by_theta : (*S,) ∂r_z/∂θ = −(a sin θ + z cos θ)
    """

    transverse: Float[Tensor, "*S"]
    longitudinal: Float[Tensor, "*S"]
    transverse_by_point: Float[Tensor, "*S 3"]
    longitudinal_by_point: Float[Tensor, "*S 3"]
    azimuth: Float[Tensor, "*S"]
    along: Float[Tensor, "*S"]
    across: Float[Tensor, "*S"]
    by_theta: Float[Tensor, "*S"]


def approach(parameters: Float[Tensor, "*#S 5"], point_mm: Float[Tensor, "*#S 3"]) -> Approach:
    """Signed distances of helices from points, for points nearer to the axis than the circles' centres.

    With a, b the coordinates of the point along (cos φ, sin φ) and (−sin φ, cos φ), δ = d0 − b,
    D = √((1 − κδ)² + κ²a²) (distance from the circle's centre over its radius):

        r_d = (1 − D)/κ = (2δ − κ(δ² + a²)) / (1 + D)
        s   = atan(κa / (1 − κδ)) / κ                       transverse path from the perigee
        r_z = z0 sin θ + s cos θ − z sin θ
    """
    d0, z0_sin, phi, theta, kappa = parameters.unbind(-1)
    x, y, z = point_mm.unbind(-1)
    cos_phi, sin_phi, cos, sin = phi.cos(), phi.sin(), theta.cos(), theta.sin()
    a, b = x * cos_phi + y * sin_phi, y * cos_phi - x * sin_phi
    delta = d0 - b
    inner = 1.0 - kappa * delta
    squared = inner**2 + (kappa * a) ** 2
    distance = squared.sqrt()
    tangent = kappa * a / inner
    path = a / inner * _atan_over_argument(tangent)
    turn_cos, turn_sin = inner / distance, -kappa * a / distance
    along, across = cos * inner / squared, -cos * kappa * a / squared
    return Approach(
        transverse=(2.0 * delta - kappa * (delta**2 + a**2)) / (1.0 + distance),
        longitudinal=z0_sin + path * cos - z * sin,
        transverse_by_point=torch.stack(
            [turn_cos * sin_phi + turn_sin * cos_phi, turn_sin * sin_phi - turn_cos * cos_phi, 0.0 * a],
            dim=-1,
        ),
        longitudinal_by_point=torch.stack(
            [along * cos_phi - across * sin_phi, along * sin_phi + across * cos_phi, 0.0 * a - sin], dim=-1
        ),
        azimuth=phi - torch.atan(tangent),
        along=a,
        across=b,
        by_theta=-(a * sin + z * cos),
    )


def _atan_over_argument(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """atan(x)/x, with its series near 0, where the quotient (and its derivative) would be 0/0."""
    small = x.abs() < 1e-2
    series = 1.0 - x**2 * (1 / 3 - x**2 * (1 / 5 - x**2 * (1 / 7 - x**2 / 9)))
    safe = torch.where(small, 1.0, x)
    return torch.where(small, series, torch.atan(safe) / safe)
