"""Optimal transport by construction: the gradient of a convex function."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.calibration import MapConfig
from selfcal.errors import FitError
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.maps import InvertibleMap

NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-11
"""Largest |T(u) - y| in standard deviations at which the inverse is found."""


class _NotNegative(torch.autograd.Function):
    """max(w, 0), whose gradient lets a weight at zero grow but not fall: projected descent."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.clamp_min(0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        (gradient,) = gradients
        return torch.where((weight > 0) | (gradient < 0), gradient, 0.0)


class BrenierMap(InvertibleMap):
    """T(u | c) = ∇_u φ(u | c), φ convex in u: by Brenier's theorem no map with the same result costs less.

        φ(u | c) = ½ |L(c)ᵀ u|² + b(c)·u + Σ_j a_j e^{t_j(c)} s(P s(W u + β(c)) + Q u + γ(c))_j

    s is the softplus and P, a ≥ 0: a partially input-convex network of two layers (arXiv 1609.07152), as
    used for jets in 2307.05187 and 2505.13063, with the quadratic part that carries all maps between
    Gaussians. Convex in u for each c only: jets are not moved in pT or |eta|, and the cost is minimal at
    fixed c. L and b are linear in (1, c), the other functions of c a network. With L = 1, b = 0, a = 0
    it starts as the identity.

    The gradient and the Hessian H are written out; the inverse takes Newton's steps on the convex function
    φ(u) - y·u, and the derivative of the inverse is that of the implicit function.
    """

    minimality = "by construction"

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        width = config.hidden_width
        # The matrix is L Lᵀ: half the logarithmic scale each.
        self.quadratic = AffineMap(coordinates, conditions, config.displacement_scale)
        self.inner = nn.Linear(coordinates, width, bias=False).double()
        self.skip = nn.Linear(coordinates, width, bias=False).double()
        self.positive = nn.Parameter(torch.rand(width, width, dtype=torch.float64) / width)
        self.amplitude = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.context = nn.Sequential(
            nn.Linear(conditions, width), nn.SiLU(), nn.Linear(width, 3 * width)
        ).double()

    def _gradient_and_hessian(
        self, u: Tensor, c: Tensor, *, hessian: bool = True
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, "jets row column"]]:
        lower, shift, _ = self.quadratic.matrix_and_shift(c)
        beta, gamma, tilt = self.context(c).chunk(3, dim=1)
        positive = _not_negative(self.positive)
        amplitude = _not_negative(self.amplitude) * tilt.tanh().exp()
        first = self.inner(u) + beta
        second = _softplus(first) @ positive.T + self.skip(u) + gamma
        outer, middle = amplitude * second.sigmoid(), first.sigmoid()
        back = outer @ positive
        matrix = lower @ lower.transpose(1, 2)
        moved = (matrix @ u[:, :, None])[:, :, 0] + shift
        moved = moved + outer @ self.skip.weight + (middle * back) @ self.inner.weight
        if not hessian:
            return moved, matrix
        # ∂second/∂u, (jets, width, coordinates)
        slope = self.skip.weight + (positive[None] * middle[:, None, :]) @ self.inner.weight
        curvature = outer * (1.0 - second.sigmoid())
        matrix = matrix + slope.transpose(1, 2) @ (curvature[:, :, None] * slope)
        bend = middle * (1.0 - middle) * back
        return moved, matrix + self.inner.weight.T @ (bend[:, :, None] * self.inner.weight)

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        return self._gradient_and_hessian(coordinates, conditions, hessian=False)[0]

    def log_abs_det_jacobian(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, " jets"]:
        return _log_det(self._gradient_and_hessian(coordinates, conditions)[1])

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        """Raises FitError if Newton's steps do not converge."""
        found = self._solve(coordinates, conditions)
        moved, matrix = self._gradient_and_hessian(found, conditions)
        # At the solution this adds nothing; its derivative is du = H⁻¹ (dy - d∇φ).
        found = found + torch.linalg.solve(matrix.detach(), (coordinates - moved)[:, :, None])[:, :, 0]
        return found, -self.log_abs_det_jacobian(found, conditions)

    @torch.no_grad()
    def _solve(self, target: Tensor, conditions: Tensor) -> Tensor:
        u = target.clone()
        open_rows = torch.arange(len(u))
        for _ in range(NEWTON_STEPS):
            y, c = target[open_rows], conditions[open_rows]
            moved, matrix = self._gradient_and_hessian(u[open_rows], c)
            still = (y - moved).abs().amax(1) > NEWTON_TOLERANCE * (1.0 + y.abs().amax(1))
            if not still.any():
                return u
            open_rows, y, c = open_rows[still], y[still], c[still]
            step = torch.linalg.solve(matrix[still], (y - moved[still])[:, :, None])[:, :, 0]
            u[open_rows] += self._damping(u[open_rows], step, y, c) * step
        raise FitError(
            f"the inverse of a map was not found for {len(open_rows)} of {len(u)} jets",
            where="BrenierMap",
            expected=f"|T(u) - y| below {NEWTON_TOLERANCE:g} after {NEWTON_STEPS} steps",
            fix="lower calibration.map.learning_rate",
        )

    def _damping(self, u: Tensor, step: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """Largest of 1, ½, ¼, … per jet at which the step does not climb the other side of φ(u) - y·u."""
        size = torch.ones_like(u[:, :1])

        def slope(at: Tensor) -> Tensor:
            moved = self._gradient_and_hessian(at, c, hessian=False)[0]
            along: Tensor = ((moved - y) * step).sum(1, keepdim=True)
            return along

        start = slope(u).abs()
        for _ in range(30):
            too_far = slope(u + size * step) > 0.9 * start
            if not too_far.any():
                break
            size = torch.where(too_far, 0.5 * size, size)
        return size

    def stiffness(self) -> Float[Tensor, ""]:
        return self.quadratic.stiffness()


def _softplus(t: Tensor) -> Tensor:
    """ln(1 + eᵗ), of parts that ONNX Runtime has in float64."""
    return torch.log1p((-t.abs()).exp()) + 0.5 * (t + t.abs())


def _not_negative(weight: Tensor) -> Tensor:
    if not weight.requires_grad:  # a finished map, which an exporter can follow
        return weight.clamp_min(0.0)
    result: Tensor = _NotNegative.apply(weight)  # type: ignore[no-untyped-call]
    return result


def _log_det(matrix: Float[Tensor, "jets row column"]) -> Float[Tensor, " jets"]:
    """ln det of symmetric positive matrices."""
    diagonal: Tensor = torch.linalg.cholesky(matrix).diagonal(dim1=1, dim2=2)
    return 2.0 * diagonal.log().sum(1)
