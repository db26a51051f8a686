"""Whether the numbers of a study are what its file expects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfcal.config.study import CASE, Case, Check

Row = Mapping[str, Any]
"""A row of the summary: ``point`` (what tells it from the others) and ``values`` (None where it failed)."""


def judged(checks: Sequence[Check], rows: Sequence[Row], cases: Sequence[Case] = ()) -> list[dict[str, Any]]:
    """Every check with what was found.

    ``passed`` is None where nothing can be said: a point that the check needs has failed, or there is no
    number. ``found`` lists the numbers that were held against the limits.
    """
    return [_judged(check, rows, cases) for check in checks]


def _judged(check: Check, rows: Sequence[Row], cases: Sequence[Case]) -> dict[str, Any]:
    chosen = [row for row in rows if _agrees(row["point"], check.where)]
    pairs: list[tuple[Row, float]] = []
    for row in chosen:
        numbers = _compared(check, row, rows)
        if numbers is None:
            return _outcome(check, [], None, "a point that it needs has failed or is missing")
        pairs += [(row, number) for number in numbers]
    if not pairs:
        return _outcome(check, [], None, "there is no number")
    values = np.array([number for _, number in pairs])
    if check.over == "std" and len(values) < 2:
        return _outcome(check, [], None, "a spread needs two numbers")
    if check.over == "slope":
        places = np.array([_place(check, row["point"], cases) for row, _ in pairs])
        if (values <= 0).any() or (places <= 0).any() or len(set(places)) < 2:
            return _outcome(check, [], None, "a slope needs positive numbers at two places or more")
        found = [float(np.polyfit(np.log(places), np.log(values), 1)[0])]
    else:
        found = _condensed(check.over, values)
    passed = all(
        (check.min is None or number >= check.min) and (check.max is None or number <= check.max)
        for number in found
    )
    return _outcome(check, found, passed, "")


def _condensed(over: str, values: np.ndarray) -> list[float]:
    if over == "every":
        return [float(value) for value in values]
    if over == "rms":
        return [float(np.sqrt(np.mean(values**2)))]
    if over == "std":
        return [float(np.std(values, ddof=1))]
    condensed = {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    return [condensed[over]]


def _agrees(point: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(key in point and point[key] == value for key, value in wanted.items())


def _numbers(row: Row, column: str) -> list[float] | None:
    """The numbers of one column of one point; None where the point failed."""
    if row["values"] is None:
        return None
    value = row["values"][column]
    items = value if isinstance(value, list) else [value]
    return [float(item) for item in items if item is not None and math.isfinite(item)]


def _compared(check: Check, row: Row, rows: Sequence[Row]) -> list[float] | None:
    own = _numbers(row, check.value)
    if own is None or not check.against:
        return own
    wanted = {**row["point"], **check.against}
    if row["point"] == wanted:
        return []  # the reference itself
    reference = next((other for other in rows if other["point"] == wanted), None)
    others = None if reference is None else _numbers(reference, check.value)
    if others is None or len(others) != len(own) or (check.compare == "ratio" and 0.0 in others):
        return None
    if check.compare == "ratio":
        return [one / other for one, other in zip(own, others, strict=True)]
    return [one - other for one, other in zip(own, others, strict=True)]


def _place(check: Check, point: Mapping[str, Any], cases: Sequence[Case]) -> float:
    assert check.along is not None
    if check.along == CASE:
        at = next(case.at for case in cases if case.name == point[CASE])
        assert at is not None
        return at
    return float(point[check.along])


def _outcome(check: Check, found: list[float], passed: bool | None, why: str) -> dict[str, Any]:
    return {
        "rule": rule_text(check),
        "because": check.because,
        "found": found,
        "passed": passed,
        "why": why,
        "value": check.value,
        "min": check.min,
        "max": check.max,
        # limits of each number as it stands in the column
        "plain": check.over == "every" and not check.against,
    }


def rule_text(check: Check) -> str:
    """A check in one line, such as ``every light_77 ≤ 1.2 where seed=1``."""
    what = check.value
    if check.against:
        sign = "/" if check.compare == "ratio" else "−"
        what += f" {sign} that at {_listed(check.against)}"
    what = f"slope of ln({what}) along ln({check.along})" if check.along else f"{check.over} {what}"
    low = "" if check.min is None else f"{check.min:g} ≤ "
    high = "" if check.max is None else f" ≤ {check.max:g}"
    return f"{low}{what}{high}" + (f" where {_listed(check.where)}" if check.where else "")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
