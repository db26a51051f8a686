"""Maximum-likelihood fit of one data set, with a certificate of convergence.

Fisher scoring (:mod:`selfcal.likelihood.minimise`) from the given start, then from starts around it, then
MINUIT with our gradient. A minimum counts when its estimated distance is below 1e-8, the gradient is small
in units of σ and the observed information is positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from iminuit import Minuit
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from selfcal.errors import FitError
from selfcal.likelihood.derivatives import Differentiator, constraint_derivatives
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import EDM_MAX, Minima, gradient, minimise, moving

STARTS_MAX = 4
"""Starting points that are tried before MINUIT is."""
GRADIENT_MAX = 1e-3
"""Largest slope of −ln L at a minimum, in units of 1/σ."""
PIVOT_MIN = 1e-11
"""Smallest pivot of the Hessian scaled to unit diagonal; below it a direction counts as flat."""
MINUIT_CALLS_MAX = 20_000


@dataclass(frozen=True)
class FitResult:
    """Best fit of D parameters.

    Attributes
    ----------
    best_fit : (D,)
    covariance : (D, D) inverse of the observed information; zero for parameters fixed or at a bound
    twice_nll : −2 ln L at the best fit
    deviance : twice the negative log-likelihood above the saturated model
    certificate : evidence of convergence: converged, minimiser, edm, gradient in units of sigma, smallest
        scaled eigenvalue of the Hessian, iterations, number of starts, parameters at a bound
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


@dataclass(frozen=True)
class Certificates:
    """Of T fits: whether each is a minimum, and how sharp.

    Attributes
    ----------
    covariance : (T, D, D) inverse of the observed information of the moving parameters, zero elsewhere
    scaled_hessian : (T, D, D) observed information with unit diagonal; identity where nothing moves
    gradient_in_sigma : (T,) largest |g σ|
    positive : (T,) whether the observed information is positive definite
    free : (T, D) parameters that are neither fixed nor held at a bound
    """

    covariance: Float[Tensor, "T D D"]
    scaled_hessian: Float[Tensor, "T D D"]
    gradient_in_sigma: Float[Tensor, " T"]
    positive: Bool[Tensor, " T"]
    free: Bool[Tensor, "T D"]

    @property
    def passed(self) -> Bool[Tensor, " T"]:
        """Positive definite, with a negligible gradient."""
        return self.positive & (self.gradient_in_sigma < GRADIENT_MAX)


def fit(
    model: HistFactory,
    counts: Float[Tensor, " B"] | None = None,
    start: Float[Tensor, " D"] | None = None,
    seed: int = 1,
    *,
    force: bool = False,
) -> FitResult:
    """Minimise −ln L; new starts are drawn around the first if a minimisation fails, then MINUIT is asked.

    ``force``: return what was found even if it is no certified minimum; the certificate says so.

    Raises
    ------
    FitError
        If no minimiser converges, or the Hessian at the minimum is not positive definite.
    """
    differentiator = Differentiator(model)
    data = (model.observed if counts is None else counts)[None], model.centre[None]
    origin = model.start if start is None else start
    generator = torch.Generator().manual_seed(seed)
    for attempt in range(1, STARTS_MAX + 2):
        by_minuit = attempt > STARTS_MAX
        noise = torch.randn(len(origin), generator=generator, dtype=torch.float64)
        offset = 0.3 * noise * torch.where(model.fixed, 0.0, model.width)
        theta = origin if attempt == 1 or by_minuit else origin + offset
        if by_minuit:
            theta = minuit_minimum(differentiator, theta, data[0][0], data[1][0])
        minima = minimise(differentiator, theta[None], *data)
        if bool(minima.converged):
            certificates = certify(differentiator, minima.theta, *data)
            if bool(certificates.passed):
                break
    else:
        certificates = certify(differentiator, minima.theta, *data)
        if not force:
            raise _failure(minima, certificates)
    evidence = {
        "converged": bool(minima.converged and certificates.passed),
        "minimiser": "minuit" if by_minuit else "fisher",
        "edm": float(minima.edm.clamp_max(torch.finfo(torch.float64).max)),
        "iterations": int(minima.iterations),
        "starts": min(attempt, STARTS_MAX),
    }
    return _result(model, data[0][0], minima.theta[0], certificates, evidence)


def goodness_of_fit(model: HistFactory, result: FitResult) -> dict[str, float]:
    """Deviance from the saturated model, its degrees of freedom and χ² p-value."""
    n_free = int((~model.constrained & ~model.fixed).sum())
    ndf = len(model.observed) - n_free
    p_value = float(chi2.sf(result.deviance, ndf)) if ndf > 0 else 1.0
    return {"statistic": result.deviance, "ndf": ndf, "p_value": p_value}


