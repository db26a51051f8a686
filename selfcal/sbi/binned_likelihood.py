r"""The likelihood of theta from binned summaries, and its Laplace posterior.

For region r and bin b of histogram h, with rates T per jet from the emulator and fractions π,

    ν_rb = n_rh Σ_f π_rf T_rfb(θ) / Σ_b'∈h Σ_f π_rf T_rfb'(θ),     π_rf ∝ π⁰_rf exp(σ_rf η_rf)

(histograms that are not normalised: n_rh / Σ → number of jets), and

    -2 ln L = Σ_rb (n_rb - ν_rb)² / V_rb + Σ_i ((θ_i - θ⁰_i)/w_i)² + Σ_rf η_rf².

V adds the variance of the data (φ ν, with φ = Σ_jets n² / Σ_jets n because the tracks of a jet are not
independent), that of the simulation, the square of the emulator's error and of a relative modelling error.
It is taken at the fitted ν, not at the observed n, so that small counts do not pull. Bins with few expected
tracks are merged with their neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from selfcal.errors import FitError
from selfcal.sbi.emulator import QuadraticEmulator
from selfcal.sbi.summaries import HISTOGRAMS, N_BINS, Counts

Floats = NDArray[np.float64]
EXPECTED_MIN = 15.0
"""Expected independent entries of a bin, below which it is merged with the next one."""
REWEIGHTINGS = 3
"""How often the variance is taken anew at the minimum that it led to."""


@dataclass(frozen=True)
class Observation:
    """What one region gives: data counts, composition prior, and the simulation's counts.

    Attributes
    ----------
    data : counts of the data, one pooled flavour
    simulation : counts of the simulation at nominal parameters
    fractions, relative_width : (F,) prior of the composition
    """

    region: str
    data: Counts
    simulation: Counts
    fractions: Floats
    relative_width: Floats


@dataclass(frozen=True)
class BinnedLikelihood:
    """R regions, F flavours, B bins per region, G bins after merging, D parameters.

    Attributes
    ----------
    emulator : θ -> rates (R F B,)
    group : (G, R B) sums bins into merged ones
    observed, clustering : (G,) tracks of data, and φ
    histogram : (G,) index of (region, histogram)
    normalised : (G,) whether only the shape of the histogram counts
    data_jets : (G,) sum of weights of the region's data
    simulation_variance : (G,) of the rate at the central composition
    modelling : (G,) relative modelling error
    fractions, relative_width : (R, F) prior of the composition
    prior_mean, prior_width : (D,)
    """

    emulator: QuadraticEmulator
    group: Floats
    observed: Floats
    clustering: Floats
    histogram: NDArray[np.int64]
    normalised: NDArray[np.bool_]
    data_jets: Floats
    simulation_variance: Floats
    emulator_variance: Floats
    modelling: Floats
    fractions: Floats
    relative_width: Floats
    prior_mean: Floats
    prior_width: Floats

    @property
    def dimension(self) -> int:
        """Number of free numbers: parameters of interest first, then the composition."""
        return len(self.prior_mean) + self.fractions.size

    def theta(self, x: Floats) -> Floats:
        """Parameters in their own units from standardised ones, (..., dimension) -> (..., D)."""
        return np.asarray(self.prior_mean + self.prior_width * x[..., : len(self.prior_mean)])

    def expected(self, x: Floats) -> tuple[Floats, Floats]:
        """ν and dν/d(rate), each (..., G), at standardised parameters (..., dimension)."""
        shape = x.shape[:-1]
        regions, flavours = self.fractions.shape
        rates = self.emulator(self.theta(x)).reshape(*shape, regions, flavours, N_BINS)
        tilt = x[..., len(self.prior_mean) :].reshape(*shape, regions, flavours) * self.relative_width
        share = self.fractions * np.exp(tilt)
        share = share / share.sum(axis=-1, keepdims=True)
        mixed = np.einsum("...rf,...rfb->...rb", share, rates).reshape(*shape, -1)
        rate = np.maximum(mixed @ self.group.T, 1e-12)
        scale = np.broadcast_to(self.data_jets, rate.shape).copy()
        for h in np.unique(self.histogram[self.normalised]):
            inside = self.histogram == h
            total = rate[..., inside].sum(axis=-1, keepdims=True)
            scale[..., inside] = self.observed[inside].sum() / total
        return rate * scale, scale

    def variance(self, x: Floats) -> Floats:
        """V at one point, (G,)."""
        nu, scale = self.expected(x)
        rates = self.simulation_variance + self.emulator_variance
        return np.asarray(self.clustering * nu + scale**2 * rates + (self.modelling * nu) ** 2)

    def residuals(self, x: Floats, variance: Floats) -> Floats:
        """Standardised (..., M): bins, parameters and composition; half their square sum is -ln L."""
        return np.concatenate([(self.observed - self.expected(x)[0]) / np.sqrt(variance), x], axis=-1)


def build_likelihood(
    observations: Sequence[Observation],
    emulator: QuadraticEmulator,
    prior_mean: Floats,
    prior_width: Floats,
    *,
    modelling_error: float,
    multiplicity_error: float,
) -> BinnedLikelihood:
    """Put the regions together. ``modelling_error`` is relative, of each bin of a normalised
    histogram, ``multiplicity_error`` that of the number of tracks per jet."""
    rows, index, normalised, jets, clustering, sim_var, emu_var, modelling = ([] for _ in range(8))
    total_bins = len(observations) * N_BINS
    emulator_error = emulator.error.reshape(len(observations), -1, N_BINS)
    for r, one in enumerate(observations):
        share = one.fractions
        per_jet = one.simulation.total / np.maximum(one.simulation.jets, 1e-12)[:, None]
        rate = share @ per_jet
        spread = share**2 @ (one.simulation.spread / np.maximum(one.simulation.jets, 1e-12)[:, None] ** 2)
        error = share**2 @ emulator_error[r] ** 2
        pooled = one.simulation.pooled()
        phi = np.maximum(pooled.spread[0] / np.maximum(pooled.total[0], 1e-12), 1.0)
        data_jets = float(one.data.jets.sum())
        for h, histogram in enumerate(HISTOGRAMS):
            for bins in merged_bins((rate * data_jets / phi)[histogram.bins]):
                places = np.array(bins) + histogram.bins.start
                row = np.zeros(total_bins)
                row[r * N_BINS + places] = 1.0
                rows.append(row)
                index.append(r * len(HISTOGRAMS) + h)
                normalised.append(histogram.normalised)
                jets.append(data_jets)
                weights = np.maximum(rate[places], 1e-12)
                clustering.append(float(np.average(phi[places], weights=weights)))
                sim_var.append(float(spread[places].sum()))
                emu_var.append(float(error[places].sum()))
                modelling.append(modelling_error if histogram.normalised else multiplicity_error)
    group = np.stack(rows)
    data = np.concatenate([one.data.total.sum(axis=0) for one in observations])
    return BinnedLikelihood(
        emulator=emulator,
        group=group,
        observed=group @ data,
        clustering=np.array(clustering),
        histogram=np.array(index),
        normalised=np.array(normalised),
        data_jets=np.array(jets),
        simulation_variance=np.array(sim_var),
        emulator_variance=np.array(emu_var),
        modelling=np.array(modelling),
        fractions=np.stack([one.fractions for one in observations]),
        relative_width=np.stack([one.relative_width for one in observations]),
        prior_mean=prior_mean,
        prior_width=prior_width,
    )


def merged_bins(expected: Floats, minimum: float = EXPECTED_MIN) -> list[list[int]]:
    """Neighbouring bins joined, from the last to the first, until each group expects ``minimum``."""
    groups: list[list[int]] = []
    current: list[int] = []
    for b in range(len(expected) - 1, -1, -1):
        current.append(b)
        if expected[current].sum() >= minimum:
            groups.append(sorted(current))
            current = []
    if current and groups:
        groups[-1] = sorted([*groups[-1], *current])
    elif current:
        groups.append(sorted(current))
    return groups[::-1]


@dataclass(frozen=True)
class LaplaceFit:
    """Best fit of all standardised parameters and their covariance, and V there."""

    best: Floats
    covariance: Floats
    variance: Floats


def fit_laplace(likelihood: BinnedLikelihood, start: Floats | None = None) -> LaplaceFit:
    """Minimum of -2 ln L with V updated ``REWEIGHTINGS`` times; covariance (JᵀJ)⁻¹ of the residuals.

    Raises
    ------
    FitError
        If the minimisation does not converge.
    """
    best = np.zeros(likelihood.dimension) if start is None else start
    variance = likelihood.variance(best)
    for _ in range(REWEIGHTINGS):
        result = least_squares(likelihood.residuals, best, method="lm", args=(variance,))
        if not result.success:
            raise FitError(f"the fit of the detector parameters failed: {result.message}", where="infer")
        best = np.asarray(result.x)
        variance = likelihood.variance(best)
    jacobian = central_jacobian(lambda x: likelihood.residuals(x, variance), best)
    return LaplaceFit(best, np.asarray(np.linalg.inv(jacobian.T @ jacobian), np.float64), variance)


def central_jacobian(function: Callable[[Floats], Floats], x: Floats, step: float = 1e-4) -> Floats:
    """Central differences, (outputs, len(x)); ``function`` takes (n, len(x))."""
    moves = step * np.eye(len(x))
    return np.asarray((function(x + moves) - function(x - moves)).T / (2 * step))
