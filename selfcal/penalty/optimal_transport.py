"""Penalties of optimal transport, on POT: sliced Wasserstein distance and Sinkhorn divergence."""

from __future__ import annotations

from typing import ClassVar

import ot
import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import Penalty, PenaltySample


def _total_variance(sample: PenaltySample) -> float:
    """Trace of the weighted covariance."""
    share = sample.weight / sample.weight.sum()
    centred = sample.points - share @ sample.points
    return float((share @ centred.square()).sum().detach())


class SlicedWasserstein(Penalty):
    """D = d · mean over L unit vectors θ of W_2²(θ·X, θ·Y), so that a shift by m gives |m|².

    Rabin et al. (2011); the one-dimensional distances are ``ot.wasserstein_1d`` of POT 0.9. The
    directions are fixed and come in orthonormal sets of d. A quantile function needs weights of
    zero and above, and quantiles of small samples differ: the estimate is biased upwards.
    """

    name: ClassVar[str] = "sliced_wasserstein"
    signed_weights: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False

    directions: Tensor

    def __init__(self, features: int, sets: int = 8) -> None:
        super().__init__()
        random = torch.randn(
            sets, features, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        directions = torch.linalg.qr(random)[0].transpose(0, 1).flatten(1)
        self.register_buffer("directions", directions, persistent=False)

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        per_direction: Tensor = ot.wasserstein_1d(
            simulation.points @ self.directions,
            data.points @ self.directions,
            simulation.weight / simulation.weight.sum(),
            data.weight / data.weight.sum(),
            p=2,
        )
        return simulation.points.shape[1] * per_direction.mean()

    def scale(self, data: PenaltySample) -> float:
        """The total variance of the data."""
        return _total_variance(data)


class SinkhornDivergence(Penalty):
    """S = OT_ε(X, Y) - ½ OT_ε(X, X) - ½ OT_ε(Y, Y) with squared distances as cost (arXiv 1810.08278).

    OT_ε(a, b) = min_P <P, M> + ε KL(P | a bᵀ) = max_{f,g} <f, a> + <g, b> - ε (Σ_ij a_i b_j
    e^{(f_i + g_j - M_ij)/ε} - 1). The potentials come from ``ot.bregman.sinkhorn_log`` of POT 0.9 in
    logarithms; where they are optimal, the gradient of the second form with f and g held fixed is the
    gradient of OT_ε. Negative weights are refused: POT takes them and returns plans with negative mass.
    Stopped early, the value is a little too small (the second form bounds from below).
    """

    name: ClassVar[str] = "sinkhorn"
    signed_weights: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False

    def __init__(self, regularisation: float = 0.5, iterations: int = 300, tolerance: float = 1e-7) -> None:
        super().__init__()
        self.regularisation, self.iterations, self.tolerance = regularisation, iterations, tolerance

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        x, y = (sample.rows(sample.weight > 0) for sample in (simulation, data))
        a, b = x.weight / x.weight.sum(), y.weight / y.weight.sum()
        between = self.entropic_cost(x.points, y.points, a, b)
        within = self.entropic_cost(x.points, x.points, a, a) + self.entropic_cost(y.points, y.points, b, b)
        return between - 0.5 * within

    def scale(self, data: PenaltySample) -> float:
        """The total variance of the data."""
        return _total_variance(data)

    def entropic_cost(
        self,
        x: Float[Tensor, "n features"],
        y: Float[Tensor, "m features"],
        a: Float[Tensor, " n"],
        b: Float[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """OT_ε of the masses ``a`` on ``x`` and ``b`` on ``y``, both positive with sum one."""
        epsilon = self.regularisation
        cost = (x[:, None] - y[None]).square().sum(2)
        with torch.no_grad():
            _, log = ot.bregman.sinkhorn_log(
                a, b, cost, epsilon, numItermax=self.iterations, stopThr=self.tolerance, log=True, warn=False
            )
            f = epsilon * (log["log_u"] - a.log())
            g = epsilon * (log["log_v"] - b.log())
        plan = a[:, None] * b[None] * torch.exp((f[:, None] + g[None] - cost) / epsilon)
        result: Tensor = f @ a + g @ b - epsilon * (plan.sum() - 1.0)
        return result
