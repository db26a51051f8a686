r"""Core and tails of data relative to simulation, from two histograms of an impact-parameter significance.

Experiments publish the negative side of the signed significance, data and simulation, per track category:
enough for the parts of theta that concern resolution. The simulation's histogram h of S = \|x\|/σ becomes
that of the data by the steps of the smearing model (``smearing.py``) in the same order:

1. core s: S → s S. (The tracks of a simulation get noise where s > 1, which is the same for a Gaussian core
   and keeps lifetimes; there are none to keep here, and scaling is smooth at s = 1.)
2. tail t: t > 1: (1 - w) h + w h ⊗ N(0, 2² - 1) with w = 0.06 (t - 1); t < 1: a part 1 - t of the tracks
   beyond 2.5 has S → S/2;
3. far tail f: the same with 0.008 (f - 1), 5² - 1, and 5 and S/5.

    -2 ln L = Σ_b (n_b - ν_b)² / (φ n_b + N² var_b + (m ν_b)²) + Σ_i ((θ_i - 1)/w_i)²

with ν the data's number of tracks N shared out by the smeared h, var_b the variance of the simulation's
shares, m a relative modelling error and φ = 1: published histograms do not say which tracks share a jet.
The origin of a track is unknown here, so that for s, t or f below one all tracks move, not only primaries.
Where the smeared simulation does not describe data (χ² above its degrees of freedom) the covariance is
multiplied by χ²/ndf, and the p-value says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import least_squares
from scipy.stats import chi2

from selfcal.config.smearing_parameters import PRIORS
from selfcal.data.root_files import read_histograms
from selfcal.errors import DataError, FitError
from selfcal.sbi.smearing import (
    FAR_TAIL_FACTOR,
    FAR_TAIL_FRACTION,
    FAR_TAIL_FROM,
    TAIL_FACTOR,
    TAIL_FRACTION,
    TAIL_FROM,
)

Floats = NDArray[np.float64]
PARAMETER_NAMES = ("core_scale", "tail_scale", "far_tail_scale")
PRIOR_WIDTHS = np.array(
    [PRIORS[name].width for name in ("d0_core_scale_high", "tail_scale_high", "far_tail_scale")]
)
COMPARED_EDGES = np.concatenate(
    [np.arange(0.0, 2.0, 0.25), np.arange(2.0, 4.0, 0.5), [4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0]]
)
"""The histograms are compared in these bins; what is smeared are their own, finer ones."""
FINEST_BIN = 0.05
"""Narrower bins are joined first: smearing by less than a bin does nothing."""
TAIL_BEGINS = 3.0
"""Significance beyond which a bin belongs to the tail."""


@dataclass(frozen=True)
class HistogramInference:
    """What one pair of histograms says: posterior mean and covariance of ``PARAMETER_NAMES``.

    ``tail_ratio`` : fraction of tracks beyond 3 in data over simulation, with its statistical error;
    ``chi2``, ``bins``, ``p_value`` : how well the smeared simulation describes data, without the prior;
    ``shares_data``, ``shares_simulation``, ``shares_smeared`` : fractions in ``COMPARED_EDGES``, with what
    lies beyond the last edge in the last bin.
    """

    name: str
    mean: Floats
    covariance: Floats
    tail_ratio: float
    tail_ratio_error: float
    chi2: float
    bins: int
    p_value: float
    shares_data: Floats
    shares_simulation: Floats
    shares_smeared: Floats

    @property
    def sigma(self) -> Floats:
        """Posterior standard deviations, (D,)."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))


def smeared_histogram(content: Floats, edges: Floats, theta: Floats) -> Floats:
    """The histogram after smearing with ``theta`` = (s, t, f); ``edges`` are even and start at zero."""
    core, tail, far_tail = theta
    width = edges[1] - edges[0]
    content = _rescaled(content, edges, np.ones_like(content), core)
    for scale, fraction, factor, start in (
        (tail, TAIL_FRACTION, TAIL_FACTOR, TAIL_FROM),
        (far_tail, FAR_TAIL_FRACTION, FAR_TAIL_FACTOR, FAR_TAIL_FROM),
    ):
        if scale >= 1:
            share = min(fraction * (scale - 1), 1.0)
            content = (1 - share) * content + share * _widened(content, width, np.sqrt(factor**2 - 1))
        else:
            beyond = np.where(edges[:-1] >= start, 1.0 - max(scale, 0.0), 0.0)
            content = _rescaled(content, edges, beyond, 1.0 / factor)
    return content


