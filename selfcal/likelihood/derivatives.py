"""First and second derivatives of the expected counts in closed form, for batches of parameter points.

With M = Π κ · Π θ, the rate of a cell is r = (nominal + Σ Δ) M and

    ∂r/∂α_j = Δ'_j M (histosys) + r κ'_j/κ_j (normsys),    ∂r/∂θ_j = r/θ_j as a product of the others

A *local* parameter is a constrained factor of a single bin (a γ of staterror or shapesys). Of the
derivative matrix (B, D) its column has one entry; it is kept in a narrow table beside the wide one of all
other, *global* parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.interpolation import ShiftWeights, shift_weights


class Linear(NamedTuple):
    """Expected counts and their derivatives by the G global parameters and by the L locals of each bin."""

    expected: Float[Tensor, "T B"]
    by_global: Float[Tensor, "T B G"]
    by_local: Float[Tensor, "T B L"]


class Differentiator:
    """Derivatives of one compiled model.

    Attributes
    ----------
    global_index : (G,) positions of the global parameters among all
    local_index : (B, L) positions of the local parameters of each bin, D where it has fewer
    """

    def __init__(self, model: HistFactory) -> None:
        self.model, self.terms = model, model.terms
        terms, n = model.terms, len(model.parameters)
        bin_of_cell = torch.arange(len(terms.nominal)) // max(terms.n_slots, 1)
        # Smallest and largest bin in which each parameter is a factor; the filler D comes last.
        bins = bin_of_cell[:, None].expand_as(terms.factor).reshape(-1)
        flat = terms.factor.reshape(-1)
        first = torch.full((n + 1,), terms.n_bins).scatter_reduce(0, flat, bins, "amin")
        last = torch.full((n + 1,), -1).scatter_reduce(0, flat, bins, "amax")
        single = (first == last)[:-1] & model.constrained
        single[terms.shift_parameter] = False
        single[terms.scale_parameter] = False
        # Histosys first, then normsys: their derivatives are then added to a slice of the wide table.
        moved, scaled = terms.shift_parameter, terms.scale_parameter
        scaled_only = scaled[~torch.isin(scaled, moved)]
        rest = ~single
        rest[moved] = rest[scaled] = False
        self.global_index = torch.cat([moved, scaled_only, torch.nonzero(rest)[:, 0]])
        per_bin: list[list[int]] = [[] for _ in range(terms.n_bins)]
        for j in torch.nonzero(single)[:, 0].tolist():
            per_bin[int(first[j])].append(j)
        width = max((len(row) for row in per_bin), default=0)
        rows = [row + [n] * (width - len(row)) for row in per_bin]
        self.local_index = torch.tensor(rows, dtype=torch.long).reshape(terms.n_bins, width)
        # Where the derivative by each factor of each cell goes: a column of the wide or of the narrow table,
        # or the last column, which is thrown away.
        n_global = len(self.global_index)
        column = torch.full((n + 1,), n_global + width)
        column[self.global_index] = torch.arange(n_global)
        for row in per_bin:
            column[row] = n_global + torch.arange(len(row))
        self._table_width = n_global + width + 1
        self._target = bin_of_cell[:, None] * self._table_width + column[terms.factor]
        disjoint = len(scaled_only) == len(scaled)
        end = len(moved) + len(scaled)
        self._scale_column: slice | Tensor = slice(len(moved), end) if disjoint else column[scaled]

    def linear(self, theta: Float[Tensor, "T D"]) -> Linear:
        """ν and ∂ν/∂θ at T points."""
        terms, n_toys = self.terms, len(theta)
        base, scaling, factors = _pieces(self.model, theta)
        product = _product(factors, scaling)
        rate = base * product
        table = torch.zeros(n_toys, terms.n_bins * self._table_width, dtype=theta.dtype)
        for column, others in enumerate(_others(factors, base * scaling)):
            table.scatter_add_(1, self._target[:, column].expand(n_toys, -1), others)
        table = table.reshape(n_toys, terms.n_bins, self._table_width)
        if len(terms.shift_parameter):
            slopes = shift_weights(theta[:, terms.shift_parameter], terms.histosys_code, 1)
            # (B, T, S) @ (B, S, H): the shifts of a bin weighted with what multiplies its cells.
            weight = product.reshape(n_toys, terms.n_bins, terms.n_slots).transpose(0, 1)
            up, down = (x.reshape(terms.n_bins, terms.n_slots, -1) for x in (terms.up, terms.down))
            moved = slopes.up[:, None] * (weight @ up).transpose(0, 1)
            moved += slopes.down[:, None] * (weight @ down).transpose(0, 1)
            table[:, :, : len(terms.shift_parameter)] += moved
        if len(terms.scale_parameter):
            slope, _ = _relative_slopes(self.model, theta)
            weight = rate.reshape(n_toys * terms.n_bins, 1, terms.n_slots)
            rows = slope.reshape(n_toys * terms.n_bins, terms.n_slots, -1)
            table[:, :, self._scale_column] += (weight @ rows).reshape(n_toys, terms.n_bins, -1)
        n_global = len(self.global_index)
        return Linear(terms.per_bin(rate), table[:, :, :n_global], table[:, :, n_global:-1])

    def jacobian(self, linear: Linear) -> Float[Tensor, "T B D"]:
        """∂ν/∂θ as one matrix per point."""
        n_toys, n_bins, n = len(linear.expected), self.terms.n_bins, len(self.model.parameters)
        full = linear.expected.new_zeros(n_toys, n_bins, n + 1)
        full[:, :, self.global_index] = linear.by_global
        full.scatter_(2, self.local_index.expand(n_toys, -1, -1), linear.by_local)
        return full[:, :, :-1]

    def hessian(
        self,
        theta: Float[Tensor, "T D"],
        counts: Float[Tensor, "T B"],
        centre: Float[Tensor, "T D"],
    ) -> Float[Tensor, "T D D"]:
        """Second derivative of −ln L: the observed information.

        H = Jᵀ diag(n/ν²) J + Σ_b (1 − n_b/ν_b) ∂²ν_b/∂θ∂θ + constraints.
        """
        linear = self.linear(theta)
        jacobian = self.jacobian(linear)
        expected = linear.expected
        ratio = torch.where(counts > 0, counts / expected, 0.0)
        curvature = torch.where(counts > 0, ratio / expected, 0.0)
        result = jacobian.transpose(1, 2) @ (curvature[:, :, None] * jacobian)
        result += self._second(theta, (1 - ratio).repeat_interleave(self.terms.n_slots, dim=1))
        diagonal = torch.diagonal(result, dim1=1, dim2=2)
        diagonal += constraint_derivatives(self.model, theta, centre)[1]
        return result

    def _second(self, theta: Tensor, weight: Float[Tensor, "T P"]) -> Float[Tensor, "T D D"]:
        """Σ_cells weight ∂²r/∂θ∂θ."""
        terms, n_toys, n = self.terms, len(theta), len(self.model.parameters)
        base, scaling, factors = _pieces(self.model, theta)
        product = _product(factors, scaling)
        result = torch.zeros(n_toys, (n + 1) ** 2, dtype=theta.dtype)
        one, two = _shift_derivatives(self.model, theta)
        slope, bend = _relative_slopes(self.model, theta)
        shift, scale = terms.shift_parameter, terms.scale_parameter

        def add(rows: Tensor, columns: Tensor, values: Tensor) -> None:
            """values (T, k) into entries (rows, columns) (k,), and into the transposed ones."""
            result.scatter_add_(1, (rows * (n + 1) + columns).expand(n_toys, -1), values)
            result.scatter_add_(1, (columns * (n + 1) + rows).expand(n_toys, -1), values)

        # Half of the symmetric entries, because ``add`` puts each in twice.
        w_product, w_rate = weight * product, weight * base * product
        if len(shift):
            pure = (w_product @ terms.up) * two.up + (w_product @ terms.down) * two.down
            add(shift, shift, pure / 2)
        if len(shift) and len(scale):
            mixed = one.transpose(1, 2) @ (w_product[:, :, None] * slope)
            add(*_grid(shift, scale), mixed.flatten(1))
        if len(scale):
            pure = slope.transpose(1, 2) @ (w_rate[:, :, None] * slope)
            torch.diagonal(pure, dim1=1, dim2=2).add_((w_rate[:, :, None] * (bend - slope**2)).sum(1))
            add(*_grid(scale, scale), pure.flatten(1) / 2)
        for column, others in enumerate(_others(factors, weight * scaling)):
            target = terms.factor[:, column]
            if len(shift):
                add(*_grid(target, shift), (others[:, :, None] * one).flatten(1))
            if len(scale):
                add(*_grid(target, scale), ((others * base)[:, :, None] * slope).flatten(1))
            for second in range(column + 1, len(factors)):
                rest = [f for i, f in enumerate(factors) if i not in (column, second)]
                add(target, terms.factor[:, second], _product(rest, weight * base * scaling))
        return result.reshape(n_toys, n + 1, n + 1)[:, :-1, :-1]


def rate_jacobian(
    model: HistFactory, theta: Float[Tensor, " D"], cells: Int64[Tensor, " C"]
) -> Float[Tensor, "C D"]:
    """∂r/∂θ of the rates of some cells at one point."""
    terms, at, place = model.terms, theta[None], model.terms.place[cells]
    base, scaling, factors = _pieces(model, at)
    product = _product(factors, scaling)
    table = theta.new_zeros(len(place), len(theta) + 1)
    for column, others in enumerate(_others(factors, base * scaling)):
        table.scatter_add_(1, terms.factor[place, column][:, None], others[0, place, None])
    if len(terms.shift_parameter):
        slope, _ = _shift_derivatives(model, at)
        table[:, terms.shift_parameter] += product[0, place, None] * slope[0, place]
    if len(terms.scale_parameter):
        slope, _ = _relative_slopes(model, at)
        table[:, terms.scale_parameter] += (base * product)[0, place, None] * slope[0, place]
    return table[:, :-1]


def constraint_derivatives(
    model: HistFactory, theta: Float[Tensor, "T D"], centre: Float[Tensor, "T D"]
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"], Float[Tensor, "T D"]]:
    """Slope, observed and expected curvature of the constraints in −ln L.

    Normal: (θ − a)/σ², σ⁻², σ⁻². Poisson with mean τγ: τ(1 − c/γ), τc/γ², τ/γ for c = a/τ.
    """
    precision = torch.where(model.constrained, model.width**-2, 0.0).expand_as(theta)
    slope = precision * (theta - centre)
    if not model.poisson.any():
        return slope, precision, precision
    gamma = torch.where(model.poisson, theta, 1.0)
    return (
        torch.where(model.poisson, precision * (1 - centre / gamma), slope),
        torch.where(model.poisson, precision * centre / gamma**2, precision),
        torch.where(model.poisson, precision / gamma, precision),
    )


def _shift_derivatives(model: HistFactory, theta: Tensor) -> tuple[Tensor, ShiftWeights]:
    """Δ' of every cell (T, P, H), and the weights of Δ''."""
    terms = model.terms
    alpha = theta[:, terms.shift_parameter]
    slopes = shift_weights(alpha, terms.histosys_code, 1)
    one = slopes.up[:, None] * terms.up + slopes.down[:, None] * terms.down
    return one, shift_weights(alpha, terms.histosys_code, 2)


