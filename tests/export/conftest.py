"""A complete ``scale_factors.json`` with distinct numbers in every row, and one row not measured."""

from __future__ import annotations

import itertools

import pytest

EDGES = [20.0, 40.0, 70.0, 250.0]
POINTS = [0.85, 0.77, 0.70, 0.60]


@pytest.fixture
def content() -> dict:
    rows = []
    kinds = [("working_point", point, None) for point in POINTS] + [("continuous", None, k) for k in range(5)]
    grid = itertools.product(("b", "c", "light", "tau"), range(3), kinds)
    for number, (flavour, p, (kind, point, k)) in enumerate(grid):
        hidden = flavour == "tau" and p == 2
        rows.append(
            {
                "flavour": flavour,
                "kind": kind,
                "working_point": point,
                "bin": k,
                "pt_gev": EDGES[p : p + 2],
                "abs_eta": [0.0, 2.5],
                "value": None if hidden else 1 + number / 1000,
                "stat": None if hidden else 0.01 + number / 10000,
                "syst": {} if hidden else {"composition": 0.02 + number / 10000, "map": 0.03},
                "total": None if hidden else 0.1 + number / 1000,
                "status": "unmeasured" if hidden else "measured",
                "expected_passing": None if hidden else 50.0,
                "truth": None,
            }
        )
    return {
        "schema_version": 1,
        "tagger": "SelfCal",
        "flavours": ["b", "c", "light", "tau"],
        "pt_gev_edges": EDGES,
        "abs_eta_edges": [0.0, 2.5],
        "working_points": POINTS,
        "discriminant_edges": [0.5, 1.5, 2.5, 3.5],
        "rows": rows,
        "covariance": {},
    }
