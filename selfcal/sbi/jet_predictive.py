r"""Does the simulation under the inferred detector look like the data, in the summaries of single jets?

For draws of (θ, composition, multiplicity) from the posterior the simulation is smeared anew and weighted to
the composition and to the data's spectrum of pT. For region r, summary j and bin b

    T = Σ_rjb (n - ν)²/V,    V = ν + (variance of the simulation) + (μ ν)².

p is the part of replicas (jets drawn from a resampled simulation of the same draw, with a relative modelling
error μ of every bin) whose T exceeds that of the data: summaries of one jet are correlated, so no χ² law
holds for all of them. The networks play no part: what they learnt wrongly shows here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.data.jets import Jets
from selfcal.sbi.donors import Donors
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_bank import multiplicity_width, sample_rows
from selfcal.sbi.jet_scores import JetRows
from selfcal.sbi.jet_summaries import SUMMARIES
from selfcal.sbi.smearing import smear

Floats = NDArray[np.float64]
DRAWS, REPLICAS = 10, 20
BINS = 8
"""Bins of each summary and of pT, with equal parts of the simulation in each."""
JETS_MAX = 10_000
"""Simulated jets of a region that are used."""


def shares_of(fractions: Floats, relative_width: Floats, tilt: Floats) -> Floats:
    """π_rf ∝ π⁰_rf exp(σ_rf η_rf), (R, F)."""
    share = fractions * np.exp(relative_width * tilt)
    return np.asarray(share / share.sum(axis=-1, keepdims=True), np.float64)


def split_numbers(x: Floats, regions: int, flavours: int) -> tuple[Floats, Floats, Floats]:
    """(u, η, ε) of the free numbers of a likelihood of jets: (D,), (R, F), (R,)."""
    size = len(PARAMETERS)
    last = size + regions * flavours
    return x[:size], x[size:last].reshape(regions, flavours), x[last:]


def detector_in(u: Floats, multiplicity: float, config: InferenceConfig) -> Floats:
    """θ of a region in its own units, as it looks with the generator's multiplicity there, (D,)."""
    moved = u + multiplicity_width(config) * multiplicity
    return np.asarray(NOMINAL.vector() + prior_widths(config.prior_width) * moved, np.float64)


def smeared_rows(jets: Sequence[Jets], region: int, theta: Floats, donors: Donors, seed: int) -> JetRows:
    """Summaries of a region's simulation under one detector (D,)."""
    parameters = SmearingParameters.from_vector(theta)
    return sample_rows([smear(one, parameters, donors, seed) for one in jets], region, seed)


