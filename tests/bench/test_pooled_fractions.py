"""Spreads of fractions pooled over worlds: exact on two of them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.pooled_fractions import line, pooled


def row(fitted: float, bulk: float, uncertainty: float, truth: float = 0.5) -> dict[str, Any]:
    return {"prior": 0.5, "fitted": fitted, "bulk": bulk, "uncertainty": uncertainty, "truth": truth}


def test_relative_variances_are_averaged_and_differences_stay() -> None:
    apart = 0.02
    one = [row(0.5, 0.5, 0.05)]  # relative variance 0.01
    other = [row(0.4, 0.4 - apart, (0.4**2 * 0.03 + apart**2) ** 0.5)]  # 0.03
    first, second = pooled([one, other])
    assert first[0]["uncertainty"] == pytest.approx(0.5 * 0.02**0.5)
    assert second[0]["uncertainty"] == pytest.approx((0.4**2 * 0.02 + apart**2) ** 0.5)
    assert {**first[0], "uncertainty": 0.05} == one[0]


def test_worlds_that_agree_stay_as_they_are() -> None:
    same = [[row(0.6, 0.6, 0.06)], [row(0.3, 0.3, 0.03)]]
    for before, after in zip(same, pooled(same), strict=True):
        assert after[0]["uncertainty"] == pytest.approx(before[0]["uncertainty"])


def test_shares_count_fractions_of_all_worlds() -> None:
    inside, outside = row(0.5, 0.5, 0.05, truth=0.5), row(0.5, 0.5, 0.05, truth=0.6)
    assert line([[inside, outside], [inside, inside]]) == "0.75 | 2.0, 0.0 | 10, 10"
