"""The maximum mean discrepancy with Gaussian kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import Penalty, PenaltySample


class MaximumMeanDiscrepancy(Penalty):
    """MMD² = E k(X, X') + E k(Y, Y') - 2 E k(X, Y), Gretton et al. (2012), weighted U-statistic.

    k(x, y) = mean over b in ``bandwidths`` of exp(-|x - y|² / 2b²), with fixed b in units of the
    standardised coordinates: a bandwidth taken from the samples would let the tagger shrink its scores
    and the distance with them.
    """

    name: ClassVar[str] = "mmd"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def __init__(self, bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)) -> None:
        super().__init__()
        self.bandwidths = bandwidths

    def kernel(self, x: Float[Tensor, "n features"], y: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
        """k(x_i, y_j), one at zero distance."""
        square = (x[:, None] - y[None]).square().sum(2)
        return torch.stack([torch.exp(-0.5 * square / b**2) for b in self.bandwidths]).mean(0)

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        a, b = simulation.weight, data.weight
        between = (a @ self.kernel(simulation.points, data.points) @ b) / (a.sum() * b.sum())
        return self._within(simulation) + self._within(data) - 2.0 * between

    def scale(self, data: PenaltySample) -> float:
        """1 - E k(Y, Y'), the expectation of n MMD² (with the diagonal) for equal laws."""
        return 1.0 - float(self._within(data).detach())

    def _within(self, sample: PenaltySample) -> Float[Tensor, ""]:
        weight = sample.weight
        diagonal = weight.square().sum()
        pairs = weight @ self.kernel(sample.points, sample.points) @ weight - diagonal
        return pairs / (weight.sum().square() - diagonal)
