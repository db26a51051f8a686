"""The stiff map: a triangular affine transformation, linear in the conditions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.transport.maps import InvertibleMap


class AffineMap(InvertibleMap):
    """T(u | c) = L(c) u + b(c), L lower triangular with diagonal exp(a(c)).

    a, b and the part of L below the diagonal are linear in (1, c). All weights start
    at zero: the identity. Their Gaussian prior has width ``prior_width`` for the
    constant terms, half of it for the slopes in c: a detector distorts by tenths of
    the spread of the scores, and smoothly.
    """

    def __init__(self, coordinates: int, conditions: int, prior_width: float) -> None:
        super().__init__()
        self.dimension = coordinates
        self.prior_width = prior_width
        parameters = 2 * coordinates + coordinates * (coordinates - 1) // 2
        self.constant = nn.Parameter(torch.zeros(parameters, dtype=torch.float64))
        self.slope = nn.Parameter(torch.zeros(conditions, parameters, dtype=torch.float64))

    def matrix_and_shift(
        self, conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets row column"], Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        """L(c), b(c) and ln det L(c) of every jet."""
        d = self.dimension
        values = self.constant + conditions @ self.slope
        log_diagonal, shift, lower = values[:, :d], values[:, d : 2 * d], values[:, 2 * d :]
        matrix = torch.diag_embed(log_diagonal.exp())
        below = torch.zeros_like(matrix)
        rows, columns = torch.tril_indices(d, d, -1)
        below[:, rows, columns] = lower
        return matrix + below, shift, log_diagonal.sum(1)

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        matrix, shift, _ = self.matrix_and_shift(conditions)
        return (matrix @ coordinates[:, :, None])[:, :, 0] + shift

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        matrix, shift, log_det = self.matrix_and_shift(conditions)
        solved = torch.linalg.solve_triangular(matrix, (coordinates - shift)[:, :, None], upper=False)
        return solved[:, :, 0], -log_det

    def leading(self, coordinates: int) -> AffineMap:
        """What the map does to the first ``coordinates`` coordinates: it depends on no later one."""
        d, first = self.dimension, coordinates
        below = first * (first - 1) // 2
        kept = [*range(first), *range(d, d + first), *range(2 * d, 2 * d + below)]
        result = AffineMap(first, len(self.slope), self.prior_width)
        with torch.no_grad():
            result.constant.copy_(self.constant[kept])
            result.slope.copy_(self.slope[:, kept])
        return result

    def stiffness(self) -> Float[Tensor, ""]:
        width = self.prior_width
        return 0.5 * ((self.constant / width).square().sum() + (self.slope / (0.5 * width)).square().sum())
