r"""Does the generator describe what the inferred detector leaves alone?

The detector is inferred from tracks that carry little lifetime. What hadrons do, their momenta, decays and
lifetimes, shows elsewhere: in the positive side of the impact parameters, in multiplicities and in shares of
the jet's momentum (:mod:`selfcal.sbi.jet_quantities`). There the simulation under the inferred detector is
compared with data. With x_j the bins that jet j fills (one per quantity, the last bin of each left out),

    f = Σ_j w_j x_j / Σ_j w_j,    ν(θ, π) = Σ_k π_k f_k(θ),    V = cov(f) + Σ_k π_k² cov(f_k)

for data and for simulation of flavour k, which has the data's spectrum of pT and \|η\|. The posterior of θ
(one standard deviation along each of its directions) and the prior of the fractions enter linearly as
A = ∂ν/∂(numbers of unit variance), so that

    χ² = (f - ν)ᵀ (V + A Aᵀ)⁻¹ (f - ν)

follows the χ² law with as many degrees of freedom as bins if the generator is right. If it is not, the
relative error μ of every bin for which χ²(V + A Aᵀ + diag(μν)²) equals them says how wrong it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import block_diag
from scipy.optimize import brentq

from selfcal.data.jets import Jets
from selfcal.sbi.binned_likelihood import merged_bins
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_quantities import BINS, QUANTITIES, quantity_bins
from selfcal.sbi.posterior import Posterior
from selfcal.transport.conditions import condition_features
from selfcal.transport.kinematics import fit_logistic, log_probability

Floats = NDArray[np.float64]
ALARM = 0.05
"""Below this p-value the generator does not describe the data."""
NAMED = 0.01
"""Quantities whose p-value, times their number, is below it are named."""
ERROR_MAX = 1.0
"""No relative error of the generator is looked for beyond it."""
OFFSETS = np.concatenate([[0], np.cumsum(BINS)[:-1]])
"""Where the bins of each quantity begin."""
EXPECTED_MIN = 25.0
"""Expected jets of a bin, below which it is merged with the next one."""


@dataclass(frozen=True)
class Sample:
    """N jets of one region: bins (N, Q), flavours, weights and (pT, |eta|) features (N, 2)."""

    bins: NDArray[np.int64]
    flavour: NDArray[np.int64]
    weight: Floats
    conditions: torch.Tensor

    @classmethod
    def of(cls, members: Sequence[Jets]) -> Sample:
        """Several samples as one."""
        return cls(
            np.concatenate([quantity_bins(jets) for jets in members]),
            np.concatenate([jets.flavour.astype(np.int64) for jets in members]),
            np.concatenate([jets.weight for jets in members]),
            torch.cat([condition_features(jets.pt_gev, jets.abs_eta) for jets in members]),
        )

    def shares(self, weight: Floats, merged: Floats, inside: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """What part of the jets ``inside`` fills each of the bins ``merged`` (B, bins); its covariance."""
        filled = np.zeros((int(inside.sum()), merged.shape[1]), dtype=np.float32)
        np.put_along_axis(filled, (self.bins[inside] + OFFSETS), 1.0, axis=1)
        filled, chosen = filled @ merged.T.astype(np.float32), weight[inside] / weight[inside].sum()
        value = chosen @ filled
        centred = chosen[:, None] * (filled - value)
        return value, np.asarray(centred.T @ centred, np.float64)


@dataclass(frozen=True)
class Comparison:
    """f - ν in B bins of all regions.

    Attributes
    ----------
    difference, expected : (B,) f - ν, and ν
    covariance : (B, B) V + A Aᵀ
    region, quantity : (B,) indices
    """

    difference: Floats
    expected: Floats
    covariance: Floats
    region: NDArray[np.int64]
    quantity: NDArray[np.int64]

    def chi2(self, error: float = 0.0, inside: NDArray[np.bool_] | None = None) -> float:
        """χ² of all bins, or of those ``inside``, with a relative error of the generator."""
        chosen = np.ones(len(self.expected), dtype=bool) if inside is None else inside
        matrix = self.covariance + np.diag((error * self.expected) ** 2)
        difference = self.difference[chosen]
        return float(difference @ np.linalg.solve(matrix[np.ix_(chosen, chosen)], difference))

    @property
    def error(self) -> float:
        """μ; zero where χ² is not above its degrees of freedom."""
        bins = len(self.expected)
        if self.chi2() <= bins:
            return 0.0
        if self.chi2(ERROR_MAX) >= bins:
            return ERROR_MAX
        return float(brentq(lambda error: self.chi2(error) - bins, 0.0, ERROR_MAX))

    def rows(self) -> list[dict[str, Any]]:
        """χ², degrees of freedom and p-value of everything, then of each region and quantity."""
        found = [{"region": None, "quantity": "all", **self._row(np.ones(len(self.region), dtype=bool))}]
        for r in np.unique(self.region):
            for q in np.unique(self.quantity):
                inside = (self.region == r) & (self.quantity == q)
                if inside.any():
                    found.append({"region": int(r), "quantity": QUANTITIES[q], **self._row(inside)})
        return found

    def _row(self, inside: NDArray[np.bool_]) -> dict[str, Any]:
        chi2, ndf = self.chi2(inside=inside), int(inside.sum())
        # Too few jets for a single bin say nothing against the generator.
        p_value = float(stats.chi2.sf(chi2, ndf)) if ndf else 1.0
        return {"chi2": chi2, "ndf": ndf, "p_value": p_value}


@dataclass(frozen=True)
class GeneratorCheck:
    """What :func:`check_generator` finds: the comparison, and the names of the regions."""

    comparison: Comparison
    regions: tuple[str, ...]

    @property
    def error(self) -> float:
        """μ."""
        return self.comparison.error

    @property
    def noticed(self) -> bool:
        """Whether the generator does not describe the data."""
        return bool(self.comparison.rows()[0]["p_value"] < ALARM)

    def content(self) -> dict[str, Any]:
        """For ``posterior.json``."""
        rows = self.comparison.rows()
        for row in rows:
            row["region"] = "all" if row["region"] is None else self.regions[row["region"]]
        named = [row for row in rows[1:] if row["p_value"] * (len(rows) - 1) < NAMED]
        return {
            "rows": rows,
            "noticed": self.noticed,
            "error": self.error,
            "flagged": [f"{row['region']} {row['quantity']}" for row in named],
        }


class JetSimulator(Protocol):
    """The simulation of every region under a detector θ (D,)."""

    def jets(self, region: int, theta: Floats) -> list[Jets]:
        """The samples of one region."""


def check_generator(
    regions: Sequence[RegionTracks], posterior: Posterior, simulator: JetSimulator
) -> GeneratorCheck:
    """Data against the simulation under the inferred detector.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent.
    """
    centre = posterior.mean
    detectors = posterior.space.within(np.stack([centre, *(centre + posterior.directions())]))
    parts = [
        _compare(one, [Sample.of(simulator.jets(r, theta)) for theta in detectors])
        if sum(len(jets) for jets in one.data) > 0
        else _nothing(len(detectors) - 1)
        for r, one in enumerate(regions)
    ]
    sizes = [len(part.expected) for part in parts]
    detector = np.concatenate([part.detector for part in parts])
    comparison = Comparison(
        np.concatenate([part.difference for part in parts]),
        np.concatenate([part.expected for part in parts]),
        block_diag(*[part.covariance for part in parts]) + detector @ detector.T,
        np.repeat(np.arange(len(parts)), sizes),
        np.concatenate([part.quantity for part in parts]),
    )
    return GeneratorCheck(comparison, tuple(one.name for one in regions))


@dataclass(frozen=True)
class _Part:
    """A region's part of a comparison; ``detector`` (B, D): the columns of A that all regions share."""

    difference: Floats
    expected: Floats
    covariance: Floats
    detector: Floats
    quantity: NDArray[np.int64]