def predictive_jets(
    regions: Sequence[RegionTracks],
    data: JetRows,
    best: Floats,
    covariance: Floats,
    donors: Donors,
    config: InferenceConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows as of the binned check: first that of everything, then one per region and summary.

    ``data``: all jets of the regions; ``best``, ``covariance``: of all free numbers of the likelihood.
    """
    generator = np.random.default_rng(seed)
    flavours = len(regions[0].fractions)
    samples = [_some(one.simulation, JETS_MAX) for one in regions]
    plain = [sample_rows(members, r, seed) for r, members in enumerate(samples)]
    observed = [data.select(data.region == r) for r in range(len(regions))]
    edges = [np.quantile(rows.summaries, np.linspace(0, 1, BINS + 1)[1:-1], axis=0) for rows in plain]
    counted = [_counts(rows, rows.weight, edge) for rows, edge in zip(observed, edges, strict=True)]
    seen, repeated = [], []
    for number, x in enumerate(generator.multivariate_normal(best, covariance, DRAWS)):
        u, tilt, multiplicity = split_numbers(x, len(regions), flavours)
        terms, replicas = [], []
        for r, one in enumerate(regions):
            theta = detector_in(u, multiplicity[r], config)
            rows = smeared_rows(samples[r], r, theta, donors, seed + number + 1)
            share = shares_of(one.fractions, one.relative_width, tilt[r])
            weight = mixture_weights(rows, observed[r], share)
            bins = _bins(rows, edges[r])
            nu = _binned(bins, weight)
            variance = nu + _binned(bins, weight**2) + (config.modelling_error * nu) ** 2
            terms.append((counted[r] - nu) / np.sqrt(np.maximum(variance, 1e-9)))
            total = weight.sum()
            resampled = [
                _replica(generator, bins, weight, total, nu, config.modelling_error) for _ in range(REPLICAS)
            ]
            replicas.append((np.stack(resampled) - nu) / np.sqrt(np.maximum(variance, 1e-9)))
        seen.append(np.stack(terms))
        repeated.append(np.stack(replicas, axis=1))
    return _rows(np.stack(seen), np.stack(repeated))


def _some(samples: Sequence[Jets], limit: int) -> list[Jets]:
    """The first jets of every sample, in proportion, ``limit`` in all at most."""
    total = sum(len(jets) for jets in samples)
    part = min(1.0, limit / max(total, 1))
    return [jets.select(np.arange(int(np.ceil(part * len(jets))))) for jets in samples]


def mixture_weights(rows: JetRows, observed: JetRows, share: Floats) -> Floats:
    """Weights of simulated jets with which their flavours have ``share`` and their pT the data's spectrum."""
    weight = rows.weight.copy()
    for flavour, part in enumerate(share):
        inside = rows.flavour == flavour
        weight[inside] *= part / max(rows.weight[inside].sum(), 1e-12)
    edges = np.quantile(rows.kinematics[:, 0], np.linspace(0, 1, BINS + 1)[1:-1])
    mine, its = (np.digitize(one.kinematics[:, 0], edges) for one in (rows, observed))
    wanted = np.bincount(its, observed.weight, BINS)
    found = np.bincount(mine, weight, BINS)
    return np.asarray(weight * (wanted / np.maximum(found, 1e-12))[mine], np.float64)


def _bins(rows: JetRows, edges: Floats) -> NDArray[np.int64]:
    columns = [np.digitize(values, edge) for values, edge in zip(rows.summaries.T, edges.T, strict=True)]
    return np.stack(columns, axis=1) + BINS * np.arange(len(columns))


def _binned(bins: NDArray[np.int64], weight: Floats) -> Floats:
    summaries = bins.shape[1]
    found = np.bincount(bins.ravel(), np.repeat(weight, summaries), BINS * summaries)
    return np.asarray(found.reshape(summaries, BINS), np.float64)


def _counts(rows: JetRows, weight: Floats, edges: Floats) -> Floats:
    return _binned(_bins(rows, edges), weight)


def _replica(
    generator: np.random.Generator,
    bins: NDArray[np.int64],
    weight: Floats,
    total: float,
    nu: Floats,
    error: float,
) -> Floats:
    """Counts of as many jets as in data, from a resampled simulation, off by the modelling error."""
    resampled = np.maximum(weight, 0.0) * generator.poisson(1.0, len(weight))
    drawn = generator.multinomial(round(total), resampled / resampled.sum()).astype(np.float64)
    return _binned(bins, drawn) + error * nu * generator.standard_normal(nu.shape)


def _rows(seen: Floats, repeated: Floats) -> list[dict[str, Any]]:
    """``seen``: pulls (draws, R, S, BINS); ``repeated``: those of replicas (draws, REPLICAS, R, S, BINS)."""
    t_seen = (seen**2).sum(axis=(1, 2, 3))
    t_repeated = (repeated**2).sum(axis=(2, 3, 4))
    regions, summaries = seen.shape[1:3]
    free = BINS - 1
    middle = seen.mean(axis=0)

    def described(chi2: Floats, ndf: int, p_value: float, pulls: Floats) -> dict[str, Any]:
        largest = float(pulls.flat[np.abs(pulls).argmax()])
        return {"chi2": float(chi2.mean()), "ndf": ndf, "p_value": p_value, "pull": largest}

    p_all = float((t_repeated >= t_seen[:, None]).mean())
    every = described(t_seen, regions * summaries * free, p_all, middle)
    found = [{"region": None, "histogram": "all", "category": "all", **every}]
    for r in range(regions):
        for j in range(summaries):
            chi2 = (seen[:, r, j] ** 2).sum(axis=1)
            name, category = SUMMARIES[j].split()
            p_value = float(stats.chi2.sf(chi2, free).mean())
            row = described(chi2, free, p_value, middle[r, j])
            found.append({"region": r, "histogram": name, "category": category, **row})
    return found
