"""The page of a study: every number of its summary, every check, every failed point."""

from __future__ import annotations

import json
import re

import pytest

from selfcal.errors import DataError
from selfcal.report.figures.study import study_figures
from selfcal.report.study import build_study_report
from selfcal.report.study_inputs import StudySummary
from selfcal.run.atomic import write_json
from tests.report.summaries import study_summary


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    summary = study_summary()
    write_json(folder / "summary.json", summary)
    written = build_study_report(folder)
    return summary, written, (folder / "report.html").read_text(encoding="utf-8")


def cells(html: str, table: str) -> list[list[tuple[str, str]]]:
    """Exact value and shown text of every cell of a table."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)
    return [re.findall(r'data-value="([^"]*)">([^<]*)</td>', row) for row in rows]


def test_every_point_has_its_numbers_or_its_error(study):
    summary, _, html = study
    found = cells(html, "table_points")
    assert [row[0][1] for row in found] == [row["run"] for row in summary["rows"]]
    for shown, row in zip(found, summary["rows"], strict=True):
        assert shown[1][0] == str(row["point"]["tagger.width"])
        if row["error"] is not None:
            assert shown[3][1] == "failed: no minimum"
            continue
        values = row["values"]
        numbers = [float(value) for value, _ in (shown[3], shown[4], shown[5])]
        assert numbers == [values["light"], values["light_error"], values["ratios"][0]]
        assert shown[5][1] == ", ".join(f"{one:.4g}" for one in values["ratios"] if one is not None)


def test_every_check_stands_with_what_was_found_and_its_verdict(study):
    summary, _, html = study
    for shown, check in zip(cells(html, "table_checks"), summary["checks"], strict=True):
        found = [float(value) if value else None for value, _ in shown[1:3]]
        wanted = [min(check["found"]), max(check["found"])] if check["found"] else [None, None]
        assert found == wanted
        assert (
            shown[3][1] == {True: "as expected", False: "not as expected", None: "undecided"}[check["passed"]]
        )
    assert summary["expected"] in html
    assert "1 point failed: width=64,seed=2." in html


def test_the_files_behind_the_columns_are_named(study):
    summary, _, html = study
    named = {row[0][1]: row[1][1] for row in cells(html, "table_columns")}
    assert named == summary["columns"]


def test_figures_are_in_the_page_and_on_disk(study):
    _, written, html = study
    assert [path.name for path in written] == ["study_1.png", "study_1.pdf", "report.html"]
    assert html.count("<svg") == 1
    assert html.count('download="study_1.') == 2


def test_long_names_and_small_numbers_have_room() -> None:
    """Names of points are not cut at the edge, and no power of ten lies on an axis label."""
    summary = study_summary()
    for row in summary["rows"]:
        row["run"] = "self_calibrating_large,goodness_toys=0,seed=1234567"
        if row["values"]:
            row["values"]["light"] *= 1e-5
    (figure, *_) = (made.figure for made in study_figures(StudySummary.model_validate(summary)))
    figure.canvas.draw()
    first = figure.axes[0]
    assert min(label.get_window_extent().x0 for label in first.get_yticklabels()) > 0
    assert not any(axes.xaxis.get_offset_text().get_text() for axes in figure.axes)


def test_what_would_be_needed_to_fake_the_shift_is_shown(study):
    _, _, html = study
    (row,) = cells(html, "table_faking")
    assert [text for _, text in row][-1] == "cannot"
    assert float(row[2][0]) == 7.5


def test_a_study_without_finished_points_says_so(tmp_path):
    summary = study_summary() | {"rows": [], "done": 0, "failed": 0, "checks": [], "as_expected": None}
    write_json(tmp_path / "summary.json", summary)
    (page,) = build_study_report(tmp_path)
    assert "No point is done yet." in page.read_text()
    assert "4 points are not done yet" in page.read_text()


def test_a_folder_without_summary_is_refused(tmp_path):
    with pytest.raises(DataError, match="no study to report"):
        build_study_report(tmp_path)


def test_a_damaged_summary_is_refused_with_its_field(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(study_summary() | {"points": "many"}))
    with pytest.raises(DataError, match="not in the promised format") as error:
        build_study_report(tmp_path)
    assert "points" in str(error.value)
