"""Studies: failures isolated, summary and links written after every point, expectations judged."""

from __future__ import annotations

import json

import pytest

from selfcal.config.study import StudyConfig
from selfcal.errors import Interrupted
from selfcal.run.atomic import write_json
from selfcal.study.engine import run_study
from selfcal.study.points import Study, study_points
from selfcal.study.tables import render_summary
from selfcal.study.tasks import Outcome, Plan, Store, Task

STUDY = {
    "name": "width",
    "description": "d",
    "base": "run.yaml",
    "axes": {"tagger.width": [32, 64]},
    "seeds": [1, 2],
    "collect": ["closure.summary.chi2"],
    "checks": [{"value": "closure.summary.chi2", "max": 100}],
    "expected": "less is more",
}


@pytest.fixture
def study(tmp_path):
    return Study(StudyConfig.model_validate(STUDY), tmp_path / "study.yaml")


def planned(study, same=False):
    """One task per point; with ``same`` all points are one and the same task."""
    points = study_points(study.config)
    keys = ["k0" if same else f"k{number}" for number in range(len(points))]
    tasks = {
        key: Task(key, ("run.yaml",), point.assignments) for key, point in zip(keys, points, strict=True)
    }
    return Plan(tuple(tasks.values()), tuple(keys), (None,) * len(points))


def executor(failing="", interrupted=""):
    """Stands for the stages of a run: writes a result, or fails, by assignment."""

    def execute(tasks, store):
        for number, task in enumerate(tasks):
            if interrupted in task.assignments:
                raise Interrupted("stop")
            if failing in task.assignments:
                yield Outcome(task.key, "no minimum")
                continue
            write_json(store.run(task.key) / "results" / "closure.json", {"summary": {"chi2": float(number)}})
            yield Outcome(task.key, None, ("fit",))

    return execute


def run(study, tmp_path, execute, same=False):
    store = Store(tmp_path / "store")
    return run_study(study, tmp_path / "out", store, planned(study, same), execute, lambda text: None)


def test_one_failing_point_does_not_take_the_others_with_it(study, tmp_path):
    summary = run(study, tmp_path, executor(failing="tagger.width=64"))
    assert (summary["done"], summary["failed"], summary["as_expected"]) == (4, 2, None)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    for row in summary["rows"]:
        failed = row["point"]["tagger.width"] == 64
        assert row["error"] == ("no minimum" if failed else None)
        assert (row["values"] is None) == failed
    text = render_summary(summary)
    assert "failed: no minimum" in text
    assert "expected: less is more" in text
    assert "undecided: every closure.summary.chi2 ≤ 100" in text


def test_expectations_are_said(study, tmp_path):
    summary = run(study, tmp_path, executor())
    assert summary["as_expected"] is True
    assert "as expected: every closure.summary.chi2 ≤ 100: found 0 … 3" in render_summary(summary)
    strict = STUDY | {"checks": [{"value": "closure.summary.chi2", "max": 2.5}]}
    again = run(Study(StudyConfig.model_validate(strict), study.path), tmp_path, executor())
    assert again["as_expected"] is False
    assert "NOT AS EXPECTED" in render_summary(again)


def test_points_of_one_task_share_its_run(study, tmp_path):
    summary = run(study, tmp_path, executor(), same=True)
    assert {row["values"]["closure.summary.chi2"] for row in summary["rows"]} == {0.0}
    links = [tmp_path / "out" / point.label for point in study_points(study.config)]
    assert {link.resolve() for link in links} == {(tmp_path / "store" / "k0").resolve()}
    assert not any(str(link.readlink()).startswith("/") for link in links)


def test_what_was_done_before_an_interruption_is_kept(study, tmp_path):
    with pytest.raises(Interrupted):
        run(study, tmp_path, executor(interrupted="seed=2"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["done"] == 1


def test_a_point_whose_result_is_missing_has_failed(study, tmp_path):
    summary = run(study, tmp_path, lambda tasks, store: (Outcome(task.key) for task in tasks))
    assert summary["failed"] == 4
    assert "file not found" in summary["rows"][0]["error"]


def test_a_number_is_shown_with_its_error_and_several_as_their_range():
    values = {
        "m.light_70": 281.25,
        "m.light_70_error": 12.34,
        "m.odd_error": 2.0,
        "m.c_70": None,
        "m.c_70_error": None,
        "m.rows": [0.5, None, 0.25],
    }
    row = {"run": "a", "point": {}, "values": values, "error": None}
    header, line, _ = render_summary({"rows": [row], "expected": "x"}).splitlines()
    assert header.split() == ["point", "light_70", "odd_error", "c_70", "rows"]
    assert line.split() == ["a", "281.2", "±", "12.3", "2", "None", "0.25", "…", "0.5"]
