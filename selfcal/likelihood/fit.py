"""Maximum-likelihood fit with a certificate of convergence.

Levenberg–Marquardt steps with the Fisher information F = Jᵀ diag(1/ν) J + P as metric (J: derivative of the
expected counts, P: constraints), parameters at a bound held while the gradient points outwards. The
estimated distance to the minimum is EDM = ½ gᵀ F⁻¹ g in units of −ln L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from selfcal.errors import FitError
from selfcal.likelihood.histfactory import HistFactory

EDM_MAX = 1e-8
ITERATIONS_MAX = 200
STARTS_MAX = 4
DAMPING_MAX = 1e8


@dataclass(frozen=True)
class FitResult:
    """Best fit of D parameters.

    Attributes
    ----------
    best_fit : (D,)
    covariance : (D, D) inverse of the observed information; zero for parameters fixed or at a bound
    twice_nll : −2 ln L at the best fit
    deviance : twice the negative log-likelihood above the saturated model
    certificate : evidence of convergence: edm, gradient in units of sigma, smallest scaled
        eigenvalue of the Hessian, iterations, number of starts, parameters at a bound
    """

    names: tuple[str, ...]
    best_fit: NDArray[np.float64]
    covariance: NDArray[np.float64]
    twice_nll: float
    deviance: float
    certificate: dict[str, Any]

    @property
    def uncertainty(self) -> NDArray[np.float64]:
        """(D,) standard deviations."""
        return np.sqrt(np.diag(self.covariance))


def fit(
    model: HistFactory,
    counts: Float[Tensor, " B"] | None = None,
    start: Float[Tensor, " D"] | None = None,
    seed: int = 1,
) -> FitResult:
    """Minimise −ln L; new starts are drawn around the first if a minimisation fails.

    Raises
    ------
    FitError
        If no start converges, or the Hessian at the minimum is not positive definite.
    """
    counts = model.observed if counts is None else counts
    origin = model.start if start is None else start
    generator = torch.Generator().manual_seed(seed)
    best: tuple[Tensor, float, int] | None = None
    starts = 0
    for starts in range(1, STARTS_MAX + 1):
        noise = torch.randn(len(origin), generator=generator, dtype=torch.float64)
        offset = 0.0 if starts == 1 else 0.3 * noise * torch.where(model.fixed, 0.0, model.width)
        theta = torch.clamp(origin + offset, model.lower, model.upper)
        best = _minimise(model, counts, theta)
        if best[1] < EDM_MAX:
            break
    else:
        raise FitError(
            f"the fit did not converge from {STARTS_MAX} starting points",
            where=f"estimated distance to the minimum {best[1] if best else float('nan'):.2g}",
            expected=f"below {EDM_MAX:.0e}",
            fix="merge bins with few jets, or give flavours with free shape a region that determines them",
        )
    theta, edm, iterations = best
    return _certified(model, counts, theta, {"edm": edm, "iterations": iterations, "starts": starts})


def goodness_of_fit(model: HistFactory, result: FitResult) -> dict[str, float]:
    """Deviance from the saturated model, its degrees of freedom and χ² p-value."""
    n_free = int((~model.constrained & ~model.fixed).sum())
    ndf = len(model.observed) - n_free
    p_value = float(chi2.sf(result.deviance, ndf)) if ndf > 0 else 1.0
    return {"statistic": result.deviance, "ndf": ndf, "p_value": p_value}


def expected_and_jacobian(model: HistFactory, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Expected counts (B,) and their derivative (B, D)."""
    jacobian = torch.func.jacrev(model.expected)(theta)
    return model.expected(theta), jacobian


def fisher_information(
    model: HistFactory, theta: Tensor, expected: Tensor, jacobian: Tensor
) -> Float[Tensor, "D D"]:
    """Jᵀ diag(1/ν) J plus the constraints; nothing is added for parameters without constraint."""
    del theta
    information = jacobian.T @ (jacobian / expected.clamp_min(1e-12)[:, None])
    prior = torch.where(model.constrained, model.width**-2, 0.0)
    return information + torch.diag(prior)


