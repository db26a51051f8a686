"""Scale factors, working points and continuous, with one covariance, from the fitted shapes.

    SF_fpk = ε_fpk / ε⁰_fpk,   ε_fpk = rate_fpk / Σ_k rate_fpk   (reference region of f, after the fit)
    SF_fpw = Σ_{k passes w} ε_fpk / Σ_{k passes w} ε⁰_fpk

The covariance is J C Jᵀ with the Jacobian J of all scale factors. With C = (F_data + Σ_j P_j)⁻¹ it splits
exactly, to first order, into the data's statistical part C F_data C and one term C P_j C per constraint j,
and these sum by group.

The simulation's jets enter ε⁰ and the calibrated template alike, with correlation ρ = √(min/max) of the two
variances (the smaller set of jets taken as part of the larger): the parameter ``simulation_f_p_k`` moves
both, and the independent part of ε⁰'s error is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.run import FitConfig
from selfcal.likelihood.eigenvariations import reduce_covariance, round_trip_error
from selfcal.likelihood.fit import FitResult
from selfcal.likelihood.histfactory import Cell, HistFactory
from selfcal.likelihood.layout import Layout, Status, sample_name
from selfcal.likelihood.templates import Binning, Templates

STATISTICS = "statistics"
GROUP_OF_PREFIX: tuple[tuple[str, str], ...] = (
    ("composition_", "composition"),
    ("pt_shape_", "pt_shape"),
    ("map_model_", "map_model"),
    ("map_", "map"),
    ("residual_", "residual"),
    ("extrapolation_", "extrapolation"),
    ("simulation_", "simulation_statistics"),
    ("staterror_", "simulation_statistics"),
)
GROUPS: tuple[str, ...] = (STATISTICS, *dict.fromkeys(group for _, group in GROUP_OF_PREFIX))


@dataclass(frozen=True)
class Row:
    """One scale factor: a working point (``bin`` None) or a continuous bin, in one pT bin."""

    flavour: str
    pt_bin: int
    working_point: float | None
    bin: int | None
    passing: tuple[int, ...]
    status: Status

    @property
    def kind(self) -> str:
        return "continuous" if self.working_point is None else "working_point"


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
    """

    rows: tuple[Row, ...]
    measured: NDArray[np.int64]
    value: NDArray[np.float64]
    expected_passing: NDArray[np.float64]
    efficiency_data: NDArray[np.float64]
    efficiency_simulation: NDArray[np.float64]
    covariance: NDArray[np.float64]
    group_covariance: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class _Shape:
    """One flavour in one pT bin of its reference region."""

    cells: Tensor
    efficiency: Tensor
    parameter: Tensor
    shared: Tensor
    independent: Tensor


def group_of(name: str) -> str:
    """The systematic group of a constrained parameter."""
    return next((group for prefix, group in GROUP_OF_PREFIX if name.startswith(prefix)), "other")


def make_rows(templates: Templates, layout: Layout) -> tuple[Row, ...]:
    """Rows of all flavours and pT bins: working points loosest first, then the continuous bins.

    A row without simulated jets, before or after calibration, in its bins is ``unmeasured``.
    """
    binning, rows = layout.binning, []
    for f, flavour in enumerate(layout.flavours):
        region = int(layout.reference[f])
        for p in range(binning.n_pt):
            for wanted in _selections(binning):
                working_point, k, passing = wanted
                status = layout.status(f, p)
                if status != "unmeasured":
                    chosen = list(passing)
                    before = templates.nominal[region, f, p, chosen].sum()
                    after = templates.calibrated[region, f, p, chosen].sum()
                    status = status if min(before, after) > 0 else "unmeasured"
                rows.append(Row(flavour, p, working_point, k, passing, status))
    return tuple(rows)


def _selections(binning: Binning) -> list[tuple[float | None, int | None, tuple[int, ...]]]:
    n = binning.n_bins
    points = [(wp, None, tuple(range(i + 1, n))) for i, wp in enumerate(binning.working_points)]
    return [*points, *((None, k, (k,)) for k in range(n))]


