"""Two runs side by side: the numbers of the page are those of the files."""

from __future__ import annotations

import json
import re

import pytest

from selfcal.cli.app import main
from selfcal.errors import ConfigError, DataError
from selfcal.report.comparison import compare_runs, in_sigma
from selfcal.report.inputs import ScaleFactorRow
from selfcal.run.atomic import read_json, write_json, write_text


@pytest.fixture
def runs(tmp_path, write_run):
    return write_run(tmp_path / "one", seed=1), write_run(tmp_path / "two", seed=2)


def cells(html: str, table: str) -> list[list[str]]:
    """The sort values of every row of a table."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', html, re.S)
    assert body is not None
    rows = re.findall(r"<tr>(.*?)</tr>", body.group(1), re.S)
    return [re.findall(r'data-value="([^"]*)"', row) for row in rows]


def test_the_difference_is_in_units_of_both_uncertainties():
    def row(value, total):
        common = {"flavour": "b", "kind": "working_point", "working_point": 0.7, "pt_gev": (20, 40)}
        return ScaleFactorRow(**common, abs_eta=(0, 2.5), value=value, total=total, status="measured")

    assert in_sigma((row(1.0, 0.3), row(1.5, 0.4))) == pytest.approx(1.0)
    assert in_sigma((row(1.0, 0.0), row(1.5, 0.0))) is None


def test_every_number_is_that_of_the_files(runs, tmp_path):
    *figures, page = compare_runs(*runs, tmp_path / "out")
    html = page.read_text()
    one, two = (read_json(run / "results" / "scale_factors.json")["rows"] for run in runs)
    expected = [(a, b) for a, b in zip(one, two, strict=True) if a["kind"] == "working_point"]
    found = cells(html, "table_working_point")
    assert len(found) == len(expected)
    for row, (a, b) in zip(found, expected, strict=True):
        assert row[:2] == [a["flavour"], str(a["working_point"])]
        if a["value"] is None:
            assert row[4] == row[10] == ""
            continue
        numbers = [float(value) for value in row[4:11]]
        sigma = (a["total"] ** 2 + b["total"] ** 2) ** 0.5
        difference = b["value"] - a["value"]
        wanted = [a["value"], a["total"], b["value"], b["total"], difference, b["value"] / a["value"]]
        assert numbers == pytest.approx([*wanted, difference / sigma])
    assert len(cells(html, "table_closure")) == len(read_json(runs[0] / "results" / "closure.json")["rows"])
    assert len(cells(html, "table_composition")) == 16
    assert {path.stem for path in figures} == {f"comparison_{name}" for name in ("b", "c", "light", "tau")}
    asked = set(re.findall(r'(?:src|href)="(#|data:[^,"]*,|[^"]*)', html))
    inside = {"#", "data:image/png;base64,", "data:application/pdf;base64,"}
    assert asked <= inside, "the page asks for nothing outside itself"


def test_runs_that_agree_say_so_and_name_what_was_configured_differently(runs, tmp_path):
    write_text(runs[1] / "config.resolved.yaml", "name: demo\nseed: 5\nextra: [1, 2]\n")
    html = compare_runs(*runs, tmp_path / "out")[-1].read_text()
    changed = {row[0]: row[1:] for row in cells(html, "table_configuration")}
    assert changed == {"seed": ["1", "5"], "tagger.name": ["SelfCal", ""], "extra": ["", "[1, 2]"]}
    html = compare_runs(runs[0], runs[0], tmp_path / "same")[-1].read_text()
    assert "The two configurations are the same." in html
    assert {row[10] for row in cells(html, "table_working_point")} == {"0.0", ""}


def test_runs_go_by_the_name_they_were_called_by(runs, tmp_path):
    """A point of a study is a link to a run whose own name says nothing."""
    (tmp_path / "point").symlink_to(runs[0])
    html = compare_runs(tmp_path / "point", runs[1], tmp_path / "out")[-1].read_text()
    assert "<h1>point and two</h1>" in html


def test_what_is_missing_is_said(runs, tmp_path):
    (runs[1] / "results" / "closure.json").unlink()
    factors = read_json(runs[1] / "results" / "scale_factors.json")
    factors["rows"] = [row for row in factors["rows"] if row["flavour"] == "b"]
    del factors["covariance"]
    write_json(runs[1] / "results" / "scale_factors.json", factors)
    html = compare_runs(*runs, tmp_path / "out")[-1].read_text()
    assert "Left out: B has no results/closure.json." in html
    assert "are in one of the runs alone" in html
    assert {row[0] for row in cells(html, "table_working_point")} == {"b"}
    factors["rows"] = []
    write_json(runs[1] / "results" / "scale_factors.json", factors)
    with pytest.raises(DataError, match="no scale factor in common"):
        compare_runs(*runs, tmp_path / "other")


def test_a_folder_with_other_things_is_left_alone(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds something else"):
        compare_runs(*runs, tmp_path / "mine")


def test_the_command_line_compares_two_directories(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one", "two", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == "comparisons/one-two/report.html"
    assert (tmp_path / said["report"]).exists()
    for words in (["one"], ["one", "nothing"], ["one", "two", "--seed", "1"]):
        assert main(["report", *words]) == 2
