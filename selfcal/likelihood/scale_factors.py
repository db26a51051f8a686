"""Scale factors, working points and continuous, with one covariance, from the fitted shapes.

The covariance is J C Jᵀ with the Jacobian J of all scale factors. With C = (F_data + Σ_j P_j)⁻¹ it splits
exactly, to first order, into the data's statistical part C F_data C and one term C P_j C per constraint j,
and these sum by group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.likelihood.efficiencies import EfficiencyRatios, Row, efficiency_ratios
from selfcal.likelihood.eigenvariations import reduce_covariance, round_trip_error
from selfcal.likelihood.fit import FitResult
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import Layout
from selfcal.likelihood.templates import Templates

STATISTICS = "statistics"
GROUP_OF_PREFIX: tuple[tuple[str, str], ...] = (
    ("composition_", "composition"),
    ("pt_shape_", "pt_shape"),
    ("map_model_", "map_model"),
    ("map_", "map"),
    ("detector_", "detector"),
    ("modelling_", "modelling"),
    ("residual_", "residual"),
    ("extrapolation_", "extrapolation"),
    ("external_", "external"),
    ("simulation_", "simulation_statistics"),
    ("staterror_", "simulation_statistics"),
)
GROUPS: tuple[str, ...] = (STATISTICS, *dict.fromkeys(group for _, group in GROUP_OF_PREFIX))


@dataclass(frozen=True)
class ScaleFactors:
    """All rows with their covariance.

    Attributes
    ----------
    measured : (S,) indices into ``rows`` of those with a value
    value, expected_passing : (S,)
    efficiency_data, efficiency_simulation : (S,) whose ratio the value is; both are of the fit, in which the
        simulation's own statistical fluctuation is a parameter
    covariance : (S, S), the sum of ``group_covariance``
    ratios : the values as a function of the D parameters
    jacobian : (S, D) its derivative at the best fit
    """

    rows: tuple[Row, ...]
    measured: NDArray[np.int64]
    value: NDArray[np.float64]
    expected_passing: NDArray[np.float64]
    efficiency_data: NDArray[np.float64]
    efficiency_simulation: NDArray[np.float64]
    covariance: NDArray[np.float64]
    group_covariance: Mapping[str, NDArray[np.float64]]
    ratios: EfficiencyRatios
    jacobian: NDArray[np.float64]


def group_of(name: str) -> str:
    """The systematic group of a constrained parameter."""
    return next((group for prefix, group in GROUP_OF_PREFIX if name.startswith(prefix)), "other")


def scale_factors(
    templates: Templates, layout: Layout, model: HistFactory, result: FitResult
) -> ScaleFactors:
    """Values, groups and covariance of all scale factors."""
    ratios = efficiency_ratios(templates, layout, model)
    theta = torch.from_numpy(result.best_fit)
    data, nominal = (part.numpy() for part in ratios.pairs(theta))
    by_theta, by_eta = (part.numpy() for part in ratios.jacobians(theta))
    groups = _group_covariances(model, result, by_theta, by_eta)
    return ScaleFactors(
        rows=ratios.rows,
        measured=ratios.measured,
        value=data / nominal,
        expected_passing=ratios.expected_passing(theta).numpy(),
        efficiency_data=data,
        efficiency_simulation=nominal,
        covariance=sum(groups.values(), np.zeros((len(data), len(data)))),
        group_covariance=groups,
        ratios=ratios,
        jacobian=by_theta,
    )


def _group_covariances(
    model: HistFactory,
    result: FitResult,
    by_theta: Float[NDArray[np.float64], "S D"],
    by_eta: Float[NDArray[np.float64], "S E"],
) -> dict[str, NDArray[np.float64]]:
    total = by_theta @ result.covariance @ by_theta.T
    response = (by_theta @ result.covariance) / model.width.numpy()
    groups = {name: np.zeros_like(total) for name in GROUPS}
    members: dict[str, list[int]] = {}
    for j, parameter in enumerate(model.parameters):
        if parameter.width is not None and not parameter.fixed:
            members.setdefault(group_of(parameter.name), []).append(j)
    constrained = np.zeros_like(total)
    for name, indices in members.items():
        part = response[:, indices] @ response[:, indices].T
        groups[name] = groups.get(name, 0.0) + part
        constrained += part
    groups[STATISTICS] = _positive(total - constrained)
    groups["simulation_statistics"] += by_eta @ by_eta.T
    return groups


def _positive(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest positive matrix: the observed information of the data may have tiny negative parts."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def eigenvariations(factors: ScaleFactors) -> dict[str, dict[str, Any]]:
    """Per flavour: the independent variations of its rows, their envelope and what the reduction loses."""
    result: dict[str, dict[str, Any]] = {}
    flavours = np.array([factors.rows[i].flavour for i in factors.measured])
    for flavour in dict.fromkeys(flavours.tolist()):
        chosen = np.nonzero(flavours == flavour)[0]
        block = factors.covariance[np.ix_(chosen, chosen)]
        reduced = reduce_covariance(block)
        result[flavour] = {
            "rows": factors.measured[chosen].tolist(),
            "shifts": reduced.shifts.tolist(),
            "envelope": reduced.envelope.tolist(),
            "round_trip_error": asdict(round_trip_error(reduced, block)),
        }
    return result


def as_json(
    factors: ScaleFactors, layout: Layout, tagger: str, *, blinded: bool = False, forced: bool = False
) -> dict[str, Any]:
    """The content of ``scale_factors.json``; rows without measurement have null values.

    ``blinded``: the values are those expected from simulation; ``forced``: of a fit that did not converge.
    """
    binning = layout.binning
    place = {int(row): i for i, row in enumerate(factors.measured)}
    sigma = {name: np.sqrt(np.diag(part)) for name, part in factors.group_covariance.items()}
    total = np.sqrt(np.diag(factors.covariance))
    rows = []
    for index, row in enumerate(factors.rows):
        i = place.get(index)
        known = i is not None
        rows.append(
            {
                **row.place(binning),
                "value": float(factors.value[i]) if known else None,
                "stat": float(sigma[STATISTICS][i]) if known else None,
                "syst": {g: float(s[i]) for g, s in sigma.items() if g != STATISTICS} if known else {},
                "total": float(total[i]) if known else None,
                "status": row.status,
                "expected_passing": float(factors.expected_passing[i]) if known else None,
                "efficiency_data": float(factors.efficiency_data[i]) if known else None,
                "efficiency_simulation": float(factors.efficiency_simulation[i]) if known else None,
                "truth": None,
            }
        )
    return {
        "schema_version": 1,
        "tagger": tagger,
        "blinded": blinded,
        "forced": forced,
        "flavours": list(layout.flavours),
        "pt_gev_edges": list(binning.pt_gev_edges),
        "abs_eta_edges": list(binning.abs_eta_edges),
        "working_points": list(binning.working_points),
        "discriminant_edges": list(binning.discriminant_edges),
        "rows": rows,
        "covariance": {
            "rows": factors.measured.tolist(),
            "matrix": factors.covariance.tolist(),
            "groups": {name: part.tolist() for name, part in factors.group_covariance.items()},
        },
        "eigenvariations": eigenvariations(factors),
    }
