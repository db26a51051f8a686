"""The submission as HEPData's own validator and a YAML reader see it."""

from __future__ import annotations

import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

from selfcal.export.hepdata import export_hepdata
from selfcal.export.rows import working_point_name

pytest.importorskip("hepdata_lib", reason="needs the extra 'hepdata'", exc_type=ImportError)


@pytest.fixture
def submission(results):
    """Every document of the submission by name, read back."""
    exported = export_hepdata(results)
    assert exported.skipped is None
    folder = results.folder / "hepdata"
    head, *tables = yaml.load_all((folder / "submission.yaml").read_text(), yaml.CSafeLoader)
    assert "scale factors" in head["comment"]
    return {
        table["name"]: yaml.load((folder / table["data_file"]).read_text(), yaml.CSafeLoader)
        for table in tables
    }


def complaints(folder: Path) -> dict:
    """What hepdata-validator has against a submission, by file."""
    with warnings.catch_warnings():
        # hepdata-validator 0.3 uses a class that jsonschema has deprecated and does not close its files.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        from hepdata_validator.full_submission_validator import FullSubmissionValidator

        validator = FullSubmissionValidator()
        valid = validator.validate(directory=str(folder))
        messages = {name: [m.message for m in found] for name, found in validator.get_messages().items()}
    assert valid == (not messages)
    return messages


def column(table: dict, name: str) -> list:
    for variable in [*table["independent_variables"], *table["dependent_variables"]]:
        if variable["header"]["name"] == name:
            return variable["values"]
    raise KeyError(name)


def test_the_submission_and_its_archive_are_valid(results, tmp_path_factory) -> None:
    files = export_hepdata(results).files
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(results.folder / "hepdata.tar.gz") as archive:
        # extractall has its safe filter from Python 3.11.4 on only.
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            (unpacked / member.name).write_bytes(content.read())
    packed = {path.name: path.read_bytes() for path in unpacked.iterdir()}
    assert packed == {path.name: path.read_bytes() for path in files if path.suffix == ".yaml"}
    assert complaints(unpacked) == {}
    (unpacked / "covariance_b_c.yaml").write_text("independent_variables: []\n")
    assert "covariance_b_c.yaml" in "".join(complaints(unpacked))


def test_every_row_is_there_with_every_uncertainty(submission, content) -> None:
    checked = 0
    for flavour in content["flavours"]:
        for kind in ("working_point", "continuous"):
            table = submission[f"Scale factors {flavour} {kind.replace('_', ' ')}"]
            rows = [r for r in content["rows"] if (r["flavour"], r["kind"]) == (flavour, kind)]
            values, totals = column(table, "Scale factor"), column(table, "Total uncertainty")
            for i, row in enumerate(rows):
                pt = column(table, "pT")[i]
                assert [pt["low"], pt["high"]] == row["pt_gev"]
                assert column(table, "Status")[i]["value"] == row["status"]
                if kind == "working_point":
                    name = working_point_name(row["working_point"])
                    assert column(table, "Working point")[i]["value"] == name
                else:
                    assert column(table, "Bin")[i]["value"] == row["bin"]
                if row["value"] is None:
                    assert values[i] == {"value": "-"}
                    assert totals[i] == {"value": "-"}
                    continue
                assert values[i]["value"] == pytest.approx(row["value"], rel=1e-11)
                assert totals[i]["value"] == pytest.approx(row["total"], rel=1e-11)
                errors = {error["label"]: error["symerror"] for error in values[i]["errors"]}
                expected = {"stat": row["stat"], **{f"sys,{g}": s for g, s in row["syst"].items()}}
                assert errors == pytest.approx(expected, rel=1e-11)
                checked += 1
    assert checked == sum(row["value"] is not None for row in content["rows"])


def test_the_covariance_is_complete(submission, content, results) -> None:
    labels = [results.factors.label(content["rows"][i]) for i in content["covariance"]["rows"]]
    assert len(set(labels)) == len(labels)
    position = {label: i for i, label in enumerate(labels)}
    matrix = np.full((len(labels), len(labels)), np.nan)
    for name, table in submission.items():
        if name.startswith("Covariance"):
            entries = zip(*(column(table, header) for header in ("Row", "Column", "Covariance")), strict=True)
            for row, col, value in entries:
                i, j = position[row["value"]], position[col["value"]]
                matrix[i, j] = matrix[j, i] = value["value"]
    np.testing.assert_allclose(matrix, content["covariance"]["matrix"], rtol=1e-10, atol=1e-20)


def test_the_same_numbers_give_the_same_bytes_and_leave_the_working_directory_alone(
    results, tmp_path_factory, monkeypatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    first = {path: path.read_bytes() for path in export_hepdata(results).files}
    assert first == {path: path.read_bytes() for path in export_hepdata(results).files}
    assert list(here.iterdir()) == []


def test_without_hepdata_lib_the_format_is_skipped_with_the_reason(results, monkeypatch) -> None:
    (results.folder / "hepdata").mkdir()
    (results.folder / "hepdata/submission.yaml").write_text("of earlier numbers")
    monkeypatch.setitem(sys.modules, "hepdata_lib", None)
    exported = export_hepdata(results)
    assert exported.files == ()
    assert "hepdata_lib is not installed" in exported.skipped
    assert not (results.folder / "hepdata").exists()
