"""Every leaf of the correctionlib file, evaluated by correctionlib, against the rows."""

from __future__ import annotations

import copy
import itertools
import math

import correctionlib
import correctionlib.schemav2
import numpy as np
import pytest

from selfcal.config.fit import ExportConfig
from selfcal.errors import ConfigError, DataError
from selfcal.export.correctionlib_export import correction_set, export_correctionlib
from selfcal.export.rows import ScaleFactorRows, working_point_name

LABEL = {"b": 5, "c": 4, "light": 0, "tau": 15}
DISCRIMINANTS = [-3.0, 1.0, 2.0, 3.0, 9.0]


@pytest.fixture
def load():
    def loaded(results):
        (path,) = export_correctionlib(results).files
        return correctionlib.CorrectionSet.from_file(str(path))

    return loaded


@pytest.fixture
def loaded(results, load):
    return load(results)


def sigmas(content: dict, number: int) -> dict[str, float]:
    """Suffix of every systematic -> its size for one row, from the file alone."""
    row = content["rows"][number]
    groups = {"statistics": row["stat"], **row["syst"]}
    own = {"statistics", "map"}
    result = {"": row["total"], "_statistic": row["stat"]}
    result |= {f"_{group}": size for group, size in row["syst"].items()}
    result["_correlated"] = math.hypot(*(size for group, size in groups.items() if group not in own))
    result["_uncorrelated"] = math.hypot(*(size for group, size in groups.items() if group in own))
    reduced = content["eigenvariations"][row["flavour"]]
    column = reduced["rows"].index(number)
    most = max(len(part["shifts"]) for part in content["eigenvariations"].values())
    shifts = [shift[column] for shift in reduced["shifts"]] + [0.0] * most
    result |= {f"_ev{j}": shifts[j] for j in range(most)}
    result["_ev_envelope"] = reduced["envelope"][column]
    return result


def evaluate(loaded, row: dict, systematic: str, pt_gev: float, abs_eta: float = 1.0) -> float:
    flavour = LABEL[row["flavour"]]
    if row["kind"] == "continuous":
        discriminant = DISCRIMINANTS[row["bin"]]
        return loaded["SelfCal_shape"].evaluate(systematic, flavour, abs_eta, pt_gev, discriminant)
    name = "SelfCal_incl" if row["flavour"] == "light" else "SelfCal_comb"
    return loaded[name].evaluate(
        systematic, working_point_name(row["working_point"]), flavour, abs_eta, pt_gev
    )


def status(loaded, row: dict, pt_gev: float, abs_eta: float = 1.0) -> float:
    flavour = LABEL[row["flavour"]]
    if row["kind"] == "continuous":
        discriminant = DISCRIMINANTS[row["bin"]]
        return loaded["SelfCal_shape_status"].evaluate(flavour, abs_eta, pt_gev, discriminant)
    point = working_point_name(row["working_point"])
    return loaded["SelfCal_status"].evaluate(point, flavour, abs_eta, pt_gev)


def test_every_leaf_equals_its_row(loaded, content) -> None:
    seen = set()
    for number, row in enumerate(content["rows"]):
        if row["value"] is None:
            continue
        low, high = row["pt_gev"][0], math.nextafter(row["pt_gev"][1], 0)
        assert evaluate(loaded, row, "central", low) == pytest.approx(row["value"], rel=1e-14)
        for suffix, sigma in sigmas(content, number).items():
            for key, expected in ((f"up{suffix}", sigma), (f"down{suffix}", -sigma)):
                for pt_gev in (low, high):
                    found = evaluate(loaded, row, key, pt_gev)
                    assert found == pytest.approx(row["value"] + expected, rel=1e-12), key
                seen.add(key)
    assert {"up_statistic", "down_map", "up_ev0", "down_ev_envelope", "up_correlated"} <= seen


def test_no_systematic_is_written_that_the_rows_do_not_explain(results, content) -> None:
    model = correction_set(results.factors, results.config)
    expected = {"central"} | {f"{way}{s}" for s in sigmas(content, 0) for way in ("up", "down")}
    for correction in model.corrections:
        if correction.name.endswith(("_comb", "_incl", "_shape")):
            assert {item.key for item in correction.data.content} == expected


def test_the_file_is_valid_schema_v2(results) -> None:
    (path,) = export_correctionlib(results).files
    model = correctionlib.schemav2.CorrectionSet.model_validate_json(path.read_text())
    assert model.schema_version == 2
    assert len(model.corrections) == 6


