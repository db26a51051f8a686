"""What alternative simulations say, in every format: the number of the file, or said to be left out."""

from __future__ import annotations

import csv
from dataclasses import replace

import correctionlib
import numpy as np
import pytest
import yaml

from selfcal.export.contract import Results
from selfcal.export.correctionlib_export import export_correctionlib
from selfcal.export.hepdata import export_hepdata
from selfcal.export.rows import working_point_name
from selfcal.export.simulations import SimulationRows, read_simulation_rows
from selfcal.export.stage import run_export
from selfcal.export.table import export_table
from selfcal.run.atomic import read_json, write_json

LABEL = {"b": 5, "c": 4}


@pytest.fixture
def others(results, simulations) -> Results:
    return replace(results, simulations=simulations)


@pytest.fixture
def corrections(others):
    (path,) = export_correctionlib(others).files
    return correctionlib.CorrectionSet.from_file(str(path))


def place(row: dict) -> tuple[str, int, float, float]:
    point = working_point_name(row["working_point"])
    return point, LABEL[row["flavour"]], 1.0, float(np.mean(row["pt_gev"]))


def test_correctionlib_gives_every_factor_with_its_error(corrections, simulations) -> None:
    factors = corrections["SelfCal_generators"]
    for row in simulations.generators:
        found = [factors.evaluate(key, row["variation"], *place(row)) for key in ("down", "central", "up")]
        assert found == pytest.approx([row["value"] + s * row["stat"] for s in (-1, 0, 1)], abs=1e-15)


@pytest.mark.parametrize(
    "asked",
    [
        ("radiation", "77", 4, 1.0, 30.0),
        ("nobody", "77", 5, 1.0, 30.0),
        ("shower", "70", 5, 1.0, 30.0),
        ("shower", "77", 0, 1.0, 30.0),
        ("shower", "77", 5, 1.0, 300.0),
        ("shower", "77", 5, 1.0, float("nan")),
        ("shower", "77", 5, 2.6, 30.0),
    ],
)
def test_correctionlib_has_no_factor_where_the_simulation_has_none(corrections, asked) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        corrections["SelfCal_generators"].evaluate("central", *asked)


def test_correctionlib_keeps_what_is_beyond_the_last_bin_apart(corrections, simulations) -> None:
    beyond = corrections["SelfCal_high_pt"]
    for row in simulations.high_pt:
        if row["value"] is None:
            with pytest.raises((IndexError, RuntimeError)):
                beyond.evaluate("central", *place(row))
            continue
        sizes = {"": row["total"], **{f"_{name}": size for name, size in row["syst"].items()}}
        for suffix, size in sizes.items():
            assert beyond.evaluate(f"up{suffix}", *place(row)) == pytest.approx(row["value"] + size)
            assert beyond.evaluate(f"down{suffix}", *place(row)) == pytest.approx(row["value"] - size)
    assert corrections["SelfCal_status"].evaluate("77", 5, 1.0, 300.0) == 0
    with pytest.raises((IndexError, RuntimeError)):
        beyond.evaluate("central", "77", 5, 1.0, 100.0)


def test_the_tables_hold_every_number(others, simulations) -> None:
    files = {path.name: path for path in export_table(others).files}
    assert set(files) == {"scale_factors.csv", "generators.csv", "high_pt.csv"}
    lines = {}
    for name in ("generators.csv", "high_pt.csv"):
        with open(files[name], newline="") as handle:
            lines[name] = list(csv.DictReader(handle))
    for line, row in zip(lines["generators.csv"], simulations.generators, strict=True):
        assert (line["variation"], line["flavour"]) == (row["variation"], row["flavour"])
        assert [float(line[key]) for key in ("working_point", "value", "stat")] == [
            row[key] for key in ("working_point", "value", "stat")
        ]
        assert [float(line["pt_gev_low"]), float(line["pt_gev_high"])] == row["pt_gev"]
    for line, row in zip(lines["high_pt.csv"], simulations.high_pt, strict=True):
        assert line["status"] == row["status"]
        wanted = [row["value"], row["total"], *(row["syst"].get(part) for part in simulations.parts)]
        found = [line[key] for key in ("value", "total", *simulations.parts)]
        assert [float(cell) if cell else None for cell in found] == wanted


def test_tables_of_a_run_without_alternatives_do_not_stay_behind(others) -> None:
    export_table(others)
    (only,) = export_table(replace(others, simulations=SimulationRows())).files
    assert [path.name for path in others.folder.glob("*.csv")] == [only.name]


def test_hepdata_has_a_table_of_each_simulation_and_one_of_high_pt(others, simulations) -> None:
    pytest.importorskip("hepdata_lib", reason="needs the extra 'hepdata'", exc_type=ImportError)
    assert export_hepdata(others).skipped is None
    folder = others.folder / "hepdata"
    _, *tables = yaml.load_all((folder / "submission.yaml").read_text(), yaml.CSafeLoader)
    files = {table["name"]: table["data_file"] for table in tables}

    def values(table: str, column: int) -> list[dict]:
        content = yaml.load((folder / files[table]).read_text(), yaml.CSafeLoader)
        return content["dependent_variables"][column]["values"]

    for name in simulations.variations:
        rows = [row for row in simulations.generators if row["variation"] == name]
        found = values(f"Simulation {name}", 0)
        assert [cell["value"] for cell in found] == pytest.approx([row["value"] for row in rows])
        errors = [cell["errors"][0]["symerror"] for cell in found]
        assert errors == pytest.approx([row["stat"] for row in rows])
    for cell, row in zip(values("Scale factors at high pT", 0), simulations.high_pt, strict=True):
        if row["value"] is None:
            assert cell == {"value": "-"}
            continue
        assert cell["value"] == pytest.approx(row["value"])
        assert {error["label"]: error["symerror"] for error in cell["errors"]} == pytest.approx(
            {f"sys,{part}": size for part, size in row["syst"].items()}
        )


def test_formats_without_a_place_for_them_say_so_in_the_manifest(
    context, content, workspace, simulations
) -> None:
    folder = context.directory.results
    write_json(folder / "scale_factors.json", content)
    write_json(folder / "workspace.json", workspace)
    run_export(context)
    assert "generators.json" not in str(read_json(folder / "manifest.json")["not_expressed"])
    for name, rows in (("generators", simulations.generators), ("high_pt", simulations.high_pt)):
        write_json(folder / f"{name}.json", {"schema_version": 1, "rows": rows})
    assert read_simulation_rows(folder) == simulations
    run_export(context)
    listed = read_json(folder / "manifest.json")
    for missing in (listed["not_expressed"]["combine"], listed["not_expressed"]["cdi"]):
        assert [line.partition(":")[0] for line in missing][-2:] == ["generators.json", "high_pt.json"]
    assert {"generators.csv", "high_pt.csv"} <= set(listed["formats"]["csv"])
