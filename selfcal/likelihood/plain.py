"""The likelihood of :mod:`selfcal.likelihood.histfactory` in plain Python: slow and readable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfcal.likelihood.compiler import Compiled
from selfcal.likelihood.interpolation import HistosysCode, NormsysCode


def plain_twice_nll(
    workspace: Mapping[str, Any],
    theta: Sequence[float],
    measurement: str | None = None,
    *,
    normsys_code: NormsysCode = "code4",
    histosys_code: HistosysCode = "code4p",
) -> float:
    """−2 ln L of the workspace's data at θ (D,), in the order of ``HistFactory.parameters``."""
    compiled = Compiled(workspace, measurement)
    expected = [0.0] * len(compiled.observed)
    for i, b in enumerate(compiled.bin_of_cell):
        rate = compiled.nominal[i]
        for j, (up, down) in compiled.shifts[i].items():
            rate += plain_shift(theta[j], up, down, histosys_code)
        for j, (high, low) in compiled.scales[i].items():
            rate *= plain_scale(theta[j], high, low, normsys_code)
        for j in compiled.factors[i]:
            rate *= theta[j]
        expected[b] += rate
    logarithm = 0.0
    for count, mean in zip(compiled.observed, expected, strict=True):
        logarithm += _log_poisson(count, mean)
    for value, parameter in zip(theta, compiled.parameters.values(), strict=True):
        centre, width = parameter.centre, parameter.width
        if centre is None or width is None:
            continue
        if parameter.constraint == "poisson":
            logarithm += _log_poisson(centre / width**2, value / width**2)
        else:
            logarithm -= (value - centre) ** 2 / (2 * width**2) + math.log(width * math.sqrt(2 * math.pi))
    return -2 * logarithm


def plain_shift(alpha: float, up: float, down: float, code: HistosysCode) -> float:
    """Shift of a histosys at α; up = hi − nominal, down = lo − nominal."""
    if alpha > 1 or (code == "code0" and alpha > 0):
        return alpha * up
    if alpha < -1 or code == "code0":
        return -alpha * down
    symmetric, asymmetric = (up - down) / 2, (up + down) / 16
    return alpha * (symmetric + alpha * asymmetric * (15 + alpha**2 * (3 * alpha**2 - 10)))


def plain_scale(alpha: float, high: float, low: float, code: NormsysCode) -> float:
    """Factor of a normsys at α.

    Inside |α| < 1 the even and the odd part of code 4 are the polynomials through 1 at 0 with the value,
    slope and curvature of the exponentials at 1: with f = (hi ± lo)/2 (− 1 for the even part), f' and f''
    there, x¹ or x² and two powers more each.
    """
    if code == "code1" or abs(alpha) >= 1:
        return math.pow(high, alpha) if alpha > 0 else math.pow(low, -alpha)
    slope_up, slope_down = high * math.log(high), -low * math.log(low)
    bend_up, bend_down = high * math.log(high) ** 2, low * math.log(low) ** 2
    odd = ((high - low) / 2, (slope_up + slope_down) / 2, (bend_up - bend_down) / 2)
    even = ((high + low) / 2 - 1, (slope_up - slope_down) / 2, (bend_up + bend_down) / 2)
    value, slope, bend = odd
    odd_part = (
        (15 * value - 7 * slope + bend) * alpha
        + (-10 * value + 10 * slope - 2 * bend) * alpha**3
        + (3 * value - 3 * slope + bend) * alpha**5
    ) / 8
    value, slope, bend = even
    even_part = (
        (24 * value - 9 * slope + bend) * alpha**2
        + (-24 * value + 14 * slope - 2 * bend) * alpha**4
        + (8 * value - 5 * slope + bend) * alpha**6
    ) / 8
    return 1 + odd_part + even_part


def _log_poisson(count: float, mean: float) -> float:
    return (count * math.log(mean) if count else 0.0) - mean - math.lgamma(count + 1)