def _widened(content: Floats, bin_width: float, sigma: float) -> Floats:
    """Convolved with a Gaussian and folded at zero; nothing enters from beyond the last bin."""
    # Reflected at zero, which folds; at the far end zeros follow, so that what leaves is lost there.
    padded = np.concatenate([content, np.zeros(int(6 * sigma / bin_width) + 1)])
    result = gaussian_filter1d(padded, sigma / bin_width, mode="reflect", truncate=6.0)
    kept = result[: len(content)].copy()
    kept[-1] += result[len(content) :].sum()
    return np.asarray(kept, dtype=np.float64)


def _rescaled(content: Floats, edges: Floats, part: Floats, factor: float) -> Floats:
    """A ``part`` of each bin's tracks at ``factor`` times their S, evenly spread within bins.

    What leaves at the end is counted in the last bin.
    """
    moved = content * part
    cumulative = np.concatenate([[0.0], np.cumsum(moved)])
    there = np.interp(edges / factor, edges, cumulative)
    there[-1] = cumulative[-1]
    return np.asarray(content - moved + np.diff(there), dtype=np.float64)


def infer_from_histograms(
    name: str,
    data: Floats,
    simulation: Floats,
    edges: Floats,
    *,
    modelling_error: float = 0.01,
    prior_widths: Floats = PRIOR_WIDTHS,
) -> HistogramInference:
    """Laplace posterior of (core, tail, far tail) from counts (B,) of data and simulation.

    Raises
    ------
    DataError
        If the edges are not even from zero, or a histogram is empty or has negative contents.
    FitError
        If the minimisation does not converge.
    """
    check_histograms(name, data, simulation, edges)
    data, simulation, edges = joined_bins(data, simulation, edges)
    rebin = _rebinning(edges)
    total, simulated = data.sum(), simulation.sum()
    observed = rebin @ data
    share_variance = rebin @ simulation / simulated**2

    def shares(theta: Floats) -> Floats:
        moved = rebin @ smeared_histogram(simulation, edges, theta)
        return np.asarray(moved / moved.sum())

    def residuals(theta: Floats) -> Floats:
        expected = total * shares(theta)
        variance = observed + total**2 * share_variance + (modelling_error * expected) ** 2
        of_bins = (observed - expected) / np.sqrt(np.maximum(variance, 1.0))
        return np.concatenate([of_bins, (theta - 1.0) / prior_widths])

    bounds = (np.array([0.3, 0.0, 0.0]), np.array([4.0, 8.0, 20.0]))
    # The model has a kink where a tail scale is one: every side of it is tried.
    starts = [1.0 + 0.03 * np.array((0.0, *sides)) for sides in product((-1.0, 1.0), repeat=2)]
    fits = [least_squares(residuals, start, bounds=bounds, diff_step=[1e-4] * 3) for start in starts]
    found = min(fits, key=lambda fit: float(fit.cost))
    if not found.success:
        raise FitError(f"the fit of histogram '{name}' failed: {found.message}")
    chi_squared = float((found.fun[: len(observed)] ** 2).sum())
    freedom = len(observed) - 1 - len(PARAMETER_NAMES)
    jacobian = np.asarray(found.jac)
    covariance = np.linalg.inv(jacobian.T @ jacobian) * max(1.0, chi_squared / freedom)
    beyond = np.flatnonzero(edges[:-1] >= TAIL_BEGINS - 1e-9)
    fractions = [part[beyond].sum() / part.sum() for part in (data, simulation)]
    sizes = (total, simulated)
    relative = np.sqrt(sum((1 - f) / max(f * n, 1.0) for f, n in zip(fractions, sizes, strict=True)))
    ratio = float(fractions[0] / max(fractions[1], 1e-12))
    return HistogramInference(
        name=name,
        mean=np.asarray(found.x),
        covariance=np.asarray(covariance),
        tail_ratio=ratio,
        tail_ratio_error=float(ratio * relative),
        chi2=chi_squared,
        bins=len(observed),
        p_value=float(chi2.sf(chi_squared, freedom)),
        shares_data=observed / total,
        shares_simulation=rebin @ simulation / simulated,
        shares_smeared=shares(found.x),
    )


