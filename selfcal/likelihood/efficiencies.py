"""Scale factors as a differentiable function of the parameters of the fit.

    SF_fpk = ε_fpk / ε⁰_fpk,   ε_fpk = rate_fpk / Σ_k rate_fpk   (reference region of f)
    SF_fpw = Σ_{k passes w} ε_fpk / Σ_{k passes w} ε⁰_fpk

The simulation's jets enter ε⁰ and the calibrated template alike, with correlation ρ = √(min/max) of the two
variances (the smaller set of jets taken as part of the larger; one where the template is the simulation times
an external scale factor): the parameter ``simulation_f_p_k`` moves
both by ρ, and a unit Gaussian η_fpk that no data constrain moves ε⁰ alone by √(1 − ρ²).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from selfcal.likelihood.derivatives import rate_jacobian
from selfcal.likelihood.histfactory import Cell, HistFactory
from selfcal.likelihood.layout import Layout, Status, sample_name
from selfcal.likelihood.templates import Binning, Templates


@dataclass(frozen=True)
class Row:
    """One scale factor: a working point (``bin`` None) or a continuous bin, in one kinematic bin."""

    flavour: str
    kinematic_bin: int
    working_point: float | None
    bin: int | None
    passing: tuple[int, ...]
    status: Status

    @property
    def kind(self) -> str:
        return "continuous" if self.working_point is None else "working_point"

    def place(self, binning: Binning) -> dict[str, Any]:
        """Which scale factor it is, as every file names it."""
        return {
            "flavour": self.flavour,
            "kind": self.kind,
            "working_point": self.working_point,
            "bin": self.bin,
            "pt_gev": list(binning.pt_gev_range(self.kinematic_bin)),
            "abs_eta": list(binning.abs_eta_range(self.kinematic_bin)),
        }


@dataclass(frozen=True)
class EfficiencyRatios:
    """S scale factors with a value, of N shapes (flavour and kinematic bin) with K discriminant bins each.

    Attributes
    ----------
    rows : all rows, with and without a value
    measured : (S,) indices into ``rows`` of those with a value
    shape_of_row : (S,) shape of each measured row
    passing : (S, K) one where the row counts a bin
    cells : (N, K) cells of the model
    efficiency : (N, K) nominal simulation, ε⁰
    parameter : (N, K) index of the parameter that moves it; without effect where ``shared`` is zero
    shared, independent : (N, K) logarithmic shift of ε⁰ by that parameter, and by η
    """

    model: HistFactory
    rows: tuple[Row, ...]
    measured: NDArray[np.int64]
    shape_of_row: Int[Tensor, " S"]
    passing: Float[Tensor, "S K"]
    cells: Int[Tensor, "N K"]
    efficiency: Float[Tensor, "N K"]
    parameter: Int[Tensor, "N K"]
    shared: Float[Tensor, "N K"]
    independent: Float[Tensor, "N K"]

    @property
    def eta_size(self) -> int:
        """Number of the independent fluctuations η."""
        return self.efficiency.numel()

    def pairs(
        self, theta: Float[Tensor, " D"], eta: Float[Tensor, " NK"] | None = None
    ) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Efficiencies of data and of nominal simulation."""
        data = self.model.rates(theta)[self.cells]
        exponent = self.shared * theta[self.parameter]
        if eta is not None:
            exponent = exponent + self.independent * eta.reshape(self.efficiency.shape)
        nominal = self.efficiency * torch.exp(exponent)
        shares = (shape / shape.sum(1, keepdim=True) for shape in (data, nominal))
        data, nominal = ((self.passing * share[self.shape_of_row]).sum(1) for share in shares)
        return data, nominal

    def values(
        self, theta: Float[Tensor, " D"], eta: Float[Tensor, " NK"] | None = None
    ) -> Float[Tensor, " S"]:
        """The scale factors."""
        data, nominal = self.pairs(theta, eta)
        return data / nominal

    def jacobians(self, theta: Float[Tensor, " D"]) -> tuple[Float[Tensor, "S D"], Float[Tensor, "S NK"]]:
        """Derivatives of the scale factors by θ and by η, at η = 0.

        With c_k = 1 where the row counts bin k, dε = Σ_k (c_k − ε) dr_k / Σ r of rates or contents r.
        """
        rates = self.model.rates(theta)[self.cells]
        nominal = self.efficiency * torch.exp(self.shared * theta[self.parameter])
        n_shapes, n_bins = self.cells.shape
        of_rates = rate_jacobian(self.model, theta, self.cells.flatten()).reshape(n_shapes, n_bins, -1)
        own = self.shape_of_row
        total, shares = rates.sum(1, keepdim=True), nominal / nominal.sum(1, keepdim=True)
        data = (self.passing * (rates / total)[own]).sum(1, keepdim=True)
        before = (self.passing * shares[own]).sum(1, keepdim=True)
        by_rate = (self.passing - data) / total[own] / before
        by_log_nominal = -data / before**2 * (self.passing - before) * shares[own]
        by_theta = theta.new_zeros(len(own), len(theta))
        by_eta = theta.new_zeros(len(own), n_shapes, n_bins)
        for n in range(n_shapes):
            rows = torch.nonzero(own == n)[:, 0]
            of_nominal = by_log_nominal[rows] * self.shared[n]
            by_theta[rows] = (by_rate[rows] @ of_rates[n]).index_add(1, self.parameter[n], of_nominal)
            by_eta[rows, n] = by_log_nominal[rows] * self.independent[n]
        return by_theta, by_eta.flatten(1)

    def expected_passing(self, theta: Float[Tensor, " D"]) -> Float[Tensor, " S"]:
        """Jets of the row's flavour that the fit expects in its bins."""
        return (self.passing * self.model.rates(theta)[self.cells][self.shape_of_row]).sum(1)

    def expected_fewer(self, theta: Float[Tensor, " D"]) -> Float[Tensor, " S"]:
        """Jets of the row's flavour expected inside or outside of its bins, whichever are fewer."""
        jets = self.model.rates(theta)[self.cells][self.shape_of_row]
        inside = (self.passing * jets).sum(1)
        return torch.minimum(inside, jets.sum(1) - inside)


