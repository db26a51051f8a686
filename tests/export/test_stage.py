"""The files of the export stage and its manifest."""

from __future__ import annotations

import csv
import hashlib

import pytest

from selfcal.config.run import DataConfig, RunConfig
from selfcal.errors import DataError
from selfcal.export.stage import run_export
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory


@pytest.fixture
def context(tmp_path) -> RunContext:
    return RunContext(
        RunConfig(name="test", data=DataConfig(cards=("card.yaml",))), (), RunDirectory(tmp_path / "run")
    )


def test_the_manifest_holds_the_digest_of_every_result(context, content) -> None:
    results = context.directory.results
    write_json(results / "scale_factors.json", content)
    written = run_export(context)
    assert {path.name for path in written} == {"correctionlib.json", "scale_factors.csv", "manifest.json"}
    files = read_json(results / "manifest.json")["files"]
    assert set(files) == {"scale_factors.json", "correctionlib.json", "scale_factors.csv"}
    for name, entry in files.items():
        data = (results / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_table_has_one_line_per_row_and_empty_cells_where_nothing_was_measured(context, content) -> None:
    write_json(context.directory.results / "scale_factors.json", content)
    run_export(context)
    with open(context.directory.results / "scale_factors.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert len(table) == len(content["rows"])
    for line, row in zip(table, content["rows"], strict=True):
        assert line["status"] == row["status"]
        if row["value"] is None:
            assert line["value"] == line["total"] == line["map"] == ""
        else:
            assert float(line["value"]) == row["value"]
            assert float(line["composition"]) == row["syst"]["composition"]


def test_missing_scale_factors_are_an_error_and_nothing_is_written(context) -> None:
    with pytest.raises(DataError, match="not found"):
        run_export(context)
    assert not context.directory.results.exists()
