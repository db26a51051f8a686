r"""The likelihood of theta from the densities of single jets, unbinned, and its Laplace posterior.

    ln L(θ, η, ε) = Σ_i w_i ln Σ_f π_rf q_rf(pT_i) p(s_i | θ_r, r, f, pT_i, |η_i|) - ½ (|u|² + |η|² + |ε|²),

r the region of jet i, π_rf ∝ π⁰_rf exp(σ_rf η_rf) its composition with the prior's relative widths σ, q_rf
the spectrum of flavour f in the simulation relative to that of all, u = (θ - θ⁰)/w in prior widths, and
θ_r = θ + m ε_r e with e the parameter that also stands for a wrong multiplicity of the generator (a jet with
fewer tracks is taken for one that lost tracks), m its width. The free numbers x are (u, η, ε).

The covariance is that of Laplace, (-∂²ln L)⁻¹ by automatic differentiation, plus what a relative error μ of
each bin of each summary's distribution does to the best fit (first order): C J C with
J = μ² Σ_rjb g g^T, g = Σ_(i in b) w_i (∂_u ln p_i - mean).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from selfcal.errors import FitError
from selfcal.sbi.jet_density import JetRows

Floats = NDArray[np.float64]
CHUNK = 256
"""Jets whose densities are differentiated at once: few enough for the processor's cache."""
FRACTION_MIN = 1e-3
"""Flavours expected to be rarer than this in a region are left out there."""
ROUNDS_MAX = 5
DISTANCE_MAX = 0.03
"""Distance from the maximum, in standard deviations, at which a fit has converged."""
SPECTRUM_BINS = 8
MODELLING_BINS = 8
"""Bins (of equal numbers) of each summary in which the modelling error is independent."""


class ConditionalDensity(Protocol):
    """What a density of jets must offer."""

    def log_prob(
        self,
        summaries: Float[Tensor, "n s"],
        kinematics: Float[Tensor, "n 2"],
        region: Int[Tensor, " n"],
        flavour: Int[Tensor, " n"],
        theta: Float[Tensor, "n d"],
    ) -> Float[Tensor, " n"]: ...


