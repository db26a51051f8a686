"""Exported efficiencies: the same numbers in every format, and the network itself in ONNX Runtime."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import correctionlib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import uproot
import yaml

import selfcal
from selfcal.efficiency.network import EfficiencyMap, NetworkShape
from selfcal.efficiency.prediction import LearntEfficiencies, save_efficiencies
from selfcal.efficiency.stage import FOLDER
from selfcal.export.contract import Exported
from selfcal.export.efficiency_hepdata import export_efficiency_hepdata
from selfcal.export.efficiency_map import export_efficiencies
from selfcal.run.atomic import write_json

POINTS = (0.85, 0.6)
PT, ETA = [20.0, 40.0, 250.0], [0.0, 1.2, 2.5]


@pytest.fixture(scope="module")
def learnt() -> LearntEfficiencies:
    torch.manual_seed(4)
    found = EfficiencyMap(NetworkShape(2, 8, 2, 1.5), 2)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return LearntEfficiencies(found.eval(), "SelfCal", "nominal", POINTS, (0.5, 2.5))


@pytest.fixture(scope="module")
def table() -> dict:
    """A different number in every bin; no τ jets at high |η|."""
    rows = []
    for f, flavour in enumerate(("b", "c", "light", "tau")):
        for p in range(2):
            for e in range(2):
                for k, point in enumerate(POINTS):
                    known = not (flavour == "tau" and e == 1)
                    value = 0.97 - 0.2 * f - 0.05 * p - 0.02 * e - 0.1 * k
                    numbers = {"value": value, "uncertainty": 0.05, "counted": value, "counted_error": 0.02}
                    place = {"pt_gev": PT[p : p + 2], "abs_eta": ETA[e : e + 2], "jets": 7 if known else 0}
                    head = {"flavour": flavour, "working_point": point}
                    rows.append(head | place | {n: v if known else None for n, v in numbers.items()})
    head = {"tagger": "SelfCal", "simulation": "nominal", "flavours": ["b", "c", "light", "tau"]}
    return head | {
        "working_points": list(POINTS),
        "discriminant_edges": [0.5, 2.5],
        "pt_gev_edges": PT,
        "abs_eta_edges": ETA,
        "rows": rows,
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory, learnt, table) -> Exported:
    folder = tmp_path_factory.mktemp("analysis") / "runs/demo/results"
    write_json(folder / "efficiency_map.json", table)
    save_efficiencies(folder / FOLDER, learnt)
    return export_efficiencies(folder, "AntiKt4EMPFlowJets")


def test_correctionlib_and_csv_hold_every_bin(exported, table):
    assert [path.name for path in exported.files] == [
        "efficiency_map_correctionlib.json",
        "efficiency_map.csv",
        "efficiency_map.root",
        "efficiency_map.onnx",
    ]
    correction = correctionlib.CorrectionSet.from_file(str(exported.files[0]))["SelfCal_efficiency"]
    labels = {"b": 5, "c": 4, "light": 0, "tau": 15}
    with open(exported.files[1], newline="") as handle:
        lines = list(csv.DictReader(handle))
    for row, line in zip(table["rows"], lines, strict=True):
        place = (f"{100 * row['working_point']:g}", labels[row["flavour"]])
        middle = (float(np.mean(row["abs_eta"])), float(np.mean(row["pt_gev"])))
        if row["value"] is None:
            assert line["value"] == ""
            with pytest.raises(IndexError):
                correction.evaluate("central", *place, *middle)
            continue
        assert float(line["value"]) == row["value"]
        for systematic, sign in (("central", 0), ("up", 1), ("down", -1)):
            expected = min(row["value"] + sign * 0.05, 1.0)
            assert correction.evaluate(systematic, *place, *middle) == pytest.approx(expected)
    with pytest.raises(RuntimeError):
        correction.evaluate("central", "85", 5, 0.5, 300.0)


def test_the_root_file_holds_every_bin_in_the_layout_of_the_scale_factors(exported, table):
    with uproot.open(exported.files[2]) as file:
        for k, point in enumerate(POINTS):
            top = file[f"SelfCal/AntiKt4EMPFlowJets/FixedCutBEff_{100 * point:g}"]
            assert top["cutvalue"].values() == pytest.approx([(0.5, 2.5)[k]])
            for f, folder in enumerate(("B", "C", "Light", "T")):
                rows = [
                    row
                    for row in table["rows"]
                    if (row["flavour"], row["working_point"]) == (table["flavours"][f], point)
                ]
                for name, value, error in (
                    ("result", "value", "uncertainty"),
                    ("counted", "counted", "counted_error"),
                ):
                    histogram = top[f"{folder}/default_Eff/{name}"]
                    wanted = np.array([[row[n] for row in rows] for n in (value, error)], dtype=float)
                    np.testing.assert_array_equal(histogram.values().ravel(), wanted[0])
                    known = np.isfinite(wanted[0])
                    np.testing.assert_allclose(histogram.errors().ravel()[known], wanted[1][known])
                    np.testing.assert_array_equal(histogram.axis(0).edges(), PT)
                    np.testing.assert_array_equal(histogram.axis(1).edges(), ETA)
                jets = top[f"{folder}/default_Eff/jets"].values().ravel()
                np.testing.assert_array_equal(jets, [row["jets"] for row in rows])


def test_hepdata_takes_every_bin(tmp_path, table):
    pytest.importorskip("hepdata_lib")
    write_json(tmp_path / "efficiency_map.json", table)
    exported = export_efficiency_hepdata(tmp_path)
    assert exported.skipped is None
    folder = tmp_path / "hepdata_efficiency_map"
    assert (tmp_path / "hepdata_efficiency_map.tar.gz").exists()
    names = [
        entry["name"]
        for entry in yaml.safe_load_all((folder / "submission.yaml").read_text())
        if "name" in entry
    ]
    assert names == [f"Efficiency {flavour}" for flavour in table["flavours"]]
    content = yaml.safe_load((folder / "efficiency_tau.yaml").read_text())
    rows = [row for row in table["rows"] if row["flavour"] == "tau"]
    efficiency, counted, jets = content["dependent_variables"]
    for row, value, other, number in zip(
        rows, efficiency["values"], counted["values"], jets["values"], strict=True
    ):
        if row["value"] is None:
            assert (value["value"], other["value"], number["value"]) == ("-", "-", 0)
            continue
        assert value["value"] == pytest.approx(row["value"])
        assert value["errors"] == [{"symerror": row["uncertainty"], "label": "sys,bags"}]
        assert other["errors"] == [{"symerror": row["counted_error"], "label": "stat"}]
    pt, eta, point = content["independent_variables"]
    assert [(one["low"], one["high"]) for one in pt["values"]] == [tuple(row["pt_gev"]) for row in rows]
    assert [(one["low"], one["high"]) for one in eta["values"]] == [tuple(row["abs_eta"]) for row in rows]
    assert [float(one["value"]) for one in point["values"]] == [100 * row["working_point"] for row in rows]


def test_onnx_runtime_gives_what_the_network_gives_for_any_number_of_events_and_jets(exported, learnt):
    path = exported.files[3]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    for events, slots in ((1, 1), (5, 2), (40, 7)):
        inputs = {
            "pt_gev": rng.uniform(20, 250, (events, slots)).astype(np.float32),
            "eta": rng.uniform(-1, 1, (events, slots)).astype(np.float32),
            "phi": rng.uniform(-np.pi, np.pi, (events, slots)).astype(np.float32),
            "flavour": rng.integers(-1, 4, (events, slots)),
        }
        with torch.no_grad():
            expected = learnt.map(*(torch.from_numpy(inputs[name]) for name in inputs))
        for found, own in zip(session.run(None, inputs), expected, strict=True):
            np.testing.assert_allclose(found, own.numpy(), atol=1e-5, rtol=0)
    described = json.loads(onnx.load(path).metadata_props[0].value)
    assert described["working_points"] == list(POINTS)
    assert described["classes"] == ["b", "c", "light", "tau"]
    assert described["delta_r_max"] == 1.5


def test_the_example_of_the_documentation_runs(exported, monkeypatch):
    monkeypatch.chdir(exported.files[0].parents[3])
    page = Path(selfcal.__file__).parents[1] / "docs/howto/networks.md"
    names: dict = {}
    exec(page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    assert names["efficiency"].shape == (2, 3, 2)
    assert np.isnan(names["uncertainty"][0, 2]).all()
    assert ((names["both_pass"] > 0) & (names["both_pass"] < 1)).all()