def _pieces(model: HistFactory, theta: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    terms = model.terms
    base = terms.base(theta)
    scaling = terms.scaling(theta) if len(terms.scale_parameter) else torch.ones_like(base)
    return base, scaling, terms.factors(theta)


def _relative_slopes(model: HistFactory, theta: Tensor) -> tuple[Tensor, Tensor]:
    """κ'/κ and κ''/κ of every cell and normsys, (T, P, N); zero where a cell has none."""
    terms, zero = model.terms, torch.zeros_like(theta[:, :1])

    def of_cells(pairs: Tensor) -> Tensor:
        padded = torch.cat([zero, pairs], dim=1)
        rows = padded.index_select(1, terms.scale.flatten()).reshape(len(theta), *terms.scale.shape)
        return rows.index_select(1, terms.scale_row)

    slope, bend = terms.scales.relative_slope(theta.index_select(1, terms.pair_parameter))
    return of_cells(slope), of_cells(bend)


def _product(factors: Sequence[Tensor], start: Tensor) -> Tensor:
    for factor in factors:
        start = start * factor
    return start


def _others(factors: Sequence[Tensor], start: Tensor) -> Iterator[Tensor]:
    """For each factor: ``start`` times all the others."""
    for column in range(len(factors)):
        yield _product([f for i, f in enumerate(factors) if i != column], start)


def _grid(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, None].expand(-1, len(columns)).reshape(-1), columns.expand(len(rows), -1).reshape(-1)