def scale_factors(
    templates: Templates, layout: Layout, model: HistFactory, result: FitResult
) -> ScaleFactors:
    """Values, groups and covariance of all scale factors."""
    rows = make_rows(templates, layout)
    shapes = {
        (flavour, p): _shape(templates, layout, model, f, p)
        for f, flavour in enumerate(layout.flavours)
        for p in range(layout.binning.n_pt)
        if layout.status(f, p) != "unmeasured"
    }
    measured = [i for i, row in enumerate(rows) if row.status != "unmeasured"]
    n_bins = layout.binning.n_bins
    slots = {key: slice(i * n_bins, (i + 1) * n_bins) for i, key in enumerate(shapes)}
    theta = torch.from_numpy(result.best_fit)
    eta = torch.zeros(len(shapes) * n_bins, dtype=torch.float64)

    def efficiencies(theta: Tensor, eta: Tensor) -> Tensor:
        """(S, 2): of data and of simulation."""
        rates = model.rates(theta)
        pairs = []
        fractions = {
            key: _efficiencies(shape, rates, theta, eta[slots[key]]) for key, shape in shapes.items()
        }
        for i in measured:
            data, nominal = fractions[rows[i].flavour, rows[i].pt_bin]
            chosen = list(rows[i].passing)
            pairs.append(torch.stack([data[chosen].sum(), nominal[chosen].sum()]))
        return torch.stack(pairs) if pairs else theta.new_zeros((0, 2))

    def values(theta: Tensor, eta: Tensor) -> Tensor:
        pairs = efficiencies(theta, eta)
        return pairs[:, 0] / pairs[:, 1]

    rates = model.rates(theta)
    passing = [
        float(rates[shapes[rows[i].flavour, rows[i].pt_bin].cells[list(rows[i].passing)]].sum())
        for i in measured
    ]
    by_theta, by_eta = torch.func.jacrev(values, argnums=(0, 1))(theta, eta)
    pairs = efficiencies(theta, eta).numpy()
    groups = _group_covariances(model, result, by_theta.numpy(), by_eta.numpy())
    return ScaleFactors(
        rows,
        np.array(measured, dtype=np.int64),
        pairs[:, 0] / pairs[:, 1],
        np.array(passing),
        pairs[:, 0],
        pairs[:, 1],
        sum(groups.values(), np.zeros((len(measured), len(measured)))),
        groups,
    )


def _shape(templates: Templates, layout: Layout, model: HistFactory, f: int, p: int) -> _Shape:
    r, flavour = int(layout.reference[f]), layout.flavours[f]
    channel, n_bins = layout.channel(r, p), layout.binning.n_bins
    cells = [model.cell_index[Cell(channel, sample_name(flavour, k), k)] for k in range(n_bins)]
    names = [f"simulation_{flavour}_{p}_{k}" for k in range(n_bins)]
    shared = np.array([name in model.index for name in names])
    nominal, variance = templates.nominal[r, f, p], templates.nominal_variance[r, f, p]
    calibrated = templates.calibrated_variance[r, f, p]
    error = np.divide(np.sqrt(variance), nominal, out=np.zeros(n_bins), where=nominal > 0)
    smaller, larger = np.minimum(variance, calibrated), np.maximum(variance, calibrated)
    correlation = np.sqrt(np.divide(smaller, larger, out=np.zeros(n_bins), where=larger > 0)) * shared
    total = nominal.sum()
    efficiency = nominal / total if total > 0 else nominal
    return _Shape(
        torch.tensor(cells),
        torch.from_numpy(efficiency),
        torch.tensor([model.index.get(name, 0) for name in names]),
        torch.from_numpy(correlation * error),
        torch.from_numpy(np.sqrt(1 - correlation**2) * error),
    )


def _efficiencies(shape: _Shape, rates: Tensor, theta: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    data = rates[shape.cells]
    nominal = shape.efficiency * torch.exp(shape.shared * theta[shape.parameter] + shape.independent * eta)
    return data / data.sum(), nominal / nominal.sum()


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


def as_json(factors: ScaleFactors, layout: Layout, config: FitConfig, tagger: str) -> dict[str, Any]:
    """The content of ``scale_factors.json``; rows without measurement have null values."""
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
                "flavour": row.flavour,
                "kind": row.kind,
                "working_point": row.working_point,
                "bin": row.bin,
                "pt_gev": list(binning.pt_gev_edges[row.pt_bin : row.pt_bin + 2]),
                "abs_eta": list(config.abs_eta_edges),
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
        "flavours": list(layout.flavours),
        "pt_gev_edges": list(binning.pt_gev_edges),
        "abs_eta_edges": list(config.abs_eta_edges),
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