def expected_and_jacobian(
    model: HistFactory, theta: Float[Tensor, " D"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"]]:
    """Expected counts (B,) and their derivative (B, D)."""
    differentiator = Differentiator(model)
    linear = differentiator.linear(theta[None])
    return linear.expected[0], differentiator.jacobian(linear)[0]


def fisher_information(
    model: HistFactory,
    theta: Float[Tensor, " D"],
    expected: Float[Tensor, " B"],
    jacobian: Float[Tensor, "B D"],
) -> Float[Tensor, "D D"]:
    """Jᵀ diag(1/ν) J plus the constraints (τ/γ for a Poisson one); nothing for parameters without one."""
    information = jacobian.T @ (jacobian / expected.clamp_min(1e-12)[:, None])
    prior = constraint_derivatives(model, theta[None], model.centre[None])[2][0]
    return information + torch.diag(prior)


def certify(
    differentiator: Differentiator,
    theta: Float[Tensor, "T D"],
    counts: Float[Tensor, "T B"],
    centre: Float[Tensor, "T D"],
) -> Certificates:
    """Gradient and observed information at T best fits."""
    model = differentiator.model
    slope = gradient(differentiator, theta, counts, centre)
    hessian = differentiator.hessian(theta, counts, centre)
    free = moving(model, theta, slope)
    both = free[:, :, None] & free[:, None]
    diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
    scale = torch.where(free & (diagonal > 0), diagonal, 1.0).rsqrt()
    scaled = torch.where(both, hessian * scale[:, :, None] * scale[:, None], 0.0)
    scaled.diagonal(dim1=1, dim2=2).add_((~free).to(theta.dtype))
    finite = torch.isfinite(scaled).all(-1).all(-1)
    identity = torch.eye(theta.shape[1], dtype=theta.dtype)
    safe = torch.where(finite[:, None, None], scaled, identity)
    factor, failed = torch.linalg.cholesky_ex(safe)
    # A pivot of rounding size means a flat direction that happened to come out positive.
    pivot = torch.diagonal(factor, dim1=1, dim2=2).amin(1) ** 2
    positive = (failed == 0) & finite & (pivot > PIVOT_MIN)
    inverse = torch.cholesky_inverse(torch.where(positive[:, None, None], factor, identity))
    for i in torch.nonzero(~positive)[:, 0].tolist():
        inverse[i] = torch.linalg.pinv(safe[i], hermitian=True)
    covariance = torch.where(both, inverse * scale[:, :, None] * scale[:, None], 0.0)
    sigma = torch.diagonal(covariance, dim1=1, dim2=2).clamp_min(0.0).sqrt()
    strongest = torch.where(free, slope * sigma, 0.0).abs().amax(1)
    return Certificates(covariance, safe, strongest, positive, free)


def minuit_minimum(
    differentiator: Differentiator,
    start: Float[Tensor, " D"],
    counts: Float[Tensor, " B"],
    centre: Float[Tensor, " D"],
) -> Float[Tensor, " D"]:
    """Where MIGRAD (iminuit, strategy 0) with our gradient arrives; the caller judges it."""
    model = differentiator.model

    def value(point: NDArray[np.float64]) -> float:
        theta = torch.from_numpy(point.copy())
        found = float(0.5 * model.deviance(theta, counts, centre))
        return found if np.isfinite(found) else 1e30

    def slope(point: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = torch.from_numpy(point.copy())[None]
        return gradient(differentiator, theta, counts[None], centre[None])[0].nan_to_num(0.0).numpy()

    start = torch.clamp(start, model.lower, model.upper)
    minuit = Minuit(value, start.numpy(), grad=slope, name=list(model.index))
    minuit.errordef, minuit.strategy = Minuit.LIKELIHOOD, 0
    minuit.limits = list(zip(model.lower.tolist(), model.upper.tolist(), strict=True))
    minuit.errors = (0.1 * model.width).tolist()
    minuit.fixed = model.fixed.tolist()
    minuit.migrad(ncall=MINUIT_CALLS_MAX)
    return torch.clamp(torch.tensor(list(minuit.values), dtype=torch.float64), model.lower, model.upper)


def _failure(minima: Minima, certificates: Certificates) -> FitError:
    if not bool(minima.converged):
        return FitError(
            f"the fit did not converge from {STARTS_MAX} starting points, nor with MINUIT",
            where=f"estimated distance to the minimum {float(minima.edm):.2g}",
            expected=f"below {EDM_MAX:.0e}",
            fix="merge bins with few jets, or give flavours with free shape a region that determines them",
        )
    smallest = float(torch.linalg.eigvalsh(certificates.scaled_hessian[0])[0])
    return FitError(
        "the Hessian at the minimum is not positive definite",
        where=f"smallest eigenvalue {smallest:.2g} of the matrix scaled to unit diagonal",
        fix="look at the null directions of the identifiability report; merge bins or add constraints",
    )


def _result(
    model: HistFactory, counts: Tensor, theta: Tensor, certificates: Certificates, evidence: dict[str, Any]
) -> FitResult:
    names = tuple(parameter.name for parameter in model.parameters)
    held = ~certificates.free[0] & ~model.fixed
    certificate = {
        **evidence,
        "gradient_in_sigma_max": float(certificates.gradient_in_sigma),
        "hessian_eigenvalue_min": float(torch.linalg.eigvalsh(certificates.scaled_hessian[0])[0]),
        "at_bound": [names[int(i)] for i in torch.nonzero(held)[:, 0]],
    }
    return FitResult(
        names,
        theta.numpy().copy(),
        certificates.covariance[0].numpy().copy(),
        float(model.twice_nll(theta, counts)),
        float(model.deviance(theta, counts)),
        certificate,
    )
