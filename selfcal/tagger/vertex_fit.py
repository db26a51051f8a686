"""Weighted χ² fit of vertices to lines or helices, differentiable (NDIVE, arXiv 2310.12804).

A vertex v of a jet minimises, with a weight w_i in [0, 1] for every track i,

    F(v) = Σ_i w_i r_iᵀ S_i⁻¹ r_i + (v − v₀)ᵀ Π (v − v₀),      S_i = J_i C_i J_iᵀ

r_i(v): distance of v from track i (transverse, longitudinal); C_i: the track's 5 × 5 covariance;
J_i = ∂r_i/∂(track). Each term is the minimum, over the true parameters α of a track through v, of
(α_i − α)ᵀ C_i⁻¹ (α_i − α) to first order: the full Billoir fit (Nucl. Instrum. Meth. A311 (1992) 139)
with the tracks' momenta profiled away; the minimum lies at α = α_i − C_i J_iᵀ S_i⁻¹ r_i.

The prior (mean v₀ = primary vertex, width ``prior_width_mm`` in each coordinate) makes every case
defined: no track or no weight gives v₀ with the prior's covariance; one track, or parallel ones,
the point of the line nearest to v₀. With it F is finite and its matrix of second derivatives is
positive definite, so gradients are finite too.

Gradient: v(x) obeys ∂F/∂v(v, x) = 0 for all inputs x (track parameters, covariances, weights), hence
dv/dx = −(∂²F/∂v²)⁻¹ ∂²F/∂v∂x, without a look at how the minimum was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfcal.tagger.perigee import Approach, Perigee, approach

PRIOR_WIDTH_MM = 20.0
"""Of the vertex position in each direction: keeps the fit of parallel tracks finite."""
PION_MASS_GEV = 0.13957039
MASS_RESOLUTION_GEV = 1e-3
"""Masses are √(m² + ε²) − ε with this ε: a vertex without tracks has mass 0 and a finite gradient."""

MAX_ITERATIONS = 50
_CONVERGED_STEP = 1e-7
_SLACK = 1e-12
"""A step counts as downward within this of its start, relative and absolute: rounding alone may undo it."""


@dataclass(frozen=True)
class VertexFit:
    """B jets with V vertices each, float64, in the frame of :mod:`selfcal.tagger.perigee`.

    Attributes
    ----------
    position_mm : (B, V, 3)
    covariance : (B, V, 3, 3) of the position, mm²: (½ Gauss-Newton matrix of F)⁻¹, prior included
    lxy_mm, lxy_significance : (B, V) x, the position along the jet's transverse direction; over its error
    chi2 : (B, V) Σ w r S⁻¹ r, without the prior
    n_tracks : (B, V) Σ w; the degrees of freedom are 2 n_tracks − 3
    mass_gev : (B, V) of Σ w (E, p), momenta at the vertex, pion masses
    converged : (B, V) the last step was below 1e-7 standard deviations
    """

    position_mm: Float[Tensor, "jets vertices 3"]
    covariance: Float[Tensor, "jets vertices 3 3"]
    lxy_mm: Float[Tensor, "jets vertices"]
    lxy_significance: Float[Tensor, "jets vertices"]
    chi2: Float[Tensor, "jets vertices"]
    n_tracks: Float[Tensor, "jets vertices"]
    mass_gev: Float[Tensor, "jets vertices"]
    converged: Bool[Tensor, "jets vertices"]


def fit_vertices(
    tracks: Perigee,
    valid: Bool[Tensor, "jets tracks"],
    weights: Float[Tensor, "jets vertices tracks"],
    *,
    prior_width_mm: float = PRIOR_WIDTH_MM,
) -> VertexFit:
    """Fit V vertices to the tracks of each of B jets (shapes (B, L), padded).

    Differentiable in the track parameters, covariances, momenta and weights. Jets do not
    influence each other. A track may belong to several vertices.

    Parameters
    ----------
    valid : False where padded; what stands there is ignored
    weights : in [0, 1]; those of padded tracks are ignored
    prior_width_mm : standard deviation of the prior around the primary vertex, in x, y and z

    Notes
    -----
    A fit that does not converge in 50 steps (tracks many standard deviations apart, all with
    large weights) keeps its best point, has ``converged`` False, and a finite gradient.
    """
    tracks = tracks.padded_safely(valid)
    problem = _Problem(
        tracks.parameters[:, None].double(),
        tracks.covariance[:, None].double(),
        torch.where(valid[:, None], weights.double(), 0.0),
        prior_width_mm**-2,
    )
    position, converged = _minimum(problem.detached())
    position = _with_implicit_gradient(problem, position)
    objective = problem.at(position)
    covariance = torch.linalg.inv(0.5 * objective.curvature)
    lxy = position[..., 0]
    return VertexFit(
        position_mm=position,
        covariance=covariance,
        lxy_mm=lxy,
        lxy_significance=lxy / covariance[..., 0, 0].sqrt(),
        chi2=objective.chi2,
        n_tracks=problem.weights.sum(-1),
        mass_gev=_mass(problem, tracks.pt_gev[:, None].double(), position),
        converged=converged,
    )


class _Objective(NamedTuple):
    """F, its exact gradient and its Gauss-Newton matrix at a point, and the χ² in F."""

    value: Float[Tensor, "jets vertices"]
    gradient: Float[Tensor, "jets vertices 3"]
    curvature: Float[Tensor, "jets vertices 3 3"]
    chi2: Float[Tensor, "jets vertices"]


@dataclass(frozen=True)
class _Problem:
    parameters: Float[Tensor, "jets 1 tracks 5"]
    covariance: Float[Tensor, "jets 1 tracks 5 5"]
    weights: Float[Tensor, "jets vertices tracks"]
    prior_precision: float

    def detached(self) -> _Problem:
        return _Problem(
            self.parameters.detach(), self.covariance.detach(), self.weights.detach(), self.prior_precision
        )

    def select(self, jets: Int[Tensor, " chosen"]) -> _Problem:
        return _Problem(
            self.parameters[jets], self.covariance[jets], self.weights[jets], self.prior_precision
        )

    def at(self, position: Float[Tensor, "jets vertices 3"]) -> _Objective:
        """Evaluate F at ``position``.

        With u = S⁻¹ r and π = C Jᵀ u, the change of the fitted track parameters,
        ∂F/∂v = 2 Σ w G̃ᵀ u + 2 Π (v − v₀), where G̃ = ∂r/∂v − (∂J/∂v) π is the derivative at
        the fitted instead of the measured parameters; the Gauss-Newton matrix is 2 Σ w G̃ᵀ S⁻¹ G̃ + 2 Π.
        """
        closest = approach(self.parameters, position[:, :, None])
        S = _propagated(self.parameters, self.covariance, closest)
        determinant = S.dd * S.zz - S.dz**2
        p_dd, p_dz, p_zz = S.zz / determinant, -S.dz / determinant, S.dd / determinant
        r_d, r_z = closest.transverse, closest.longitudinal
        u_d, u_z = p_dd * r_d + p_dz * r_z, p_dz * r_d + p_zz * r_z
        moved = u_d[..., None] * S.d_row + u_z[..., None] * S.z_row
        g_d, g_z = _slopes_at_fitted_tracks(self.parameters, closest, moved)

        w, prior = self.weights, self.prior_precision
        of_tracks = (w * (u_d * r_d + u_z * r_z)).sum(-1)
        slopes = torch.cat([g_d, g_z], dim=-2)
        weighted = torch.cat(
            [
                (w * p_dd)[..., None] * g_d + (w * p_dz)[..., None] * g_z,
                (w * p_dz)[..., None] * g_d + (w * p_zz)[..., None] * g_z,
            ],
            dim=-2,
        )
        pull = torch.cat([w * u_d, w * u_z], dim=-1)[..., None]
        unit = torch.eye(3, dtype=position.dtype, device=position.device)
        return _Objective(
            value=of_tracks + prior * (position**2).sum(-1),
            gradient=2.0 * (slopes.mT @ pull).squeeze(-1) + 2.0 * prior * position,
            curvature=2.0 * (slopes.mT @ weighted) + 2.0 * prior * unit,
            chi2=of_tracks,
        )


class _Propagated(NamedTuple):
    """S = J C Jᵀ by its elements, and the rows of J C."""

    dd: Float[Tensor, "*S"]
    dz: Float[Tensor, "*S"]
    zz: Float[Tensor, "*S"]
    d_row: Float[Tensor, "*S 5"]
    z_row: Float[Tensor, "*S 5"]


def _propagated(
    parameters: Float[Tensor, "*#S 5"], covariance: Float[Tensor, "*#S 5 5"], closest: Approach
) -> _Propagated:
    """J C Jᵀ with the rows (1, 0, a, 0, −a²/2) and (0, 1, b cos θ, ∂r_z/∂θ, 0) of J.

    This is J at κ = 0 except for r_d in κ, a relative error of order κa (0.01 at 10 mm and 0.6 GeV)
    in the propagated uncertainties of the angles. Written out: products of many small matrices are slow.
    """
    C, a = covariance, closest.along
    by_phi, by_theta, by_kappa = closest.across * parameters[..., 3].cos(), closest.by_theta, -0.5 * a**2
    d_row = C[..., 0, :] + a[..., None] * C[..., 2, :] + by_kappa[..., None] * C[..., 4, :]
    z_row = C[..., 1, :] + by_phi[..., None] * C[..., 2, :] + by_theta[..., None] * C[..., 3, :]
    return _Propagated(
        dd=d_row[..., 0] + a * d_row[..., 2] + by_kappa * d_row[..., 4],
        dz=d_row[..., 1] + by_phi * d_row[..., 2] + by_theta * d_row[..., 3],
        zz=z_row[..., 1] + by_phi * z_row[..., 2] + by_theta * z_row[..., 3],
        d_row=d_row,
        z_row=z_row,
    )


def _slopes_at_fitted_tracks(
    parameters: Float[Tensor, "*#S 5"], closest: Approach, moved: Float[Tensor, "*S 5"]
) -> tuple[Float[Tensor, "*S 3"], Float[Tensor, "*S 3"]]:
    """∂r/∂v − (∂J/∂v) π with the rows of (∂J/∂v) π: (π_φ − a π_κ) t, cos θ π_φ n − π_θ (sin θ t + cos θ e_z).

    t and n are the unit vectors along and to the left of the track in the transverse plane.
    """
    phi, theta = parameters[..., 2], parameters[..., 3]
    cos_phi, sin_phi, cos, sin = phi.cos(), phi.sin(), theta.cos(), theta.sin()
    by_phi, by_theta, by_kappa = moved[..., 2], moved[..., 3], moved[..., 4]
    along = by_phi - closest.along * by_kappa
    d_shift = torch.stack([along * cos_phi, along * sin_phi, 0.0 * along], dim=-1)
    t_part, n_part = -sin * by_theta, cos * by_phi
    z_shift = torch.stack(
        [t_part * cos_phi - n_part * sin_phi, t_part * sin_phi + n_part * cos_phi, -cos * by_theta], dim=-1
    )
    return closest.transverse_by_point - d_shift, closest.longitudinal_by_point - z_shift


def _minimum(
    problem: _Problem,
) -> tuple[Float[Tensor, "jets vertices 3"], Bool[Tensor, "jets vertices"]]:
    """Levenberg-Marquardt from v₀ = 0, every vertex with its own damping; finished ones stay.

    Most fits need 5 steps, a few 20: whenever half of the jets are finished, the others go on alone.
    """
    jets, vertices, _ = problem.weights.shape
    result = problem.weights.new_zeros(jets, vertices, 3)
    finished = torch.zeros(jets, vertices, dtype=torch.bool, device=result.device)
    open_jets = torch.arange(jets, device=result.device)
    position, damping, converged = result.clone(), result[..., 0].clone(), finished.clone()
    now = problem.at(position)
    for _ in range(MAX_ITERATIONS):
        diagonal = torch.diag_embed(damping[..., None] * now.curvature.diagonal(dim1=-2, dim2=-1))
        step = -torch.linalg.solve(now.curvature + diagonal, now.gradient)
        size = (step[..., None, :] @ (0.5 * now.curvature) @ step[..., None]).squeeze(-1).squeeze(-1)
        there = problem.at(position + step)
        better = (there.value <= now.value * (1 + _SLACK) + _SLACK) & ~converged
        position = torch.where(better[..., None], position + step, position)
        now = _Objective(
            *(
                torch.where(better[(...,) + (None,) * (new.ndim - 2)], new, old)
                for new, old in zip(there, now, strict=True)
            )
        )
        converged = converged | (better & (size < _CONVERGED_STEP**2))
        damping = torch.where(better, torch.where(damping > 1e-4, damping / 10, 0.0), damping * 10 + 1e-3)
        result[open_jets], finished[open_jets] = position, converged
        rows = (~converged.all(dim=1)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        if 2 * len(rows) <= len(open_jets):
            problem, now = problem.select(rows), _Objective(*(value[rows] for value in now))
            position, damping, converged = position[rows], damping[rows], converged[rows]
            open_jets = open_jets[rows]
    return result, finished


def _with_implicit_gradient(
    problem: _Problem, position: Float[Tensor, "jets vertices 3"]
) -> Float[Tensor, "jets vertices 3"]:
    """``position`` as a function of the inputs: v − H⁻¹ ∂F/∂v(v, x), with v and H = ∂²F/∂v² held fixed.

    Its value is one more Newton step (nothing, at a minimum), its derivative the implicit function theorem's.
    Where H is not positive definite (no minimum was reached), the Gauss-Newton matrix stands in.
    """
    inputs = (problem.parameters, problem.covariance, problem.weights)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return position
    free = position.clone().requires_grad_()
    at_minimum = problem.detached().at(free)
    rows = [
        torch.autograd.grad(at_minimum.gradient[..., k].sum(), free, retain_graph=k < 2)[0] for k in range(3)
    ]
    hessian = torch.stack(rows, dim=-2)
    hessian = 0.5 * (hessian + hessian.mT)
    definite = torch.linalg.cholesky_ex(hessian).info == 0
    hessian = torch.where(definite[..., None, None], hessian, at_minimum.curvature.detach())
    gradient = problem.at(position).gradient
    attached: Tensor = position - torch.linalg.solve(hessian, gradient)
    return attached


def _mass(
    problem: _Problem,
    pt_gev: Float[Tensor, "jets 1 tracks"],
    position: Float[Tensor, "jets vertices 3"],
) -> Float[Tensor, "jets vertices"]:
    """√(m² + ε²) − ε with m² of Σ w (E, p): directions of the measured tracks where they pass the vertex."""
    azimuth = approach(problem.parameters, position[:, :, None]).azimuth
    theta = problem.parameters[..., 3]
    momentum = torch.stack([azimuth.cos(), azimuth.sin(), (theta.cos() / theta.sin()).expand_as(azimuth)], -1)
    momentum = momentum * pt_gev[..., None]
    energy = torch.sqrt((momentum**2).sum(-1) + PION_MASS_GEV**2)
    total = (problem.weights[..., None] * momentum).sum(-2)
    squared = (problem.weights * energy).sum(-1) ** 2 - (total**2).sum(-1)
    epsilon = MASS_RESOLUTION_GEV
    mass: Tensor = torch.sqrt(squared.clamp(min=0.0) + epsilon**2) - epsilon
    return mass