def efficiency_ratios(templates: Templates, layout: Layout, model: HistFactory) -> EfficiencyRatios:
    """All scale factors of a fit; rows as :func:`make_rows` lists them."""
    rows = make_rows(templates, layout)
    # A flavour without simulated jets in its region has no row: its 0/0 would reach others by derivatives.
    named = {(row.flavour, row.kinematic_bin) for row in rows if row.status != "unmeasured"}
    keys = [
        (f, p)
        for f, flavour in enumerate(layout.flavours)
        for p in range(layout.binning.n_kinematic)
        if (flavour, p) in named
    ]
    slot = {(layout.flavours[f], p): i for i, (f, p) in enumerate(keys)}
    measured = [i for i, row in enumerate(rows) if row.status != "unmeasured"]
    n_bins = layout.binning.n_bins
    passing = torch.zeros((len(measured), n_bins), dtype=torch.float64)
    for i, row in enumerate(measured):
        passing[i, list(rows[row].passing)] = 1.0
    columns = [_shape(templates, layout, model, f, p) for f, p in keys]

    def stacked(index: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor(np.array([c[index] for c in columns]), dtype=dtype).reshape(len(keys), n_bins)

    return EfficiencyRatios(
        model=model,
        rows=rows,
        measured=np.array(measured, dtype=np.int64),
        shape_of_row=torch.tensor(
            [slot[rows[i].flavour, rows[i].kinematic_bin] for i in measured], dtype=torch.long
        ),
        passing=passing,
        cells=stacked(0, torch.long),
        efficiency=stacked(1, torch.float64),
        parameter=stacked(2, torch.long),
        shared=stacked(3, torch.float64),
        independent=stacked(4, torch.float64),
    )


def make_rows(templates: Templates, layout: Layout) -> tuple[Row, ...]:
    """Rows of all flavours and kinematic bins: working points loosest first, then the continuous bins.

    A row without simulated jets, before or after calibration, in its bins is ``unmeasured``.
    """
    binning, rows = layout.binning, []
    for f, flavour in enumerate(layout.flavours):
        region = int(layout.reference[f])
        for p in range(binning.n_kinematic):
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


def _shape(
    templates: Templates, layout: Layout, model: HistFactory, f: int, p: int
) -> tuple[NDArray[np.float64], ...]:
    """Cells, ε⁰, parameters, and shared and independent relative errors of ε⁰, each (K,)."""
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
    if layout.external[f, p]:
        correlation = shared.astype(np.float64)
    total = nominal.sum()
    efficiency = nominal / total if total > 0 else nominal
    parameter = [model.index.get(name, 0) for name in names]
    return (
        np.array(cells, dtype=np.float64),
        efficiency,
        np.array(parameter, dtype=np.float64),
        correlation * error,
        np.sqrt(1 - correlation**2) * error,
    )