@dataclass(frozen=True)
class UnbinnedLikelihood:
    """N jets, R regions, F flavours, D parameters.

    Attributes
    ----------
    rows : the jets of data
    spectrum : (N, F) q of each jet
    fractions, relative_width : (R, F) prior of the composition
    multiplicity : (D,) m e: how one standard deviation of the generator's multiplicity moves u
    """

    density: ConditionalDensity
    rows: JetRows
    spectrum: Floats
    fractions: Floats
    relative_width: Floats
    multiplicity: Floats

    @property
    def parameters(self) -> int:
        """D, the number of parameters of interest, which come first."""
        return len(self.multiplicity)

    @property
    def dimension(self) -> int:
        """Number of free numbers."""
        return self.parameters + self.fractions.size + len(self.fractions)

    def embedding(self, region: int) -> Tensor:
        """The linear map from x to (u_r, η_r), (D + F, dimension)."""
        size, (regions, flavours) = self.parameters, self.fractions.shape
        matrix = np.zeros((size + flavours, self.dimension))
        matrix[:size, :size] = np.eye(size)
        matrix[:size, size + regions * flavours + region] = self.multiplicity
        first = size + region * flavours
        matrix[size:, first : first + flavours] = np.eye(flavours)
        return torch.from_numpy(matrix)

    def jet_terms(self, index: NDArray[np.int64], region: int, local: Tensor) -> Tensor:
        """ln Σ_f ... of n jets of one region, (n,), at local = (u_r, η_r) of each, (n, D + F)."""
        present = np.flatnonzero(self.fractions[region] > FRACTION_MIN)
        n, kinds = len(index), len(present)
        prior = torch.from_numpy(np.log(self.fractions[region, present]))
        width = torch.from_numpy(self.relative_width[region, present])
        share = torch.log_softmax(prior + width * local[:, self.parameters + present], dim=1)
        summaries, kinematics, theta = (
            part.repeat_interleave(kinds, 0)
            for part in (
                torch.from_numpy(self.rows.summaries[index]),
                torch.from_numpy(self.rows.kinematics[index]),
                local[:, : self.parameters],
            )
        )
        where, flavour = torch.full((n * kinds,), region), torch.from_numpy(present).repeat(n)
        found = self.density.log_prob(summaries, kinematics, where, flavour, theta).reshape(n, kinds)
        spectrum = torch.from_numpy(np.log(self.spectrum[index][:, present]))
        return torch.logsumexp(share + spectrum + found, dim=1)

    def chunks(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Region and indices of pieces of the data."""
        for region in range(len(self.fractions)):
            inside = np.flatnonzero(self.rows.region == region)
            for first in range(0, len(inside), CHUNK):
                yield region, inside[first : first + CHUNK]

    def log_density(self, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """ln L of all jets at once, differentiable."""
        total = -0.5 * (x**2).sum()
        for region, index in self.chunks():
            local = (self.embedding(region) @ x).expand(len(index), -1)
            total = total + (self._weight(index) * self.jet_terms(index, region, local)).sum()
        return total

    def evaluate(self, x: Floats) -> Evaluation:
        """-ln L and its derivatives. Jets are independent: one backward pass gives the scores of all."""
        value, gradient = 0.5 * float(x @ x), x.copy()
        information = np.eye(self.dimension)
        scores = np.zeros((len(self.rows), self.parameters + self.fractions.shape[1]))
        for region, index in self.chunks():
            matrix = self.embedding(region)
            local = (matrix @ torch.from_numpy(x)).expand(len(index), -1).clone().requires_grad_()
            terms = self.jet_terms(index, region, local)
            (slopes,) = torch.autograd.grad(terms.sum(), local)
            weight, scores[index] = self.rows.weight[index], slopes.numpy()
            value -= float(weight @ terms.detach().numpy())
            mapped = scores[index] @ matrix.numpy()
            gradient -= weight @ mapped
            information += (weight[:, None] * mapped).T @ mapped
        return Evaluation(value, gradient, information, scores)

    def hessian(self, x: Floats) -> Floats:
        """Second derivatives of -ln L, (dimension, dimension)."""
        total = torch.eye(self.dimension, dtype=torch.float64)
        for region, index in self.chunks():
            matrix = self.embedding(region)
            local = (matrix @ torch.from_numpy(x)).requires_grad_()
            terms = self.jet_terms(index, region, local.expand(len(index), -1))
            minus = -(self._weight(index) * terms).sum()
            (slope,) = torch.autograd.grad(minus, local, create_graph=True)
            rows = [torch.autograd.grad(one, local, retain_graph=True)[0] for one in slope]
            block = torch.stack(rows)
            total = total + matrix.T @ (0.5 * (block + block.T)) @ matrix
        return np.asarray(total.numpy(), np.float64)

    def _weight(self, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.rows.weight[index])


@dataclass(frozen=True)
class Evaluation:
    """-ln L at one point.

    Attributes
    ----------
    gradient : (dimension,)
    information : (dimension, dimension) its second derivatives as the products of the jets' first ones have
        them on average
    scores : (N, D + F) derivatives of each jet's ln p in (u_r, η_r)
    """

    value: float
    gradient: Floats
    information: Floats
    scores: Floats


@dataclass(frozen=True)
class UnbinnedFit:
    """Best fit x of one density, Laplace covariance, and that of the modelling error, to be added."""

    best: Floats
    covariance: Floats
    modelling: Floats
    log_density: float


def fit_unbinned(
    likelihood: UnbinnedLikelihood, modelling_error: float, start: Floats | None = None
) -> UnbinnedFit:
    """The maximum of ln L and the covariance there.

    Quasi-Newton steps (BFGS) in units in which the information is the identity, renewed ``ROUNDS_MAX`` times.

    Raises
    ------
    FitError
        If the maximum is not found, or is none.
    """
    best = np.zeros(likelihood.dimension) if start is None else start
    for _ in range(ROUNDS_MAX):
        here = likelihood.evaluate(best)
        if np.sqrt(here.gradient @ np.linalg.solve(here.information, here.gradient)) < DISTANCE_MAX:
            covariance = _inverse(likelihood.hessian(best))
            noise = covariance @ _modelling_noise(likelihood, here.scores, modelling_error) @ covariance
            return UnbinnedFit(best, covariance, noise, -here.value)
        root = np.linalg.cholesky(np.linalg.inv(here.information))
        result = minimize(
            partial(_whitened, likelihood, best, root),
            np.zeros(len(best)),
            jac=True,
            method="BFGS",
            options={"gtol": 0.3 * DISTANCE_MAX / np.sqrt(len(best)), "maxiter": 100},
        )
        best = best + root @ result.x
    raise FitError(
        f"the fit of the detector parameters did not converge: {result.message}",
        where="infer",
        fix="check the flavour fractions of the data cards, or use 'inference.method: binned'",
    )


def _whitened(
    likelihood: UnbinnedLikelihood, origin: Floats, root: Floats, moves: Floats
) -> tuple[float, Floats]:
    here = likelihood.evaluate(origin + root @ moves)
    return here.value, root.T @ here.gradient


def _inverse(hessian: Floats) -> Floats:
    try:
        factor = np.linalg.inv(np.linalg.cholesky(hessian))
    except np.linalg.LinAlgError as error:
        raise FitError(
            "the likelihood of the detector parameters has no maximum where the fit ended", where="infer"
        ) from error
    return np.asarray(factor.T @ factor, np.float64)


def _modelling_noise(likelihood: UnbinnedLikelihood, scores: Floats, error: float) -> Floats:
    """J of the module's formula, (dimension, dimension)."""
    total = np.zeros((likelihood.dimension, likelihood.dimension))
    rows = likelihood.rows
    for region in range(len(likelihood.fractions)):
        inside = np.flatnonzero(rows.region == region)
        if not len(inside):
            continue
        weighted = rows.weight[inside, None] * (scores[inside] - scores[inside].mean(axis=0))
        block = np.zeros((scores.shape[1], scores.shape[1]))
        for values in rows.summaries[inside].T:
            edges = np.quantile(values, np.linspace(0, 1, MODELLING_BINS + 1)[1:-1])
            bins = np.digitize(values, edges)
            sums = np.stack([weighted[bins == b].sum(axis=0) for b in range(MODELLING_BINS)])
            block += error**2 * sums.T @ sums
        matrix = likelihood.embedding(region).numpy()
        total += matrix.T @ block @ matrix
    return total


def spectrum_weights(simulation: JetRows, data: JetRows, regions: int, flavours: int) -> Floats:
    """q_rf(pT) of ``data`` from bins of pT that hold equal parts of a region's ``simulation``, (N, F)."""
    found = np.ones((len(data), flavours))
    for region in range(regions):
        inside = simulation.region == region
        log_pt, weight = simulation.kinematics[inside, 0], simulation.weight[inside]
        edges = np.quantile(log_pt, np.linspace(0, 1, SPECTRUM_BINS + 1)[1:-1])
        every = _shares(np.digitize(log_pt, edges), weight)
        mine = np.digitize(data.kinematics[data.region == region, 0], edges)
        for flavour in range(flavours):
            chosen = simulation.flavour[inside] == flavour
            shares = _shares(np.digitize(log_pt[chosen], edges), weight[chosen])
            found[data.region == region, flavour] = (shares / every)[mine]
    return found


def _shares(bins: NDArray[np.int64], weight: Floats) -> Floats:
    """Shares of the bins with one jet of mean weight added to each: few jets give even shares."""
    mean = weight.mean() if len(weight) else 1.0
    counts = np.bincount(bins, weight, SPECTRUM_BINS) + max(mean, 1e-12)
    return np.asarray(np.maximum(counts, 1e-6 * counts.sum()) / counts.sum(), np.float64)
