"""Precision of finished runs: the arithmetic, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.precision import QUOTED, main, measured_by_all, precision
from selfcal.errors import DataError


def row(value: float, stat: float, groups: dict[str, float], **changes: Any) -> dict[str, Any]:
    total = (stat**2 + sum(size**2 for size in groups.values())) ** 0.5
    base = {
        "flavour": "b",
        "kind": "working_point",
        "working_point": 0.77,
        "pt_gev": [20, 40],
        "abs_eta": [0, 2],
    }
    return base | {"value": value, "stat": stat, "total": total, "syst": groups} | changes


ROWS = [
    row(2.0, 0.3, {"map": 0.3, "residual": 0.4}),
    row(1.0, 0.1, {"map": 0.0, "residual": 0.2}, pt_gev=[40, 70]),
    row(0.8, 0.1, {"map": 0.6, "residual": 0.8}, pt_gev=[70, 250]),
    row(9.0, 9.0, {"map": 9.0, "residual": 9.0}, working_point=0.60),
    row(9.0, 9.0, {"map": 9.0, "residual": 9.0}, flavour="light"),
]


def test_rows_that_one_run_does_not_measure_are_left_out_of_all() -> None:
    unmeasured = [ROWS[0] | {"value": None}, *ROWS[1:]]
    other_kind = row(9.0, 9.0, {"map": 9.0}, kind="pseudo_continuous")
    assert measured_by_all([[*ROWS, other_kind], unmeasured]) == [ROWS[1:], ROWS[1:]]


def test_medians_and_shares_are_those_of_the_measured_rows_asked_for() -> None:
    found = precision(ROWS, "b", (0.77,), relative=False)
    assert found.systematic == pytest.approx(0.5)
    assert found.total == pytest.approx(0.34**0.5)
    assert found.distance == pytest.approx(1.2 / 3)
    assert found.shares == pytest.approx(
        {"map": (0.36 + 0.0 + 0.36) / 3, "residual": (0.64 + 1.0 + 0.64) / 3}
    )


def test_relative_uncertainties_are_divided_row_by_row() -> None:
    assert precision(ROWS, "b", (0.77,), relative=True).systematic == pytest.approx(0.25)


def test_nothing_measured_is_said() -> None:
    with pytest.raises(DataError, match="no scale factor of c jets"):
        precision(ROWS, "c", (0.77,), relative=False)


def test_runs_stand_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("first", 1.0), ("second", 0.5)):
        rows = [
            row(1.1, 0.1, {"map": 0.2 * factor}, flavour=flavour, working_point=point)
            for flavour, points in QUOTED
            for point in points
        ]
        results = tmp_path / name / "results"
        results.mkdir(parents=True)
        (results / "scale_factors.json").write_text(json.dumps({"rows": rows}))
        (results / "closure.json").write_text(json.dumps({"rows": []}))
    main([str(tmp_path / "first"), str(tmp_path / "second")])
    printed = capsys.readouterr().out
    assert "b at 77 % | 0.2000 (0.2236; 0.100) | 0.1000 (0.1414; 0.100) -50 %" in printed
    assert "variance of light at 85 %, second: map 100 %" in printed
