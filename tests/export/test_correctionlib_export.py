"""Every leaf of the correctionlib file, evaluated by correctionlib, against the rows."""

from __future__ import annotations

import math

import correctionlib
import pytest

from selfcal.errors import DataError
from selfcal.export.correctionlib_export import as_text, correction_set, working_point_name

LABEL = {"b": 5, "c": 4, "light": 0, "tau": 15}
DISCRIMINANTS = [-3.0, 1.0, 2.0, 3.0, 9.0]


@pytest.fixture
def loaded(content):
    return correctionlib.CorrectionSet.from_string(as_text(correction_set(content)))


def expectations(row: dict) -> dict[str, float]:
    shifts = {"": row["total"], "_statistic": row["stat"], **{f"_{g}": s for g, s in row["syst"].items()}}
    values = {"central": row["value"]}
    for suffix, sigma in shifts.items():
        values[f"up{suffix}"] = row["value"] + sigma
        values[f"down{suffix}"] = row["value"] - sigma
    return values


def evaluate(loaded, row: dict, systematic: str, pt_gev: float, abs_eta: float = 1.0) -> float:
    flavour = LABEL[row["flavour"]]
    if row["kind"] == "continuous":
        discriminant = DISCRIMINANTS[row["bin"]]
        return loaded["SelfCal_shape"].evaluate(systematic, flavour, abs_eta, pt_gev, discriminant)
    name = "SelfCal_incl" if row["flavour"] == "light" else "SelfCal_comb"
    return loaded[name].evaluate(
        systematic, working_point_name(row["working_point"]), flavour, abs_eta, pt_gev
    )


def test_every_leaf_equals_its_row(loaded, content) -> None:
    leaves = 0
    for row in content["rows"]:
        if row["value"] is None:
            continue
        for systematic, expected in expectations(row).items():
            assert evaluate(loaded, row, systematic, row["pt_gev"][0]) == pytest.approx(expected, rel=1e-12)
            assert evaluate(loaded, row, systematic, row["pt_gev"][1] - 1e-6) == pytest.approx(expected)
            leaves += 1
    assert leaves == (108 - 9) * 9


def test_unmeasured_bins_are_errors_and_not_numbers(loaded, content) -> None:
    hidden = [row for row in content["rows"] if row["value"] is None]
    assert hidden
    for row in hidden:
        for systematic in ("central", "up", "down_map", "not measured"):
            with pytest.raises((IndexError, RuntimeError)):
                evaluate(loaded, row, systematic, row["pt_gev"][0])


@pytest.mark.parametrize("kind", ["working_point", "continuous"])
@pytest.mark.parametrize(
    ("pt_gev", "abs_eta"),
    [
        (math.nan, 1.0),
        (30.0, math.nan),
        (30.0, 2.5),
        (30.0, -0.1),
        (19.9, 1.0),
        (250.0, 1.0),
        (math.inf, 1.0),
    ],
)
def test_outside_the_measured_range_and_nan_are_errors(loaded, content, kind, pt_gev, abs_eta) -> None:
    row = next(row for row in content["rows"] if row["kind"] == kind)
    with pytest.raises(RuntimeError):
        evaluate(loaded, row, "central", pt_gev, abs_eta)


def test_an_undefined_discriminant_is_an_error(loaded) -> None:
    with pytest.raises(RuntimeError):
        loaded["SelfCal_shape"].evaluate("central", 5, 1.0, 30.0, math.nan)


def test_thresholds_by_working_point(loaded, content) -> None:
    for point, edge in zip(content["working_points"], content["discriminant_edges"], strict=True):
        assert loaded["SelfCal_wp_values"].evaluate(working_point_name(point)) == edge


def test_inputs_follow_the_cms_order(loaded) -> None:
    names = {name: [variable.name for variable in loaded[name].inputs] for name in loaded}
    by_point = ["systematic", "working_point", "flavor", "abseta", "pt"]
    assert names["SelfCal_comb"] == by_point
    assert names["SelfCal_incl"] == by_point
    assert names["SelfCal_shape"] == ["systematic", "flavor", "abseta", "pt", "discriminant"]


def test_a_missing_row_is_an_error(content) -> None:
    content["rows"] = [row for row in content["rows"] if row["bin"] != 3]
    with pytest.raises(DataError, match="'bin': 3"):
        correction_set(content)
