"""A HistFactory likelihood in PyTorch, compiled from a pyhf workspace.

Only cells (channel, sample, bin) that hold something are kept. With the free factors θ, the
constrained α and the observed counts n,

    rate_i = (nominal_i + Σ_j Δ_ij(α_j)) · Π_j κ_ij(α_j) · Π_j θ_ij        (cell i)
    ν_b = Σ_{i in b} rate_i
    −ln L = Σ_b [ν_b − n_b ln ν_b + ln Γ(n_b + 1)] + Σ_j [(α_j − a_j)² / 2σ_j² + ln σ_j √(2π)]

Interpolation as pyhf 0.7 does by default: histosys code 4p, normsys code 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.errors import FitError

_CONSTRAINED_BOUNDS = (-5.0, 5.0)
_GAMMA_BOUNDS = (1e-10, 10.0)
_FACTOR_BOUNDS = (0.0, 10.0)

_POWERS = np.arange(1, 7)
_ENDS = np.array(
    [
        _POWERS**0,
        (-1.0) ** _POWERS,
        _POWERS,
        _POWERS * (-1.0) ** (_POWERS - 1),
        _POWERS * (_POWERS - 1),
        _POWERS * (_POWERS - 1) * (-1.0) ** _POWERS,
    ],
    dtype=np.float64,
)
"""Value, slope and curvature of Σ c_i α^i at α = ±1."""


@dataclass(frozen=True)
class Parameter:
    """One scalar parameter; ``centre`` and ``width`` of its Gaussian constraint, or None where it is free."""

    name: str
    start: float
    lower: float
    upper: float
    fixed: bool
    centre: float | None
    width: float | None


@dataclass(frozen=True)
class Cell:
    """What one sample puts into one bin of one channel."""

    channel: str
    sample: str
    bin: int


class HistFactory:
    """The compiled likelihood.

    Attributes
    ----------
    parameters : the D parameters; entry i of a shapefactor or staterror is named ``name[i]``
    cells : the cells in the order of :meth:`rates`
    channels : channel name -> slice of its bins in :meth:`expected`
    observed : (B,) the counts of the workspace
    """

    def __init__(self, workspace: Mapping[str, Any]) -> None:
        compiler = _Compiler(workspace)
        self.parameters: tuple[Parameter, ...] = tuple(compiler.parameters.values())
        self.cells: tuple[Cell, ...] = tuple(compiler.cells)
        self.channels = compiler.channels
        self.observed = torch.tensor(compiler.observed, dtype=torch.float64)
        self.index = {parameter.name: i for i, parameter in enumerate(self.parameters)}
        self.cell_index = {cell: i for i, cell in enumerate(self.cells)}
        self._nominal = torch.tensor(compiler.nominal, dtype=torch.float64)
        self._bin = torch.tensor(compiler.bin_of_cell, dtype=torch.long)
        self._factors = _padded(compiler.factors, len(self.parameters))
        self._shift_cell, self._shift_parameter, shifts = _columns(compiler.shifts)
        self._up, self._down = shifts[:, 0], shifts[:, 1]
        self._scale_cell, self._scale_parameter, scales = _columns(compiler.scales)
        self._log_high, self._log_low = scales[:, 0].log(), scales[:, 1].log()
        self._polynomial = _code4_coefficients(scales[:, 0], scales[:, 1])
        constrained = [p.width is not None for p in self.parameters]
        self.constrained = torch.tensor(constrained, dtype=torch.bool)
        self.fixed = torch.tensor([p.fixed for p in self.parameters], dtype=torch.bool)
        self.centre = _vector(0.0 if p.centre is None else p.centre for p in self.parameters)
        self.width = _vector(1.0 if p.width is None else p.width for p in self.parameters)
        self.start = _vector(p.start for p in self.parameters)
        self.lower = _vector(p.lower for p in self.parameters)
        self.upper = _vector(p.upper for p in self.parameters)

    def with_centre(self, centre: Float[Tensor, " D"]) -> HistFactory:
        """The same model with other auxiliary measurements, as a toy experiment has them."""
        model = copy.copy(self)
        model.centre = torch.where(self.constrained, centre, self.centre)
        return model

    def rates(self, theta: Float[Tensor, " D"]) -> Float[Tensor, " C"]:
        """Expected count of every cell."""
        base = self._nominal
        if len(self._shift_cell):
            alpha = theta[self._shift_parameter]
            base = base.index_add(0, self._shift_cell, _code4p(alpha, self._up, self._down))
        logarithm = torch.zeros_like(base)
        if len(self._scale_cell):
            alpha = theta[self._scale_parameter]
            logarithm = logarithm.index_add(
                0, self._scale_cell, _log_code4(alpha, self._log_high, self._log_low, self._polynomial)
            )
        rate = base * torch.exp(logarithm)
        extended = torch.cat([theta, torch.ones(1, dtype=theta.dtype)])
        for column in self._factors.unbind(1):
            rate = rate * extended[column]
        return rate

    def expected(self, theta: Float[Tensor, " D"]) -> Float[Tensor, " B"]:
        """Expected count of every bin."""
        return torch.zeros_like(self.observed).index_add(0, self._bin, self.rates(theta))

    def deviance(self, theta: Float[Tensor, " D"], counts: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """2 Σ_b [ν − n + n ln(n/ν)] + Σ_j ((α_j − a_j)/σ_j)²: twice the NLL above the saturated model."""
        expected = self.expected(theta)
        main = expected - counts + torch.xlogy(counts, counts) - torch.xlogy(counts, expected)
        pull = torch.where(self.constrained, (theta - self.centre) / self.width, 0.0)
        return 2 * main.sum() + (pull**2).sum()

    def twice_nll(self, theta: Float[Tensor, " D"], counts: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """−2 ln L with all constants, as ``-2 * pyhf.Model.logpdf``."""
        saturated = counts - torch.xlogy(counts, counts) + torch.lgamma(counts + 1)
        constants = (torch.log(self.width) + 0.5 * math.log(2 * math.pi))[self.constrained]
        return self.deviance(theta, counts) + 2 * saturated.sum() + 2 * constants.sum()


def _code4p(alpha: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Shift of a bin: α·S + A·α²(15 − 10α² + 3α⁴) inside |α| ≤ 1, linear outside (pyhf code 4p)."""
    square = alpha * alpha
    inside = alpha * (up - down) / 2 + (up + down) / 16 * square * (15 + square * (3 * square - 10))
    return torch.where(alpha > 1, alpha * up, torch.where(alpha < -1, -alpha * down, inside))


