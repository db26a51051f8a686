"""A HistFactory likelihood in PyTorch, compiled from a pyhf workspace.

With the factors θ, the nuisance parameters α, the factors γ of single bins and the observed counts n::

    rate_i = (nominal_i + Σ_j Δ_ij(α_j)) · Π_j κ_ij(α_j) · Π_j θ_ij        (cell i: one sample in one bin)
    ν_b = Σ_{i in b} rate_i
    −ln L = Σ_b [ν_b − n_b ln ν_b + ln Γ(n_b + 1)]
            + Σ_normal [(α_j − a_j)² / 2σ_j² + ln σ_j √(2π)]
            + Σ_Poisson [τ_j γ_j − a_j ln τ_j γ_j + ln Γ(a_j + 1)]

Modifiers: normfactor, normsys (interpolation code 4 or 1), histosys (code 4p or 0), shapesys, shapefactor,
staterror (Barlow–Beeston lite) and lumi, as pyhf 0.7. All methods take batches (toys, parameter points) in
leading dimensions and can be differentiated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selfcal.likelihood.compiler import Cell, Compiled, Parameter, find_measurement
from selfcal.likelihood.interpolation import HistosysCode, NormsysCode, Scales, shift_weights

__all__ = ["Cell", "HistFactory", "Parameter"]


class HistFactory:
    """The compiled likelihood of one measurement of a workspace (default: the first).

    Attributes
    ----------
    parameters : the D parameters; entry i of a modifier with one factor per bin is named ``name[i]``
    cells : the C cells in the order of :meth:`rates`
    channels : channel name -> slice of its bins in :meth:`expected`
    observed : (B,) the counts of the workspace
    measurement : name of the measurement
    constrained, fixed : (D,) which parameters have a constraint, or do not move
    poisson : (D,) which constraints are Poisson
    centre, width : (D,) of the constraints as in :class:`Parameter`; 0 and 1 where there is none
    start, lower, upper : (D,)

    Raises
    ------
    FitError
        If the workspace is inconsistent, naming channel, sample and modifier.
    """

    def __init__(
        self,
        workspace: Mapping[str, Any],
        measurement: str | None = None,
        *,
        normsys_code: NormsysCode = "code4",
        histosys_code: HistosysCode = "code4p",
    ) -> None:
        compiled = Compiled(workspace, measurement)
        self.measurement = str(find_measurement(workspace, measurement)["name"])
        self.parameters: tuple[Parameter, ...] = tuple(compiled.parameters.values())
        self.cells: tuple[Cell, ...] = tuple(compiled.cells)
        self.channels = compiled.channels
        self.observed = _vector(compiled.observed)
        self.index = {parameter.name: i for i, parameter in enumerate(self.parameters)}
        self.cell_index = {cell: i for i, cell in enumerate(self.cells)}
        self.constrained = torch.tensor([p.width is not None for p in self.parameters], dtype=torch.bool)
        self.poisson = torch.tensor([p.constraint == "poisson" for p in self.parameters], dtype=torch.bool)
        self.fixed = torch.tensor([p.fixed for p in self.parameters], dtype=torch.bool)
        self.centre = _vector(0.0 if p.centre is None else p.centre for p in self.parameters)
        self.width = _vector(1.0 if p.width is None else p.width for p in self.parameters)
        self.start = _vector(p.start for p in self.parameters)
        self.lower = _vector(p.lower for p in self.parameters)
        self.upper = _vector(p.upper for p in self.parameters)
        self.terms = CellTerms(compiled, normsys_code, histosys_code)

    def with_centre(self, centre: Float[Tensor, " D"]) -> HistFactory:
        """The same model with other auxiliary measurements, as a toy experiment has them."""
        model = copy.copy(self)
        model.centre = torch.where(self.constrained, centre, self.centre)
        return model

    def rates(self, theta: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch C"]:
        """Expected count of every cell."""
        return self.terms.rates(theta)[..., self.terms.place]

    def expected(self, theta: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch B"]:
        """Expected count of every bin."""
        return self.terms.per_bin(self.terms.rates(theta))

    def deviance(
        self,
        theta: Float[Tensor, "*batch D"],
        counts: Float[Tensor, "*#batch B"],
        centre: Float[Tensor, "*#batch D"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Twice the NLL above the saturated model, 2 Σ_b [ν − n + n ln(n/ν)] + constraints.

        A normal constraint adds ((α − a)/σ)², a Poisson one 2 [τγ − a + a ln(a/τγ)]. ``centre``: the
        auxiliary measurements, if they differ from the model's.
        """
        return self.deviance_of(self.expected(theta), theta, counts, centre)

    def deviance_of(
        self,
        expected: Float[Tensor, "*batch B"],
        theta: Float[Tensor, "*batch D"],
        counts: Float[Tensor, "*#batch B"],
        centre: Float[Tensor, "*#batch D"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """:meth:`deviance` where the expected counts at θ are known already."""
        main = _poisson_deviance(expected, counts).sum(-1)
        return main + self.penalty(theta, centre).sum(-1)

    def penalty(
        self, theta: Float[Tensor, "*batch D"], centre: Float[Tensor, "*#batch D"] | None = None
    ) -> Float[Tensor, "*batch D"]:
        """The term of each constraint in :meth:`deviance`."""
        centre = self.centre if centre is None else centre
        normal = ((theta - centre) / self.width) ** 2
        if not self.poisson.any():
            return torch.where(self.constrained, normal, 0.0)
        tau = self.width**-2
        rate, count = (torch.where(self.poisson, x * tau, 1.0) for x in (theta, centre))
        poisson = _poisson_deviance(rate, count)
        return torch.where(self.poisson, poisson, torch.where(self.constrained, normal, 0.0))

    def twice_nll(
        self,
        theta: Float[Tensor, "*batch D"],
        counts: Float[Tensor, "*#batch B"],
        centre: Float[Tensor, "*#batch D"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        """−2 ln L with all constants, as ``-2 * pyhf.Model.logpdf``."""
        centre = self.centre if centre is None else centre
        normal = (torch.log(self.width) + 0.5 * math.log(2 * math.pi))[self.constrained & ~self.poisson]
        auxiliary = (centre * self.width**-2)[..., self.poisson]
        constants = _saturated(counts) + _saturated(auxiliary) + normal.sum()
        return self.deviance(theta, counts, centre) + 2 * constants


def _poisson_deviance(expected: Tensor, counts: Tensor) -> Tensor:
    """2 [ν − n + n ln(n/ν)], which is 2ν where n = 0."""
    ratio = torch.where(counts > 0, expected / torch.where(counts > 0, counts, 1.0), 1.0)
    return 2 * (expected - counts - counts * torch.log(ratio))


def _saturated(counts: Tensor) -> Tensor:
    """−ln Pois(n|n), summed."""
    return (counts - torch.xlogy(counts, counts) + torch.lgamma(counts + 1)).sum(-1)


class CellTerms:
    """The rates of the cells, laid out as B bins × S slots so that sums over a bin are sums over an axis.

    Empty slots have zero rate. What acts on a cell is held in dense tables, P = B·S:

    nominal (P,); up, down (P, H): shifts of the H histosys parameters ``shift_parameter`` (H,);
    scale (R, N): which pair of ``scales`` each of the N normsys parameters ``scale_parameter`` (N,) has, 0
    for none, in the R different rows that occur, and scale_row (P,) the row of each cell; factor (P, L):
    parameters that multiply, D for none; place (C,): position of each cell.
    """

    def __init__(self, compiled: Compiled, normsys_code: NormsysCode, histosys_code: HistosysCode) -> None:
        n_bins, n_parameters = len(compiled.observed), len(compiled.parameters)
        slots, place = [0] * n_bins, []
        for b in compiled.bin_of_cell:
            place.append((b, slots[b]))
            slots[b] += 1
        self.n_bins, self.n_slots, self.n_parameters = n_bins, max(slots, default=0), n_parameters
        positions = [b * self.n_slots + s for b, s in place]
        size = n_bins * self.n_slots
        self.place: Int64[Tensor, " C"] = torch.tensor(positions, dtype=torch.long)
        self.nominal = torch.zeros(size, dtype=torch.float64)
        self.nominal[self.place] = _vector(compiled.nominal)
        longest = max((len(row) for row in compiled.factors), default=0)
        self.factor = torch.full((size, longest), n_parameters, dtype=torch.long)
        for position, row in zip(positions, compiled.factors, strict=True):
            self.factor[position, : len(row)] = torch.tensor(row, dtype=torch.long)
        self._lay_out_shifts(compiled, positions, histosys_code)
        self._lay_out_scales(compiled, positions, normsys_code)

    def _lay_out_shifts(self, compiled: Compiled, positions: list[int], code: HistosysCode) -> None:
        acting = sorted({j for row in compiled.shifts for j, pair in row.items() if any(pair)})
        column = {j: h for h, j in enumerate(acting)}
        self.histosys_code = code
        self.shift_parameter = torch.tensor(acting, dtype=torch.long)
        self.up = torch.zeros(len(self.nominal), len(acting), dtype=torch.float64)
        self.down = torch.zeros_like(self.up)
        for position, row in zip(positions, compiled.shifts, strict=True):
            for j, (up, down) in row.items():
                if j in column:
                    self.up[position, column[j]], self.down[position, column[j]] = up, down

    def _lay_out_scales(self, compiled: Compiled, positions: list[int], code: NormsysCode) -> None:
        acting = sorted({j for row in compiled.scales for j in row})
        column = {j: n for n, j in enumerate(acting)}
        pairs: dict[tuple[int, float, float], int] = {}
        self.scale_parameter = torch.tensor(acting, dtype=torch.long)
        scale = torch.zeros(len(self.nominal), len(acting), dtype=torch.long)
        for position, row in zip(positions, compiled.scales, strict=True):
            for j, (high, low) in row.items():
                scale[position, column[j]] = pairs.setdefault((j, high, low), len(pairs) + 1)
        # Bins of one sample have the same pairs: each different row is evaluated once.
        rows, place = np.unique(scale.numpy(), axis=0, return_inverse=True)
        self.scale, self.scale_row = torch.from_numpy(rows), torch.from_numpy(place.reshape(-1))
        self.pair_parameter = torch.tensor([j for j, _, _ in pairs], dtype=torch.long)
        self.scales = Scales(_vector(h for _, h, _ in pairs), _vector(low for _, _, low in pairs), code)

    def per_bin(self, cells: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch B"]:
        """Sum over the slots of each bin."""
        return cells.reshape(*cells.shape[:-1], self.n_bins, self.n_slots).sum(-1)

    def rates(self, theta: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch P"]:
        """Expected count of every slot."""
        rate = self.base(theta)
        if len(self.scale_parameter):
            rate = rate * self.scaling(theta)
        for factor in self.factors(theta):
            rate = rate * factor
        return rate

    def base(self, theta: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch P"]:
        """nominal + Σ Δ."""
        if not len(self.shift_parameter):
            return self.nominal.expand(*theta.shape[:-1], -1)
        weights = shift_weights(theta.index_select(-1, self.shift_parameter), self.histosys_code)
        return self.nominal + weights.up @ self.up.T + weights.down @ self.down.T

    def scaling(self, theta: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch P"]:
        """Π κ."""
        kappa = self.scales.value(theta.index_select(-1, self.pair_parameter))
        padded = torch.cat([torch.ones_like(theta[..., :1]), kappa], dim=-1)
        # A product, not a sum of logarithms: a polynomial of code 4 may dip below zero.
        chosen = padded.index_select(-1, self.scale.flatten())
        rows = chosen.reshape(*theta.shape[:-1], *self.scale.shape).prod(-1)
        return rows.index_select(-1, self.scale_row)

    def factors(self, theta: Float[Tensor, "*batch D"]) -> tuple[Float[Tensor, "*batch P"], ...]:
        """The L factors of every slot, 1 where it has fewer."""
        extended = torch.cat([theta, torch.ones_like(theta[..., :1])], dim=-1)
        return tuple(extended.index_select(-1, column) for column in self.factor.unbind(1))


def _vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
