"""The files of the export stage and its manifest."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import correctionlib
import numpy as np
import pytest
import uproot

from selfcal.errors import DataError
from selfcal.export.cdi import export_cdi
from selfcal.export.contract import Exported, Results
from selfcal.export.rows import ScaleFactorRows
from selfcal.export.stage import EXPORTERS, manifest, run_export
from selfcal.export.table import export_table
from selfcal.run.atomic import read_json, write_json


@pytest.fixture
def fitted(context, content, workspace) -> Path:
    """The results folder after the fit stage."""
    write_json(context.directory.results / "scale_factors.json", content)
    write_json(context.directory.results / "workspace.json", workspace)
    return context.directory.results


def test_the_manifest_holds_the_digest_of_every_result(context, fitted) -> None:
    written = {path.relative_to(fitted).as_posix() for path in run_export(context)}
    listed = read_json(fitted / "manifest.json")
    assert written == {name for names in listed["formats"].values() for name in names} | {"manifest.json"}
    assert len(listed["formats"]) == len(EXPORTERS)
    # The context has neither a tagger nor a map.
    assert list(listed["skipped"]) == ["onnx"]
    files = listed["files"]
    assert set(files) == (written - {"manifest.json"}) | {"scale_factors.json", "workspace.json"}
    for name, entry in files.items():
        data = (fitted / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_every_format_takes_a_flavour_that_nobody_measured(context, fitted, without_tau) -> None:
    write_json(fitted / "scale_factors.json", without_tau)
    run_export(context)
    listed = read_json(fitted / "manifest.json")
    assert len(listed["formats"]) == len(EXPORTERS)
    corrections = correctionlib.CorrectionSet.from_file(str(fitted / "correctionlib.json"))
    assert corrections["SelfCal_status"].evaluate("77", 15, 1.0, 30.0) == 0
    with pytest.raises(IndexError):
        corrections["SelfCal_comb"].evaluate("central", "77", 15, 1.0, 30.0)
    with uproot.open(fitted / "cdi/scale_factors.root") as file:
        assert np.isnan(file["SelfCal/AntiKt4/FixedCutBEff_77/T/default_SF/result"].values()).all()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("key", "word"), [("blinded", "BLINDED"), ("forced", "NOT CONVERGED")])
def test_every_format_says_blinded_or_forced(context, fitted, content, key, word, marked) -> None:
    write_json(fitted / "scale_factors.json", {**content, key: marked})
    run_export(context)
    texts = [
        correctionlib.CorrectionSet.from_file(str(fitted / "correctionlib.json"))["SelfCal_comb"].description,
        (fitted / "combine/datacard.txt").read_text(),
        (fitted / "hepdata/submission.yaml").read_text(),
    ]
    with uproot.open(fitted / "cdi/scale_factors.root") as file:
        texts.append(file["SelfCal/AntiKt4/FixedCutBEff_77/B/default_SF/result"].title)
    assert [word in text for text in texts] == [marked] * 4
    with open(fitted / "scale_factors.csv", newline="") as handle:
        assert {line[key] for line in csv.DictReader(handle)} == {str(marked)}
    assert read_json(fitted / "manifest.json")[key] is marked


@pytest.mark.parametrize("export", [export for export in EXPORTERS if export is not export_cdi])
def test_no_exporter_writes_the_same_for_a_blinded_run(context, fitted, content, workspace, export) -> None:
    """Binary files differ by their identifiers alone; the titles of CDI-like ones are read above."""
    texts = []
    for blinded in (False, True):
        factors = ScaleFactorRows({**content, "blinded": blinded})
        done = export(Results(fitted, factors, workspace, context.config.export))
        texts.append([path.read_bytes() for path in done.files if path.suffix not in {".root", ".gz"}])
    assert texts[0]
    assert texts[0] != texts[1]


def test_a_second_export_leaves_no_file_of_the_first_behind(context, fitted) -> None:
    first = run_export(context)
    for folder in {path.parent for path in first} - {fitted}:
        (folder / "of_an_older_binning.yaml").write_text("old")
    assert run_export(context) == first
    assert not list(fitted.rglob("of_an_older_binning.yaml"))
    assert not list(fitted.rglob(".*"))


def test_the_manifest_says_what_is_missing(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".half.part").mkdir()
    (tmp_path / ".half.part/b.txt").write_text("b")
    done = [
        Exported("a", (tmp_path / "a.txt",), not_expressed=("one thing",)),
        Exported("b", (), skipped="not installed"),
    ]
    listed = manifest(tmp_path, done)
    assert listed["formats"] == {"a": ["a.txt"]}
    assert listed["skipped"] == {"b": "not installed"}
    assert listed["not_expressed"] == {"a": ["one thing"]}
    assert list(listed["files"]) == ["a.txt"]


def test_the_table_has_one_line_per_row_and_empty_cells_where_nothing_was_measured(results, content) -> None:
    (path,) = export_table(results).files
    with open(path, newline="") as handle:
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