def _minimise(model: HistFactory, counts: Tensor, theta: Tensor) -> tuple[Tensor, float, int]:
    """Minimum reached from ``theta``, its EDM, and the number of iterations."""
    value = model.deviance(theta, counts)
    damping, edm = 0.0, float("inf")
    for iteration in range(1, ITERATIONS_MAX + 1):
        expected, jacobian = expected_and_jacobian(model, theta)
        pull = torch.where(model.constrained, (theta - model.centre) / model.width**2, 0.0)
        gradient = jacobian.T @ (1 - counts / expected.clamp_min(1e-12)) + pull
        moving = _moving(model, theta, gradient)
        information = fisher_information(model, theta, expected, jacobian)[moving][:, moving]
        scale = torch.diagonal(information).clamp_min(1e-12).rsqrt()
        scaled = information * scale[:, None] * scale[None, :]
        slope = gradient[moving] * scale
        edm = 0.5 * float(slope @ torch.linalg.lstsq(scaled, slope[:, None]).solution[:, 0])
        if 0 <= edm < EDM_MAX * 1e-2:
            return theta, edm, iteration
        accepted = False
        while not accepted and damping < DAMPING_MAX:
            damped = scaled + max(damping, 1e-13) * torch.eye(len(scaled), dtype=scaled.dtype)
            step = torch.zeros_like(theta)
            step[moving] = -scale * torch.linalg.solve(damped, slope)
            trial = torch.clamp(theta + step, model.lower, model.upper)
            trial_value = model.deviance(trial, counts)
            accepted = bool(torch.isfinite(trial_value)) and float(trial_value - value) <= 1e-12 * abs(
                float(value)
            )
            damping = damping / 10 if accepted else max(1e-3, damping * 10)
        if not accepted:
            return theta, abs(edm), iteration
        damping = damping if damping > 1e-5 else 0.0
        theta, value = trial, trial_value
    return theta, abs(edm), ITERATIONS_MAX


def _moving(model: HistFactory, theta: Tensor, gradient: Tensor) -> Tensor:
    """Parameters that may move: not fixed, and not pushed against a bound."""
    held = ((theta <= model.lower) & (gradient > 0)) | ((theta >= model.upper) & (gradient < 0))
    return ~model.fixed & ~held


def _certified(model: HistFactory, counts: Tensor, theta: Tensor, evidence: dict[str, Any]) -> FitResult:
    slope = torch.func.grad(lambda t: 0.5 * model.deviance(t, counts))
    gradient, hessian = slope(theta), torch.func.jacrev(slope)(theta)
    moving = _moving(model, theta, gradient)
    inner = hessian[moving][:, moving]
    scale = torch.diagonal(inner).clamp_min(1e-300).rsqrt()
    scaled = inner * scale[:, None] * scale[None, :]
    smallest = float(torch.linalg.eigvalsh(scaled)[0]) if len(scaled) else 1.0
    if not smallest > 0:
        raise FitError(
            "the Hessian at the minimum is not positive definite",
            where=f"smallest eigenvalue {smallest:.2g} of the matrix scaled to unit diagonal",
            fix="look at the null directions of the identifiability report; merge bins or add constraints",
        )
    covariance = torch.zeros_like(hessian)
    inverse = torch.linalg.inv(scaled) * scale[:, None] * scale[None, :]
    indices = torch.nonzero(moving)[:, 0]
    covariance[indices[:, None], indices[None, :]] = (inverse + inverse.T) / 2
    sigma = torch.sqrt(torch.diagonal(covariance))
    names = tuple(parameter.name for parameter in model.parameters)
    at_bound = [names[int(i)] for i in torch.nonzero(~moving & ~model.fixed)[:, 0]]
    certificate = {
        "converged": True,
        **evidence,
        "gradient_in_sigma_max": float((gradient * sigma)[moving].abs().max()) if moving.any() else 0.0,
        "hessian_eigenvalue_min": smallest,
        "at_bound": at_bound,
    }
    return FitResult(
        names,
        theta.numpy().copy(),
        covariance.numpy().copy(),
        float(model.twice_nll(theta, counts)),
        float(model.deviance(theta, counts)),
        certificate,
    )
