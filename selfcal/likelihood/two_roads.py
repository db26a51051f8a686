"""One truth, two roads: scale factors read off the calibration map beside those of the template fit.

    SF_map = ε(T_f # simulation) / ε(simulation)      (reference region of f, jets of the measure fold)

Its covariance holds the spread of the map's bootstrap replicas, the difference to the other map models, the
posterior of the detector where it is inferred, and the statistical error of the simulation. The two estimates
are not independent: for a flavour whose shape is constrained, the fit takes the map as its prior. With the
fit's covariance C, the constraints P and the derivatives J of the scale factors at the best fit and J₀ at the
map, the data's fluctuations s and those of the constraints' centres move the difference by

    δ(SF_fit − SF_map) = J C s + (J C P − J₀) δa,   Cov = J C F C Jᵀ + (J C P − J₀) P⁻¹ (J C P − J₀)ᵀ

(for J = J₀ this is J (P⁻¹ − C) Jᵀ, Hausman's covariance). What the prior allows beyond the map's own
uncertainty, the residuals, is a part of it. Where the shape of a flavour is free the map does not enter the
fit, and its own covariance is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import chi2

from selfcal.likelihood.efficiencies import Row
from selfcal.likelihood.fit import FitResult
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import Layout
from selfcal.likelihood.scale_factors import STATISTICS, ScaleFactors, group_of
from selfcal.likelihood.templates import Templates

PASSING_MIN = 25
"""Rows with fewer expected passing jets of their flavour are not compared: their errors are not Gaussian."""

UNTESTED = 0.01
"""Directions in which the difference can vary by less than this part of σ say nothing and are not tested."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class MapFactors:
    """Scale factors of the map for the S rows with a value: value (S,), covariance (S, S) per group."""

    value: NDArray[np.float64]
    group_covariance: Mapping[str, Matrix]

    @property
    def covariance(self) -> Matrix:
        """All groups together."""
        return np.asarray(sum(self.group_covariance.values()))


@dataclass(frozen=True)
class Agreement:
    """χ² of fit − map over the compared rows, as places among the S rows with a value.

    ``sigma`` (S,) is the standard deviation of the difference of every row, compared or not.
    """

    chi2: float
    ndf: int
    compared: NDArray[np.int64]
    difference: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @property
    def p_value(self) -> float | None:
        """Probability of a larger χ²; None where nothing can be compared."""
        return float(chi2.sf(self.chi2, self.ndf)) if self.ndf else None


def map_factors(
    templates: Templates, layout: Layout, model: HistFactory, factors: ScaleFactors
) -> MapFactors:
    """Read the scale factors off the templates before and after the map."""
    rows = [factors.rows[i] for i in factors.measured]
    value = _ratios(templates.nominal, templates.calibrated, layout, rows)
    replicas = np.stack([_ratios(templates.nominal, one, layout, rows) for one in templates.replicas])
    deviation = replicas - replicas.mean(axis=0)
    models, detector = (
        [_ratios(templates.nominal, one, layout, rows) - value for one in varied.values()]
        for varied in (templates.variations, templates.shared)
    )
    by_theta, by_eta = (part.numpy() for part in factors.ratios.jacobians(model.start))
    simulation = [j for j, p in enumerate(model.parameters) if group_of(p.name) == "simulation_statistics"]
    shared = by_theta[:, simulation] * model.width.numpy()[simulation]
    return MapFactors(
        value,
        {
            "map": deviation.T @ deviation / (len(replicas) - 1),
            "map_model": sum((np.outer(d, d) for d in models), np.zeros((len(rows), len(rows)))),
            "detector": sum((np.outer(d, d) for d in detector), np.zeros((len(rows), len(rows)))),
            "simulation_statistics": shared @ shared.T + by_eta @ by_eta.T,
        },
    )


def _ratios(
    nominal: Float[Matrix, "R F P K"], varied: Float[Matrix, "R F P K"], layout: Layout, rows: list[Row]
) -> NDArray[np.float64]:
    result = []
    for row in rows:
        f = layout.flavours.index(row.flavour)
        place = (int(layout.reference[f]), f, row.kinematic_bin)
        chosen = list(row.passing)
        after, before = (part[place][chosen].sum() / part[place].sum() for part in (varied, nominal))
        result.append(after / before)
    return np.array(result)