def _nothing(directions: int) -> _Part:
    """The part of a region without data."""
    none = np.zeros(0)
    return _Part(none, none, np.zeros((0, 0)), np.zeros((0, directions)), np.zeros(0, dtype=np.int64))


def _compare(region: RegionTracks, samples: Sequence[Sample]) -> _Part:
    """``samples``: the region's simulation under the mean detector, then one along each direction."""
    data, centre = Sample.of(region.data), samples[0]
    present = np.array([bool((centre.flavour == k).any()) for k in range(len(region.fractions))])
    share = np.where(present, region.fractions, 0.0)
    share = share / share.sum()
    spectrum = fit_spectrum(centre, data, share)
    weight = spectrum(centre)
    merged, quantity = _merged(centre, weight, share, data.weight.sum() ** 2 / (data.weight**2).sum())
    value, covariance = data.shares(data.weight, merged, np.ones(len(data.weight), dtype=bool))
    flavours = [k for k in range(len(share)) if present[k]]
    per_flavour = {k: centre.shares(weight, merged, centre.flavour == k) for k in flavours}
    expected = np.sum([share[k] * per_flavour[k][0] for k in flavours], axis=0)
    covariance = covariance + np.sum([share[k] ** 2 * per_flavour[k][1] for k in flavours], axis=0)
    tilts = np.stack(
        [region.relative_width[k] * share[k] * (per_flavour[k][0] - expected) for k in flavours], axis=1
    )
    moved = []
    for sample in samples[1:]:
        weight = spectrum(sample)
        shifted = [share[k] * sample.shares(weight, merged, sample.flavour == k)[0] for k in flavours]
        moved.append(np.sum(shifted, axis=0) - expected)
    return _Part(value - expected, expected, covariance + tilts @ tilts.T, np.stack(moved, axis=1), quantity)


def fit_spectrum(centre: Sample, data: Sample, share: Floats) -> Callable[[Sample], Floats]:
    """Weights that give simulation of the composition ``share`` the data's spectrum of (pT, |eta|)."""
    weight = centre.weight.copy()
    for k, part in enumerate(share):
        inside = centre.flavour == k
        weight[inside] *= part / max(centre.weight[inside].sum(), 1e-12)
    conditions = torch.cat([centre.conditions, data.conditions])
    label = torch.cat([torch.zeros(len(weight)), torch.ones(len(data.weight))]).long()
    balanced = np.concatenate([weight / weight.sum(), data.weight / data.weight.sum()]) * len(data.weight)
    coefficients = fit_logistic(conditions, label, torch.from_numpy(balanced), 2)

    def weights(sample: Sample) -> Floats:
        log_p = log_probability(coefficients, sample.conditions)
        return np.asarray(sample.weight * (log_p[:, 1] - log_p[:, 0]).exp().numpy(), np.float64)

    return weights


def _merged(
    centre: Sample, weight: Floats, share: Floats, data_jets: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Which bins are summed into each that is compared (B, bins), and its quantity (B,)."""
    everything = np.eye(sum(BINS))
    expected = np.zeros(sum(BINS))
    for k, part in enumerate(share):
        if part > 0:
            expected += part * centre.shares(weight, everything, centre.flavour == k)[0] * data_jets
    rows, quantity = [], []
    for q, (first, size) in enumerate(zip(OFFSETS, BINS, strict=True)):
        for bins in merged_bins(expected[first : first + size], EXPECTED_MIN)[:-1]:
            rows.append(everything[first + np.array(bins)].sum(axis=0))
            quantity.append(q)
    return np.array(rows).reshape(-1, len(everything)), np.array(quantity, dtype=np.int64)
