"""The ROOT histograms, read back through uproot, against the rows."""

from __future__ import annotations

import numpy as np
import pytest
import uproot

from selfcal.export.cdi import export_cdi
from selfcal.export.contract import Results
from selfcal.export.root_histograms import root_histogram

FOLDER = {"b": "B", "c": "C", "light": "Light", "tau": "T"}
LABEL = {"b": 5, "c": 4, "light": 0, "tau": 15}
STATUS = {"unmeasured": 0, "measured": 1, "extrapolated": 2}


@pytest.fixture(params=["results", "eta_results"])
def binned(request) -> Results:
    return request.getfixturevalue(request.param)


def cell(results: Results, row: dict) -> tuple[int, ...]:
    p = results.factors.pt_gev_edges.index(row["pt_gev"][0])
    e = results.factors.abs_eta_edges.index(row["abs_eta"][0])
    return (p, e) if row["bin"] is None else (p, e, row["bin"])


def folder(row: dict) -> str:
    points = {0.85: "85", 0.77: "77", 0.70: "70", 0.60: "60"}
    kind = "Continuous" if row["bin"] is not None else f"FixedCutBEff_{points[row['working_point']]}"
    return f"SelfCal/AntiKt4/{kind}/{FOLDER[row['flavour']]}/default_SF"


def test_every_row_is_in_its_cell_with_every_uncertainty(binned) -> None:
    (path,) = export_cdi(binned).files
    with uproot.open(path) as file:
        histograms = {name: file[name] for name in file.keys(cycle=False, filter_classname="TH[123]D")}
        for row in binned.factors.rows:
            where, index = folder(row), cell(binned, row)

            def read(name: str, where=where, index=index) -> float:
                return histograms[f"{where}/{name}"].values()[index]

            assert read("status") == STATUS[row["status"]]
            quantities = ["result", "statistics", "systematics", *binned.factors.groups]
            if row["value"] is None:
                assert all(np.isnan(read(name)) for name in quantities)
                continue
            assert read("result") == row["value"]
            assert read("statistics") == row["stat"]
            assert histograms[f"{where}/result"].errors()[index] == pytest.approx(row["stat"], rel=1e-12)
            assert {group: read(group) for group in row["syst"]} == row["syst"]
            assert np.hypot(read("statistics"), read("systematics")) == pytest.approx(row["total"], rel=1e-9)


def test_axes_and_thresholds(binned, content) -> None:
    (path,) = export_cdi(binned).files
    with uproot.open(path) as file:
        for point, threshold in zip(("85", "77", "70", "60"), content["discriminant_edges"], strict=True):
            assert file[f"SelfCal/AntiKt4/FixedCutBEff_{point}/cutvalue"].values() == [threshold]
        shape = file["SelfCal/AntiKt4/Continuous/Light/default_SF/result"]
        assert shape.axis("x").edges().tolist() == list(binned.factors.pt_gev_edges)
        assert shape.axis("y").edges().tolist() == list(binned.factors.abs_eta_edges)
        assert shape.axis("z").edges().tolist() == [0, 1, 2, 3, 4, 5]


def test_the_covariance_of_a_flavour_is_in_the_order_of_its_cells(binned) -> None:
    (path,) = export_cdi(binned).files
    factors = binned.factors
    order = {row: i for i, row in enumerate(factors.measured)}
    with uproot.open(path) as file:
        for flavour in factors.flavours:
            rows = [r for r in factors.rows if r["flavour"] == flavour and r["kind"] == "continuous"]
            directory = file[folder(rows[0])]
            shape, matrix = directory["result"].values().shape, directory["covariance"].values()
            for first in rows:
                for second in rows[::3]:
                    i, j = (
                        int(np.ravel_multi_index(cell(binned, row), shape, order="F"))
                        for row in (first, second)
                    )
                    places = [order.get(factors.index(factors.place(row))) for row in (first, second)]
                    if None in places:
                        assert np.isnan(matrix[i, j])
                    else:
                        assert matrix[i, j] == factors.covariance[places[0], places[1]]


def test_all_groups_of_the_covariance_with_their_rows(results, content) -> None:
    (path,) = export_cdi(results).files
    with uproot.open(path) as file:
        directory = file["SelfCal/AntiKt4/covariance"]
        np.testing.assert_array_equal(directory["total"].values(), content["covariance"]["matrix"])
        for name, part in content["covariance"]["groups"].items():
            np.testing.assert_array_equal(directory[name].values(), part)
        tree = directory["rows"].arrays(library="np")
    for i, number in enumerate(content["covariance"]["rows"]):
        row = content["rows"][number]
        assert tree["value"][i] == row["value"]
        assert tree["flavour"][i] == LABEL[row["flavour"]]
        assert [tree["pt_low"][i], tree["pt_high"][i]] == row["pt_gev"]
        if row["bin"] is None:
            assert (tree["bin"][i], tree["working_point"][i]) == (-1, row["working_point"])
        else:
            assert tree["bin"][i] == row["bin"]
            assert np.isnan(tree["working_point"][i])


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 2, 3)])
def test_histograms_keep_values_errors_and_edges(tmp_path, shape) -> None:
    rng = np.random.default_rng(1)
    values, variances = rng.normal(size=shape), rng.uniform(size=shape)
    edges = [np.cumsum(rng.uniform(0.1, 1, size + 1)) for size in shape]
    with uproot.recreate(tmp_path / "x.root") as file:
        file["h"] = root_histogram("h", values, edges, variances=variances)
    with uproot.open(tmp_path / "x.root") as file:
        found = file["h"]
        np.testing.assert_array_equal(found.values(), values)
        np.testing.assert_array_equal(found.variances(), variances)
        for axis, expected in zip(found.axes, edges, strict=True):
            np.testing.assert_array_equal(axis.edges(), expected)
        assert found.values(flow=True).sum() == pytest.approx(values.sum())
