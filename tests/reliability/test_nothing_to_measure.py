"""Where there is nothing to measure there is no number: neither 0/0 nor one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.errors import DataError, SelfcalError
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Templates
from tests.likelihood.conftest import first_pt_bin, random_world  # noqa: F401 - one is a fixture

FLAVOURS = ("b", "c", "light", "tau")
SIMULATED = ("nominal", "nominal_variance", "calibrated", "calibrated_variance", "replicas")
CONFIG = FitConfig(free_flavours=("b",))

Change = Callable[[Templates], Templates]


def emptied(*index: Any, data: bool = False) -> Change:
    """Templates without content at (region, flavour, kinematic bin, discriminant bin)."""

    def change(templates: Templates) -> Templates:
        changed = {}
        for name in ("data",) if data else SIMULATED:
            values = getattr(templates, name).copy()
            values[(slice(None), *index) if name == "replicas" else index] = 0.0
            changed[name] = values
        return replace(templates, **changed)

    return change


def composed(region: int, fractions: list[float]) -> Change:
    def change(templates: Templates) -> Templates:
        composition = templates.composition.copy()
        composition[region] = fractions
        return replace(templates, composition=composition)

    return change


ALL = slice(None)
CASES: dict[str, tuple[Change, str | None, int | None]] = {
    "no data in the region of light jets": (emptied(2, data=True), "light", None),
    "no data in the region of tau jets": (emptied(3, data=True), "tau", None),
    "no data in one pT bin of the region of light jets": (emptied(2, 1, data=True), "light", 1),
    "no data in the tightest bins": (emptied(ALL, ALL, 4, data=True), None, None),
    "no data but in one bin per region": (emptied(ALL, ALL, slice(1, None), data=True), None, None),
    "no simulated tau jets at all": (emptied(ALL, 3), "tau", None),
    "no simulated light jets in their region": (emptied(2, 2), "light", None),
    "no simulated b jets in one pT bin": (emptied(ALL, 0, 2), "b", 2),
    "no simulated light jets in the tightest bin": (emptied(ALL, 2, ALL, 4), None, None),
    "no simulated charm jets but in one bin": (emptied(ALL, 1, ALL, slice(1, None)), None, None),
    "a region of light jets alone": (composed(2, [0.0, 0.0, 1.0, 0.0]), None, None),
    "a region of b jets alone": (composed(0, [1.0, 0.0, 0.0, 0.0]), None, None),
    "no tau jets expected anywhere": (
        lambda templates: replace(
            templates, composition=templates.composition * [1, 1, 1, 0] / (1 - templates.composition[:, 3:])
        ),
        "tau",
        None,
    ),
}


def rows_of(templates: Templates) -> list[dict[str, Any]]:
    measured = measure(templates, CONFIG)
    return as_json(measured.factors, measured.layout, "SelfCal")["rows"]


@pytest.mark.fault(7, "empty regions, zero data, zero simulation, zero-count bins, one-flavour regions")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * ("pT bin" in case)) for case in CASES]
)
def test_a_number_or_no_number(case, random_world, attempts) -> None:  # noqa: F811
    change, flavour, pt_bin = CASES[case]
    whole = random_world.templates
    templates = change(whole if pt_bin is not None else first_pt_bin(whole))
    with attempts(case):
        try:
            rows = rows_of(templates)
        except SelfcalError as error:
            assert error.where or error.expected or error.fix  # noqa: PT017 - refusing is as good
            return
        low = None if pt_bin is None else templates.binning.pt_gev_edges[pt_bin]
        for row in rows:
            if row["status"] == "unmeasured":
                assert (row["value"], row["stat"], row["total"]) == (None, None, None)
                continue
            assert math.isfinite(row["value"])
            assert row["value"] > 0 or row["kind"] == "continuous"
            assert math.isfinite(row["total"])
            assert row["total"] > 0, row
            if row["flavour"] == flavour and low in (None, row["pt_gev"][0]):
                assert row["status"] != "measured", row


@pytest.mark.fault(7, "no data in any region")
def test_no_data_at_all_is_an_error(random_world) -> None:  # noqa: F811
    with pytest.raises(DataError, match="no region has data"):
        rows_of(emptied(ALL, data=True)(random_world.templates))


@pytest.mark.fault(5, "NaN, +Inf, -Inf in every template of the fit")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_templates_are_finite_or_refused(random_world, attempts, value) -> None:  # noqa: F811
    one = first_pt_bin(random_world.templates)
    templates = replace(one, variations={"v": 1.1 * one.calibrated}, detector={"0": 1.1 * one.calibrated})
    for name in (
        *SIMULATED,
        "data",
        "composition",
        "composition_relative_uncertainty",
        "variations",
        "detector",
    ):
        with attempts(f"{name} {value}"):
            content = getattr(templates, name)
            if isinstance(content, dict):
                key, array = next(iter(content.items()))
                array = array.copy()
                array.flat[7] = value
                changed: Any = {key: array}
            else:
                changed = np.array(content, copy=True)
                changed.flat[7] = value
            with pytest.raises(DataError, match=name):
                measure(replace(templates, **{name: changed}), CONFIG)
