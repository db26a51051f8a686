"""Numbers of a run by their path."""

from __future__ import annotations

import pytest

from selfcal.errors import DataError
from selfcal.run.atomic import write_json
from selfcal.study.collecting import collected

ROWS = [
    {"flavour": "b", "working_point": 0.77, "pt_gev": [20, 40], "value": 0.9},
    {"flavour": "b", "working_point": 0.77, "pt_gev": [40, 70], "value": 1.1},
    {"flavour": "c", "working_point": 0.85, "pt_gev": [20, 40], "value": None},
]


@pytest.fixture
def results(tmp_path):
    write_json(tmp_path / "a.json", {"x": {"y": [1, {"z": 2.5}], "none": None}, "rows": ROWS})
    return tmp_path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.x.y.1.z", 2.5),
        ("a.x.y.0", 1),
        ("a.x.none", None),
        ("a.x.none.of.this", None),
        ("a.rows[flavour=b].value", [0.9, 1.1]),
        ("a.rows[flavour=b,pt_gev.0=40].value", 1.1),
        ("a.rows[working_point=0.85].value", None),
        ("a.rows[flavour=c].pt_gev.1", 40),
        ("a.rows[flavour=tau].value", None),
        ("a.rows[y.0=1].value", None),
    ],
)
def test_numbers_are_found(results, path, value):
    assert collected(results, {"name": path}) == {"name": value}


@pytest.mark.parametrize("path", ["a.x.n", "a.x.y.2", "b.x", "a.x[flavour=b]"])
def test_missing_numbers_are_named(results, path):
    with pytest.raises(DataError):
        collected(results, {"name": path})
