"""Checks of a study against numbers whose answer is known."""

from __future__ import annotations

import pytest

from selfcal.config.study import Case, Check
from selfcal.study.expectations import judged

ROWS = [
    {"point": {"a.n": n, "seed": seed}, "values": {"sigma": 3.0 * n**-0.5 + 0 * seed, "many": [n, None, -n]}}
    for n in (100, 400, 1600)
    for seed in (1, 2)
]


def verdict(rows=ROWS, cases=(), **check):
    (found,) = judged([Check.model_validate({"value": "sigma", **check})], rows, cases)
    return found


def test_every_number_must_be_within_the_limits():
    assert verdict(min=0.07, max=0.31)["passed"] is True
    assert verdict(min=0.08, max=0.31)["passed"] is False
    assert verdict(max=0.16, where={"a.n": 400})["found"] == pytest.approx([0.15, 0.15])


@pytest.mark.parametrize(
    ("over", "expected"), [("mean", 0.175), ("min", 0.075), ("max", 0.3), ("rms", (0.118125 / 3) ** 0.5)]
)
def test_numbers_are_condensed(over, expected):
    assert verdict(over=over, max=1)["found"] == pytest.approx([expected])


def test_the_slope_of_a_power_law_is_its_power():
    found = verdict(over="slope", along="a.n", min=-0.501, max=-0.499)
    assert found["passed"] is True
    assert found["found"] == pytest.approx([-0.5])


def test_the_slope_along_cases_uses_their_place():
    rows = [
        {"point": {"case": name, "seed": 1}, "values": {"sigma": 2.0 * at}}
        for name, at in (("x", 1), ("y", 3))
    ]
    cases = [Case(name="x", at=1), Case(name="y", at=3)]
    assert verdict(rows, cases, over="slope", along="case", max=9)["found"] == pytest.approx([1.0])


def test_points_are_compared_with_a_reference_that_differs_in_one_key_alone():
    assert verdict(against={"a.n": 100}, min=0)["found"] == pytest.approx([0.5, 0.5, 0.25, 0.25])
    found = verdict(against={"a.n": 100}, compare="difference", where={"a.n": 1600}, max=0)
    assert found["found"] == pytest.approx([-0.225, -0.225])
    assert verdict(against={"a.n": 100}, value="many", where={"a.n": 400}, min=0)["found"] == [4, 4, 4, 4]


def test_the_spread_of_bootstraps_leaves_out_what_they_are_held_against():
    rows = [
        {"point": {"data.bootstrap": k}, "values": {"sigma": value}}
        for k, value in enumerate((5.0, 1.0, 4.0))
    ]
    found = verdict(rows, against={"data.bootstrap": 0}, compare="difference", over="std", max=9)
    assert found["found"] == pytest.approx([(4.5) ** 0.5])
    assert (
        verdict(rows[:2], against={"data.bootstrap": 0}, compare="difference", over="std", max=9)["passed"]
        is None
    )


def test_nothing_is_said_where_a_point_failed():
    rows = [ROWS[0], {"point": {"a.n": 400, "seed": 1}, "values": None}]
    assert verdict(rows, max=1)["passed"] is None
    assert verdict(rows, max=1, where={"a.n": 100})["passed"] is True
    assert verdict(rows, max=1, where={"a.n": 7})["passed"] is None
    assert verdict([ROWS[2]], max=1, against={"a.n": 100})["passed"] is None
    nothing = [{"point": {"seed": 1}, "values": {"sigma": None}}]
    assert verdict(nothing, max=1)["passed"] is None
