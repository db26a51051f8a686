"""``summary.json`` of a study as its page reads it."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from selfcal.report.inputs import Content

SUMMARY = "summary.json"
Numbers: TypeAlias = list[float]


class StudyRow(Content):
    """One point: what tells it from the others, and its numbers or its error."""

    run: str
    point: dict[str, Any] = {}
    values: dict[str, Any] | None = None
    error: str | None = None


class StudyCheck(Content):
    """One rule and what was found; ``min`` and ``max`` are limits of ``value`` where ``plain``."""

    rule: str
    because: str = ""
    found: list[float] = []
    passed: bool | None = None
    why: str = ""
    value: str | None = None
    min: float | None = None
    max: float | None = None
    plain: bool = False


class Faking(Content):
    case: str
    seed: int | None = None
    fakes: bool | None = None
    size: float | None = None
    size_error: float | None = None
    chi2: float | None = None
    chi2_unexplained: float | None = None
    ndf: float | None = None
    p_value: float | None = None
    error: str | None = None


class StudySummary(Content):
    study: str
    description: str = ""
    expected: str = ""
    points: int
    done: int
    failed: int
    as_expected: bool | None = None
    columns: dict[str, str] = {}
    checks: list[StudyCheck] = []
    rows: list[StudyRow] = []
    faking: list[Faking] = []

    def column_names(self) -> list[str]:
        """Every collected number, in the order of the study file."""
        return list(dict.fromkeys([*self.columns, *(key for row in self.rows for key in row.values or ())]))

    def shown_columns(self) -> list[str]:
        """Those that are not the uncertainty of another one."""
        names = self.column_names()
        return [name for name in names if not (name.endswith("_error") and name[: -len("_error")] in names)]


def numbers_of(value: Any) -> Numbers:
    """The finite numbers of one collected value, which may be a list."""
    items = value if isinstance(value, list) else [value]
    return [
        float(item)
        for item in items
        if isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)
    ]