def test_variations_give_the_covariance_of_a_flavour(loaded, content) -> None:
    """What a user puts together from correctionlib alone, against the covariance of the fit."""
    matrix, order = np.array(content["covariance"]["matrix"]), content["covariance"]["rows"]
    for flavour, reduced in content["eigenvariations"].items():
        rows = [content["rows"][i] for i in reduced["rows"]]
        suffixes = [f"_ev{j}" for j in range(len(reduced["shifts"]))]

        def shift(suffix: str, rows=rows) -> np.ndarray:
            pairs = [
                [evaluate(loaded, row, way + suffix, row["pt_gev"][0]) for way in ("up", "down")]
                for row in rows
            ]
            return np.array([(up - down) / 2 for up, down in pairs])

        rebuilt = sum(np.outer(shift(s), shift(s)) for s in suffixes) + np.diag(shift("_ev_envelope") ** 2)
        chosen = [order.index(i) for i in reduced["rows"]]
        block = matrix[np.ix_(chosen, chosen)]
        sigma = np.sqrt(np.diag(block))
        difference = np.abs(rebuilt - block) / np.outer(sigma, sigma)
        assert difference.max() == pytest.approx(reduced["round_trip_error"]["covariance"], abs=1e-10), (
            flavour
        )


def test_periods_split_the_total(loaded, content) -> None:
    row = content["rows"][5]
    parts = [
        evaluate(loaded, row, f"up{s}", 30.0) - row["value"] for s in ("_correlated", "_uncorrelated", "")
    ]
    assert math.hypot(parts[0], parts[1]) == pytest.approx(parts[2], rel=1e-12)


def test_which_groups_are_correlated_is_configuration(results, content) -> None:
    everything = ExportConfig(uncorrelated_groups=("statistics", "map", "composition", "residual"))
    text = correction_set(results.factors, everything).model_dump_json(exclude_unset=True)
    loaded = correctionlib.CorrectionSet.from_string(text)
    row = content["rows"][0]
    assert evaluate(loaded, row, "up_uncorrelated", 30.0) == pytest.approx(row["value"] + row["total"])
    assert evaluate(loaded, row, "up_correlated", 30.0) == row["value"]
    with pytest.raises(ConfigError, match="compositon"):
        correction_set(results.factors, ExportConfig(uncorrelated_groups=("compositon",)))


def test_bins_of_eta_keep_their_numbers(eta_results, load) -> None:
    loaded = load(eta_results)
    for row in eta_results.factors.rows:
        middle = sum(row["abs_eta"]) / 2
        if row["value"] is not None:
            central = evaluate(loaded, row, "central", row["pt_gev"][0], middle)
            assert central == pytest.approx(row["value"], rel=1e-14)
            up = evaluate(loaded, row, "up", row["pt_gev"][0], middle)
            assert up == pytest.approx(row["value"] + row["total"], rel=1e-12)


@pytest.mark.fault(7, "unmeasured bins in correctionlib")
def test_unmeasured_bins_are_errors_and_not_numbers(loaded, content) -> None:
    hidden = [row for row in content["rows"] if row["value"] is None]
    assert hidden
    for row in hidden:
        for systematic in ("central", "up", "down_map", "up_ev0", "not measured"):
            with pytest.raises((IndexError, RuntimeError)):
                evaluate(loaded, row, systematic, row["pt_gev"][0])


def test_the_status_tells_where_there_is_a_scale_factor(loaded, content) -> None:
    numbers = {"unmeasured": 0, "measured": 1, "extrapolated": 2}
    for row in content["rows"]:
        assert status(loaded, row, row["pt_gev"][0]) == numbers[row["status"]]
    for row, (pt_gev, abs_eta) in itertools.product(
        (content["rows"][0], content["rows"][5]),
        ((math.nan, 1.0), (30.0, math.nan), (30.0, 2.5), (30.0, -0.1), (19.9, 1.0), (250.0, 1.0)),
    ):
        assert status(loaded, row, pt_gev, abs_eta) == 0
    assert loaded["SelfCal_shape_status"].evaluate(5, 1.0, 30.0, math.nan) == 0


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
@pytest.mark.parametrize("binned", ["results", "eta_results"])
def test_outside_the_measured_range_and_nan_are_errors(load, request, binned, kind, pt_gev, abs_eta) -> None:
    results = request.getfixturevalue(binned)
    row = next(row for row in results.factors.rows if row["kind"] == kind)
    with pytest.raises(RuntimeError):
        evaluate(load(results), row, "central", pt_gev, abs_eta)


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
    assert names["SelfCal_status"] == by_point[1:]
    assert names["SelfCal_shape_status"] == ["flavor", "abseta", "pt", "discriminant"]


def test_missing_doubled_and_misplaced_rows_are_errors(content) -> None:
    missing = {**content, "rows": [row for row in content["rows"] if row["bin"] != 3]}
    with pytest.raises(DataError, match="bin=3"):
        ScaleFactorRows(missing)
    with pytest.raises(DataError, match="two rows"):
        ScaleFactorRows({**content, "rows": [*content["rows"], content["rows"][0]]})
    moved = copy.deepcopy(content)
    moved["rows"][0]["pt_gev"] = [20.0, 50.0]
    with pytest.raises(DataError, match="20–50"):
        ScaleFactorRows(moved)
