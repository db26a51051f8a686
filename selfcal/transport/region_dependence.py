"""Does a flavour move alike in every region? A test of it, and what to quote elsewhere if it does not.

A calibration map T_f(u | pT, |eta|) is one for all regions. Suppose that in region r the jets of flavour f
are moved by δ_rf more, with δ_rf ~ N(0, τ_f² 1) in the standardised coordinates: τ_f is how much one region
differs from another beyond what pT and |eta| explain. It is estimated from the control regions with the
fractions and everything that regions share left free, and it is the uncertainty of the map in any region
that was not used: an extrapolation by T_f alone ignores the δ of that region.

The statistics are means, in each region, of the derivatives of the mixture's log density
(``mixture_scores``): y_r = mean over data - mean over the calibrated simulation, so that an imperfect
density only costs sensitivity. Their response to shifts of single flavours comes from moving the simulated
jets. With ξ the parameters, J = ∂y/∂ξ and V the covariance of y by statistics of both samples,

y ~ N(0, V + J Λ(τ) Jᵀ),    Λ(τ) = diag(τ² for δ; wide for what regions share; σ² for the fractions).

This is a random-effects model; τ_f has a half-normal prior as wide as a map's own displacement may be, for
a region cannot differ more than the flavour moves at all. τ_f² is quoted at its posterior mean, which is
never zero: few regions cannot exclude small differences, and for a flavour that only one region holds
the prior is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.transport.base_density import BaseDensities
from selfcal.transport.identifiability import mixture_scores
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.sample import Sample

PROBE = 0.05
"""Shift or stretch by which the response of the statistics is found, in standard deviations."""

RESPONSE_JETS = 2000
"""Jets of each flavour and region that are moved for it."""

STATISTICS_JETS = 50_000
"""Jets of data of a region, and simulated jets of each flavour of it, that the statistics use at most."""

SHARED_WIDTH = 0.3
"""Prior width of what all regions share, in standard deviations: the map has been fitted already."""

SCALES = 61
"""Number of values of τ, from zero to three prior widths."""

SWEEPS = 4

PSEUDO_EXPERIMENTS = 2000


@dataclass(frozen=True)
class RegionDependence:
    """How much regions differ.

    ``scale`` (F,) : sqrt of the posterior mean of τ² of each flavour, to be quoted; ``prior_width`` : the
    same if the control regions said nothing is about this; ``likelihood_ratio`` and ``p_value`` : of the
    test that no flavour depends on the region (one τ for all flavours; p by pseudo-experiments);
    ``shift``, ``uncertainty`` (R, F, D) : posterior mean and σ of δ with these scales.
    """

    scale: NDArray[np.float64]
    prior_width: float
    likelihood_ratio: float
    p_value: float
    shift: NDArray[np.float64]
    uncertainty: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What :meth:`from_arrays` reads."""
        return {part.name: np.atleast_1d(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> RegionDependence:
        """From what :meth:`arrays` gives."""
        numbers = {name: float(arrays[name][0]) for name in ("prior_width", "likelihood_ratio", "p_value")}
        return cls(scale=arrays["scale"], shift=arrays["shift"], uncertainty=arrays["uncertainty"], **numbers)

    def table(self, regions: Sequence[str]) -> dict[str, Any]:
        """The content of ``region_dependence.json``."""
        return {
            "scale": dict(zip(FLAVOURS, self.scale.tolist(), strict=True)),
            "prior_width": self.prior_width,
            "likelihood_ratio": self.likelihood_ratio,
            "p_value": self.p_value,
            "rows": [
                {
                    "region": region,
                    "flavour": flavour,
                    "shift": self.shift[r, f].tolist(),
                    "uncertainty": self.uncertainty[r, f].tolist(),
                }
                for r, region in enumerate(regions)
                for f, flavour in enumerate(FLAVOURS)
            ],
        }


@dataclass(frozen=True)
class RegionStatistics:
    """y (S,), V (S, S) of one region, and its responses: to shifts of single flavours (S, F·D), to common
    stretches (S, F·D) and to fractions (S, F - 1)."""

    value: NDArray[np.float64]
    covariance: NDArray[np.float64]
    shift: NDArray[np.float64]
    stretch: NDArray[np.float64]
    fraction: NDArray[np.float64]


def _mean(scores: Tensor, weight: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted mean of (N, S) and its covariance Σ w² (h - h̄)(h - h̄)ᵀ / (Σ w)²."""
    h, w = scores.numpy(), weight.numpy()
    mean = w @ h / w.sum()
    centred = (h - mean) * w[:, None]
    return mean, centred.T @ centred / w.sum() ** 2


def _at_most(sample: Sample, jets: int) -> Sample:
    """So many jets, evenly spread over the sample."""
    if len(sample) <= jets:
        return sample
    return sample.rows(torch.linspace(0, len(sample) - 1, jets, dtype=torch.float64).long())


def region_statistics(
    data: Sample,
    calibrated: Sample,
    densities: BaseDensities,
    kinematic_fractions: KinematicFractions,
    fractions: Float[Tensor, "regions flavours"],
    region: int,
) -> RegionStatistics:
    """The statistics of one region; ``calibrated`` is the simulation with its map applied.

    A flavour without simulated jets in the region takes no part there.
    """
    pi, width = fractions[region].numpy(), data.coordinates.shape[1]
    reference = int(fractions[region].argmax())

    def scores(sample: Sample) -> Tensor:
        found, names = mixture_scores(sample, densities, kinematic_fractions, fractions)
        kept = [not n.startswith("fraction ") or n.startswith(f"fraction {region}/") for n in names]
        return found[:, torch.tensor(kept)]

    observed = _at_most(data.in_region(region), STATISTICS_JETS)
    value, covariance = _mean(scores(observed), observed.weight)
    size = len(value)
    shift, stretch = (np.zeros((size, len(FLAVOURS) * width)) for _ in range(2))
    means = np.zeros((len(FLAVOURS), size))
    simulated = calibrated.in_region(region)
    for f in range(len(FLAVOURS)):
        own = _at_most(simulated.rows(simulated.flavour == f), STATISTICS_JETS)
        if len(own) < 2:
            continue
        means[f], spread = _mean(scores(own), own.weight)
        value, covariance = value - pi[f] * means[f], covariance + pi[f] ** 2 * spread
        own = _at_most(own, RESPONSE_JETS)
        here, _ = _mean(scores(own), own.weight)
        for axis in range(width):
            for response, step in (
                (shift, PROBE * torch.ones(len(own), dtype=torch.float64)),
                (stretch, PROBE * own.coordinates[:, axis]),
            ):
                moved = own.coordinates.clone()
                moved[:, axis] += step
                there, _ = _mean(scores(replace(own, coordinates=moved)), own.weight)
                response[:, f * width + axis] = pi[f] * (there - here) / PROBE
    free = [f for f in range(len(FLAVOURS)) if f != reference]
    return RegionStatistics(value, covariance, shift, stretch, (means[free] - means[reference]).T)


def region_dependence(
    statistics: Sequence[RegionStatistics],
    fraction_uncertainty: Sequence[NDArray[np.float64]],
    prior_width: float,
    seed: int,
) -> RegionDependence:
    """τ and δ from the statistics of all regions.

    ``fraction_uncertainty`` holds σ of every region's fractions but the largest, (F - 1,), and
    ``prior_width`` is the width of the half-normal prior of τ. The scale of each flavour is found with
    those of the others at their latest values, in ``SWEEPS`` rounds.
    """
    y, base, local = _standardised(statistics, fraction_uncertainty)
    flavours = len(FLAVOURS)
    width = local.shape[1] // (len(statistics) * flavours)
    owner = np.tile(np.repeat(np.arange(flavours), width), len(statistics))
    between = [local[:, owner == f] @ local[:, owner == f].T for f in range(flavours)]
    # Densest near zero: with many jets differences far below the prior's width are seen.
    grid = 3.0 * prior_width * np.linspace(0.0, 1.0, SCALES) ** 3
    step = np.gradient(grid)

    together = [np.linalg.cholesky(base + tau**2 * sum(between)) for tau in grid]
    found = _log_likelihood(together, y[:, None])[:, 0]
    ratio = float(2.0 * (found.max() - found[0]))
    random = np.random.default_rng(seed)
    under_null = _log_likelihood(together, together[0] @ random.standard_normal((len(y), PSEUDO_EXPERIMENTS)))
    ratios = 2.0 * (under_null.max(0) - under_null[0])
    # Where the likelihood is largest at zero the ratio is zero, as in all pseudo-experiments like it.
    p_value = float((1 + (ratios >= ratio - 1e-9).sum()) / (1 + PSEUDO_EXPERIMENTS))

    scale = np.full(flavours, prior_width)
    for _ in range(SWEEPS):
        for f in range(flavours):
            others = base + sum(scale[o] ** 2 * between[o] for o in range(flavours) if o != f)
            factors = [np.linalg.cholesky(others + tau**2 * between[f]) for tau in grid]
            log_posterior = _log_likelihood(factors, y[:, None])[:, 0] - 0.5 * (grid / prior_width) ** 2
            posterior = np.exp(log_posterior - log_posterior.max()) * step
            scale[f] = np.sqrt((posterior * grid**2).sum() / posterior.sum())

    variance = scale[owner] ** 2
    covariance = base + (local * variance) @ local.T
    gain = variance[:, None] * np.linalg.solve(covariance, local).T
    spread = np.diag(variance) - gain @ local * variance
    shape = (len(statistics), flavours, width)
    return RegionDependence(
        scale,
        prior_width,
        ratio,
        p_value,
        (gain @ y).reshape(shape),
        np.sqrt(np.diag(spread).clip(min=0.0)).reshape(shape),
    )


def _standardised(
    statistics: Sequence[RegionStatistics], fraction_uncertainty: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """y (S,) of all regions in units of its statistical errors, its covariance if no region differs,
    and its response to δ (S, R·F·D)."""
    size = sum(len(part.value) for part in statistics)
    own = statistics[0].shift.shape[1]
    y, covariance = np.zeros(size), np.zeros((size, size))
    local, shared = np.zeros((size, own * len(statistics))), np.zeros((size, 2 * own))
    fractions = np.zeros((size, sum(len(sigma) for sigma in fraction_uncertainty)))
    first = column = 0
    for r, (part, sigma) in enumerate(zip(statistics, fraction_uncertainty, strict=True)):
        rows = slice(first, first := first + len(part.value))
        y[rows], covariance[rows, rows] = part.value, part.covariance
        local[rows, r * own : (r + 1) * own] = part.shift
        shared[rows] = SHARED_WIDTH * np.hstack([part.shift, part.stretch])
        fractions[rows, column : column + len(sigma)] = part.fraction * sigma
        column += len(sigma)
    error = np.sqrt(np.diag(covariance)).clip(1e-12)
    left_free = np.hstack([shared, fractions]) / error[:, None]
    # The smallest eigenvalues are lifted out of rounding.
    base = covariance / np.outer(error, error) + 1e-6 * np.eye(size) + left_free @ left_free.T
    return y / error, base, local / error[:, None]


def _log_likelihood(
    factors: Sequence[NDArray[np.float64]], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """ln N(y; 0, L Lᵀ) up to a constant, of every Cholesky factor L (C of them) and column y: (C, N)."""
    return np.stack(
        [
            -0.5 * (solve_triangular(factor, values, lower=True) ** 2).sum(0) - np.log(np.diag(factor)).sum()
            for factor in factors
        ]
    )
