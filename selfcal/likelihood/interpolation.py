"""How a nuisance parameter α moves a template (histosys) or a normalisation (normsys): pyhf's codes.

Histosys, with the shifts up = hi − nominal and down = lo − nominal, is linear in both:

    Δ(α) = a(α)·up + b(α)·down
    code 0 :  a = α, b = 0 above 0;  a = 0, b = −α below
    code 4p:  the same outside |α| ≤ 1;  a, b = ±α/2 + α²(15 − 10α² + 3α⁴)/16 inside

Normsys multiplies by κ(α), with κ(1) = hi, κ(0) = 1, κ(−1) = lo:

    code 1:  hi^α above 0, lo^−α below
    code 4:  the same outside |α| < 1;  1 + Σ_{i=1..6} c_i αⁱ inside, where the c_i make value, slope and
             curvature continuous at ±1

Source: CERN-OPEN-2012-016; pyhf 0.7 ``interpolators``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

HistosysCode = Literal["code4p", "code0"]
NormsysCode = Literal["code4", "code1"]

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


class ShiftWeights(NamedTuple):
    """a(α) and b(α), or a derivative of both."""

    up: Tensor
    down: Tensor


def shift_weights(alpha: Float[Tensor, "*batch H"], code: HistosysCode, derivative: int = 0) -> ShiftWeights:
    """Weights of the shifts up and down at α, or their first or second derivative."""
    zero = torch.zeros_like(alpha)
    line = (alpha, torch.ones_like(alpha), zero)[derivative]
    up, down = torch.where(alpha > 0, line, zero), torch.where(alpha > 0, zero, -line)
    if code == "code0":
        return ShiftWeights(up, down)
    square = alpha * alpha
    if derivative == 0:
        bend = square * (15 + square * (3 * square - 10)) / 16
    elif derivative == 1:
        bend = alpha * (30 + square * (18 * square - 40)) / 16
    else:
        bend = (30 + square * (90 * square - 120)) / 16
    inside = alpha.abs() <= 1
    return ShiftWeights(torch.where(inside, bend + line / 2, up), torch.where(inside, bend - line / 2, down))


class Scales:
    """U pairs (hi, lo) of normsys, all positive."""

    def __init__(self, high: Float[Tensor, " U"], low: Float[Tensor, " U"], code: NormsysCode) -> None:
        self.code = code
        self.log_high, self.log_low = high.log(), low.log()
        self.coefficients = _code4_coefficients(high, low)

    def value(self, alpha: Float[Tensor, "*batch U"]) -> Float[Tensor, "*batch U"]:
        """κ(α)."""
        outside = torch.exp(torch.where(alpha > 0, alpha * self.log_high, -alpha * self.log_low))
        if self.code == "code1":
            return outside
        inside = alpha.abs() < 1
        return torch.where(inside, 1 + self._polynomial(torch.where(inside, alpha, 0.0), 0), outside)

    def relative_slope(
        self, alpha: Float[Tensor, "*batch U"]
    ) -> tuple[Float[Tensor, "*batch U"], Float[Tensor, "*batch U"]]:
        """κ'/κ and κ''/κ."""
        slope = torch.where(alpha > 0, self.log_high, -self.log_low)
        curvature = slope * slope
        if self.code == "code1":
            return slope, curvature
        inside = alpha.abs() < 1
        safe = torch.where(inside, alpha, 0.0)
        value = 1 + self._polynomial(safe, 0)
        return (
            torch.where(inside, self._polynomial(safe, 1) / value, slope),
            torch.where(inside, self._polynomial(safe, 2) / value, curvature),
        )

    def _polynomial(self, alpha: Tensor, derivative: int) -> Tensor:
        """Σ c_i αⁱ or its derivative, by Horner's scheme."""
        result = torch.zeros_like(alpha)
        for power in range(6, derivative - 1, -1):
            factor = float(np.prod([power - j for j in range(derivative)]))
            coefficient = self.coefficients[:, power - 1] * factor if power else 0.0
            result = result * alpha + coefficient
        return result


def _code4_coefficients(high: Tensor, low: Tensor) -> Tensor:
    """The six coefficients that join the polynomial smoothly to the exponentials, (U, 6)."""
    log_high, log_low = high.log(), low.log()
    ends = torch.stack(
        [high - 1, low - 1, log_high * high, -log_low * low, log_high**2 * high, log_low**2 * low], dim=1
    )
    solution: Tensor = torch.linalg.solve(torch.from_numpy(_ENDS), ends.T)
    return solution.T