def _log_code4(alpha: Tensor, log_high: Tensor, log_low: Tensor, coefficients: Tensor) -> Tensor:
    """Logarithm of a scale: a polynomial inside |α| < 1, high^α or low^−α outside (pyhf code 4)."""
    inside = alpha.abs() < 1
    safe = torch.where(inside, alpha, 0.0)
    polynomial = torch.zeros_like(alpha)
    for power in range(5, -1, -1):
        polynomial = (polynomial + coefficients[:, power]) * safe
    outside = torch.where(alpha > 0, alpha * log_high, -alpha * log_low)
    return torch.where(inside, torch.log1p(polynomial), outside)


def _code4_coefficients(high: Tensor, low: Tensor) -> Tensor:
    """The six coefficients that join the polynomial smoothly to the exponentials, (E, 6)."""
    log_high, log_low = high.log(), low.log()
    ends = torch.stack(
        [high - 1, low - 1, log_high * high, -log_low * low, log_high**2 * high, log_low**2 * low], dim=1
    )
    solution: Tensor = torch.linalg.solve(torch.from_numpy(_ENDS), ends.T)
    return solution.T


def _vector(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _columns(entries: Sequence[tuple[int, int, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    table = np.array(entries, dtype=np.float64).reshape(-1, 4)
    indices = torch.from_numpy(table[:, :2].astype(np.int64))
    return indices[:, 0], indices[:, 1], torch.from_numpy(table[:, 2:].copy())


def _padded(factors: Sequence[Sequence[int]], filler: int) -> Tensor:
    longest = max((len(row) for row in factors), default=0)
    rows = [list(row) + [filler] * (longest - len(row)) for row in factors]
    return torch.tensor(rows, dtype=torch.long).reshape(len(factors), longest)


class _Compiler:
    """Walks through a workspace once and lists cells, parameters and what acts on what."""

    def __init__(self, workspace: Mapping[str, Any]) -> None:
        settings = workspace["measurements"][0]["config"]["parameters"]
        self._settings = {entry["name"]: entry for entry in settings}
        observations = {entry["name"]: entry["data"] for entry in workspace["observations"]}
        self.parameters: dict[str, Parameter] = {}
        self._positions: dict[str, int] = {}
        self.cells: list[Cell] = []
        self.nominal: list[float] = []
        self.bin_of_cell: list[int] = []
        self.factors: list[list[int]] = []
        self.shifts: list[tuple[int, int, float, float]] = []
        self.scales: list[tuple[int, int, float, float]] = []
        self.channels: dict[str, slice] = {}
        self.observed: list[float] = []
        for channel in workspace["channels"]:
            first, counts = len(self.observed), observations[channel["name"]]
            self.channels[channel["name"]] = slice(first, first + len(counts))
            self.observed += [float(count) for count in counts]
            widths = _stat_error_widths(channel)
            for sample in channel["samples"]:
                self._add_sample(channel["name"], first, sample, widths)

    def _add_sample(
        self, channel: str, first_bin: int, sample: Mapping[str, Any], widths: Mapping[str, Sequence[float]]
    ) -> None:
        names = self._declare(channel, sample, widths)
        for k, nominal in enumerate(sample["data"]):
            shifted = [m for m in sample["modifiers"] if m["type"] == "histosys" and _shifts(m, k, nominal)]
            if nominal == 0 and not shifted:
                continue
            cell = len(self.cells)
            self.cells.append(Cell(channel, sample["name"], k))
            self.nominal.append(float(nominal))
            self.bin_of_cell.append(first_bin + k)
            self.factors.append([])
            for modifier, own in zip(sample["modifiers"], names, strict=True):
                index = own[k if len(own) > 1 else 0]
                if modifier["type"] == "histosys":
                    data = modifier["data"]
                    up, down = data["hi_data"][k] - nominal, data["lo_data"][k] - nominal
                    self.shifts.append((cell, index, up, down))
                elif modifier["type"] == "normsys":
                    self.scales.append((cell, index, modifier["data"]["hi"], modifier["data"]["lo"]))
                else:
                    self.factors[cell].append(index)

    def _declare(
        self, channel: str, sample: Mapping[str, Any], widths: Mapping[str, Sequence[float]]
    ) -> list[list[int]]:
        """Indices of the parameters of each modifier of a sample: one, or one per bin."""
        result = []
        size = len(sample["data"])
        for modifier in sample["modifiers"]:
            kind, name = modifier["type"], modifier["name"]
            if kind == "normfactor":
                indices = [self._parameter(name, 0, 1, _FACTOR_BOUNDS, 1.0, None)]
            elif kind in {"normsys", "histosys"}:
                indices = [self._parameter(name, 0, 1, _CONSTRAINED_BOUNDS, 0.0, 1.0)]
            elif kind == "shapefactor":
                indices = [self._parameter(name, k, size, _FACTOR_BOUNDS, 1.0, None) for k in range(size)]
            elif kind == "staterror":
                indices = [
                    self._parameter(name, k, size, _GAMMA_BOUNDS, 1.0, widths[name][k]) for k in range(size)
                ]
            else:
                raise FitError(
                    f"modifier type '{kind}' is not supported",
                    where=f"channel '{channel}', sample '{sample['name']}', modifier '{name}'",
                    expected="normfactor, shapefactor, normsys, histosys or staterror",
                )
            result.append(indices)
        return result

    def _parameter(
        self,
        name: str,
        position: int,
        size: int,
        bounds: tuple[float, float],
        start: float,
        width: float | None,
    ) -> int:
        key = f"{name}[{position}]" if size > 1 else name
        if key not in self.parameters:
            entry = self._settings.get(name, {})
            start = entry.get("inits", [start] * size)[position]
            lower, upper = entry.get("bounds", [bounds] * size)[position]
            centre = None if width is None else entry.get("auxdata", [start] * size)[position]
            fixed = bool(entry.get("fixed", False) or width == 0)
            # pyhf fixes the factor of an empty bin and keeps a constraint of unit width.
            width = 1.0 if width == 0 else width
            self._positions[key] = len(self.parameters)
            self.parameters[key] = Parameter(
                key, float(start), float(lower), float(upper), fixed, centre, width
            )
        return self._positions[key]


def _shifts(modifier: Mapping[str, Any], k: int, nominal: float) -> bool:
    data = modifier["data"]
    return bool(data["hi_data"][k] != nominal or data["lo_data"][k] != nominal)


def _stat_error_widths(channel: Mapping[str, Any]) -> dict[str, list[float]]:
    """Relative width per bin of each staterror: quadratic sum of the errors over the sum of the contents."""
    content: dict[str, np.ndarray] = {}
    variance: dict[str, np.ndarray] = {}
    for sample in channel["samples"]:
        for modifier in sample["modifiers"]:
            if modifier["type"] == "staterror":
                name, data = modifier["name"], np.asarray(sample["data"], dtype=np.float64)
                content[name] = content.get(name, 0.0) + data
                variance[name] = variance.get(name, 0.0) + np.asarray(modifier["data"]) ** 2
    return {
        name: [
            math.sqrt(v) / float(c) if c > 0 else 0.0
            for v, c in zip(variance[name], content[name], strict=True)
        ]
        for name in content
    }