def infer_from_files(data: Path, simulation: Path, modelling_error: float) -> list[HistogramInference]:
    """One inference per histogram that both ROOT files hold under the same name.

    Raises
    ------
    DataError
        If a file cannot be read or they have no one-dimensional histogram in common.
    """
    return [
        infer_from_histograms(name, observed, simulated, edges, modelling_error=modelling_error)
        for name, observed, simulated, edges in histogram_pairs(data, simulation)
    ]


def histogram_pairs(data: Path, simulation: Path) -> list[tuple[str, Floats, Floats, Floats]]:
    """Name, counts (B,) of data and of simulation, edges (B + 1,) of all histograms that both files hold.

    Raises
    ------
    DataError
        If a file cannot be read, they have no one-dimensional histogram in common, or its bins differ.
    """
    of_data, of_simulation = read_histograms(data), read_histograms(simulation)
    pairs = []
    for name, (observed, edges) in of_data.items():
        if name not in of_simulation:
            continue
        simulated, other = of_simulation[name]
        if len(edges) != len(other) or not np.allclose(edges, other):
            raise DataError(f"histogram '{name}' has other bins in data than in simulation", where=str(data))
        pairs.append((name, observed, simulated, edges))
    if not pairs:
        raise DataError(
            "no histogram of this file is in the other one",
            where=f"{data} and {simulation}",
            expected="one-dimensional histograms of the same names",
        )
    return pairs


def as_json_rows(found: Sequence[HistogramInference]) -> list[Mapping[str, object]]:
    """The content of the verb's output."""
    return [
        {
            "name": one.name,
            "parameters": [
                {"name": name, "mean": float(mean), "sigma": float(sigma)}
                for name, mean, sigma in zip(PARAMETER_NAMES, one.mean, one.sigma, strict=True)
            ],
            "covariance": one.covariance.tolist(),
            "tail_ratio": one.tail_ratio,
            "tail_ratio_error": one.tail_ratio_error,
            "chi2": one.chi2,
            "bins": one.bins,
            "p_value": one.p_value,
        }
        for one in found
    ]


def joined_bins(data: Floats, simulation: Floats, edges: Floats) -> tuple[Floats, Floats, Floats]:
    """Both histograms and their edges with bins of ``FINEST_BIN`` at least; what is left over is cut off."""
    join = max(round(FINEST_BIN / float(edges[1] - edges[0])), 1)
    usable = len(data) // join * join
    of_data, of_simulation = (part[:usable].reshape(-1, join).sum(1) for part in (data, simulation))
    return of_data, of_simulation, edges[: usable + 1 : join]


def check_histograms(name: str, data: Floats, simulation: Floats, edges: Floats) -> None:
    """Even bins from zero, and contents that are numbers of tracks.

    Raises
    ------
    DataError
        If not.
    """
    steps = np.diff(edges)
    if edges[0] != 0 or not np.allclose(steps, steps[0]):
        raise DataError(
            f"histogram '{name}' has uneven bins or does not begin at zero",
            expected="counts of |significance| in even bins from zero: one side of the signed distribution",
        )
    for role, content in (("data", data), ("simulation", simulation)):
        if not np.isfinite(content).all() or (content < 0).any() or content.sum() <= 0:
            raise DataError(
                f"histogram '{name}' of {role} is empty, negative or not finite somewhere",
                expected="numbers of tracks",
            )


def _rebinning(edges: Floats) -> Floats:
    """(G, B): sums fine bins into those of ``COMPARED_EDGES``; the last one takes all that lies beyond."""
    middle = 0.5 * (edges[1:] + edges[:-1])
    place = np.clip(np.digitize(middle, COMPARED_EDGES) - 1, 0, len(COMPARED_EDGES) - 2)
    matrix = np.zeros((len(COMPARED_EDGES) - 1, len(middle)))
    matrix[place, np.arange(len(middle))] = 1.0
    return matrix