def difference_covariance(
    layout: Layout, model: HistFactory, result: FitResult, factors: ScaleFactors, of_map: MapFactors
) -> Float[Matrix, "S S"]:
    """Covariance of SF_fit − SF_map; see above."""
    at_map, eta_at_map = (part.numpy() for part in factors.ratios.jacobians(model.start))
    _, eta_at_fit = factors.ratios.jacobians(torch.from_numpy(result.best_fit))
    width = model.width.numpy()
    moving = np.flatnonzero(model.constrained.numpy() & ~model.fixed.numpy())
    response = (factors.jacobian @ result.covariance)[:, moving] / width[moving]
    prior = response - at_map[:, moving] * width[moving]
    independent = eta_at_fit.numpy() - eta_at_map
    covariance = factors.group_covariance[STATISTICS] + prior @ prior.T + independent @ independent.T
    rows = [factors.rows[i] for i in factors.measured]
    places = [(layout.flavours.index(row.flavour), row.kinematic_bin) for row in rows]
    free = np.array([layout.free[place] for place in places], dtype=bool)
    own = sum(of_map.group_covariance[name] for name in ("map", "map_model", "detector"))
    return np.asarray(covariance + own * np.outer(free, free))


def agreement(
    layout: Layout, model: HistFactory, result: FitResult, factors: ScaleFactors, of_map: MapFactors
) -> Agreement:
    """Compare the two roads over the measured working-point rows with ``PASSING_MIN`` expected jets."""
    covariance = difference_covariance(layout, model, result, factors, of_map)
    difference = factors.value - of_map.value
    compared = [
        s
        for s, i in enumerate(factors.measured)
        if factors.rows[i].kind == "working_point"
        and factors.rows[i].status == "measured"
        and factors.expected_passing[s] >= PASSING_MIN
    ]
    unit = np.sqrt(np.diag(factors.covariance))[compared]
    scaled = covariance[np.ix_(compared, compared)] / np.outer(unit, unit)
    variances, directions = np.linalg.eigh(scaled) if compared else (np.zeros(0), np.zeros((0, 0)))
    tested = variances > UNTESTED**2
    along = (difference[compared] / unit) @ directions[:, tested]
    return Agreement(
        float((along**2 / variances[tested]).sum()),
        int(tested.sum()),
        np.array(compared, dtype=np.int64),
        difference,
        np.sqrt(np.diag(covariance)),
    )


def two_roads_json(factors: ScaleFactors, of_map: MapFactors, found: Agreement) -> dict[str, Any]:
    """The content of ``two_roads.json``; ``row`` is the row of ``scale_factors.json``."""
    total, of_fit = np.sqrt(np.diag(of_map.covariance)), np.sqrt(np.diag(factors.covariance))
    groups = {name: np.sqrt(np.diag(part)) for name, part in of_map.group_covariance.items()}
    compared = set(found.compared.tolist())
    rows = []
    for s, i in enumerate(factors.measured):
        row, sigma = factors.rows[i], float(found.sigma[s])
        rows.append(
            {
                "row": int(i),
                "flavour": row.flavour,
                "kind": row.kind,
                "working_point": row.working_point,
                "bin": row.bin,
                "map": {
                    "value": float(of_map.value[s]),
                    "total": float(total[s]),
                    "groups": {name: float(part[s]) for name, part in groups.items()},
                },
                "fit": {"value": float(factors.value[s]), "total": float(of_fit[s])},
                "difference": float(found.difference[s]),
                "difference_uncertainty": sigma,
                "compared": s in compared,
            }
        )
    return {
        "schema_version": 1,
        "chi2": found.chi2,
        "ndf": found.ndf,
        "p_value": found.p_value,
        "rows": rows,
        "map_covariance": {"rows": factors.measured.tolist(), "matrix": of_map.covariance.tolist()},
    }
