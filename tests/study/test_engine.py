"""Studies: every point once, failures isolated, numbers collected."""

from __future__ import annotations

import json

import pytest

from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError, DataError, FitError, Interrupted
from selfcal.run.atomic import write_json
from selfcal.study.engine import Point, Study, collected, load_study, render_summary, run_study, study_points

STUDY = {
    "name": "width",
    "description": "d",
    "base": "run.yaml",
    "axes": {"tagger.width": [32, 64], "data.root": ["a", "b c"]},
    "seeds": [1, 2],
    "collect": ["closure.summary.chi2"],
    "expected": "less is more",
}


@pytest.fixture
def study(tmp_path):
    return Study(StudyConfig.model_validate(STUDY), tmp_path / "study.yaml")


class Runner:
    """Stands for the pipeline: writes a result, or fails, by assignment."""

    def __init__(self, failing=None, error=None):
        self.calls, self.failing, self.error = [], failing, error or FitError("no minimum")

    def __call__(self, assignments, directory):
        self.calls.append(assignments)
        if self.failing and self.failing in assignments:
            raise self.error
        write_json(directory / "results" / "closure.json", {"summary": {"chi2": float(len(self.calls))}})


def test_points_are_the_product_and_the_seed_varies_fastest(study):
    points = [point.values for point in study_points(study)]
    assert len(points) == 8
    assert points[:3] == [
        {"tagger.width": 32, "data.root": "a", "seed": 1},
        {"tagger.width": 32, "data.root": "a", "seed": 2},
        {"tagger.width": 32, "data.root": "b c", "seed": 1},
    ]
    assert Point(points[0]).assignments == ("tagger.width=32", 'data.root="a"', "seed=1")


def test_labels_are_distinct_and_safe_folder_names(study):
    values = [{"a.x": 1, "b.x": 2}, {"a.x": 2, "b.x": 1}, {"a": "../../etc"}, {"a": [1, 2]}, {"a": "x" * 300}]
    labels = [point.label for point in (*study_points(study), *map(Point, values))]
    assert len(set(labels)) == len(labels)
    assert all("/" not in label and not label.startswith(".") and len(label) <= 80 for label in labels)
    assert Point({"tagger.width": 32, "seed": 1}).label == "width=32,seed=1"


def test_one_failing_point_does_not_take_the_others_with_it(study, tmp_path):
    runner = Runner("tagger.width=64")
    said = []
    summary = run_study(study, tmp_path / "out", runner, said.append)
    assert len(runner.calls) == 8
    assert (summary["done"], summary["failed"]) == (8, 4)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    for row in summary["rows"]:
        if row["point"]["tagger.width"] == 64:
            assert row["error"] == "no minimum"
            assert row["values"] is None
        else:
            assert row["error"] is None
            assert row["values"]["closure.summary.chi2"] > 0
    assert "failed: no minimum" in render_summary(summary)
    assert "expected: less is more" in render_summary(summary)


def test_a_number_is_shown_with_its_error():
    values = {
        "m.light_70": 281.25,
        "m.light_70_error": 12.34,
        "m.odd_error": 2.0,
        "m.c_70": None,
        "m.c_70_error": None,
    }
    row = {"run": "a", "point": {}, "values": values, "error": None}
    header, line, _ = render_summary({"rows": [row], "expected": "x"}).splitlines()
    assert header.split() == ["point", "light_70", "odd_error", "c_70"]
    assert line.split() == ["a", "281.2", "±", "12.3", "2", "None"]


def test_unexpected_errors_are_isolated_too_but_an_interruption_is_not(study, tmp_path):
    summary = run_study(study, tmp_path / "out", Runner("seed=1", ZeroDivisionError("x")), print)
    assert summary["failed"] == 4
    assert summary["rows"][0]["error"] == "unexpected ZeroDivisionError: x"
    runner = Runner("seed=2", Interrupted("stop"))
    with pytest.raises(Interrupted):
        run_study(study, tmp_path / "out", runner, print)
    assert len(runner.calls) == 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["done"] == 1


def test_collected_numbers_and_missing_ones(tmp_path):
    write_json(tmp_path / "a.json", {"x": {"y": [1, {"z": 2.5}]}})
    assert collected(tmp_path, ("a.x.y.1.z", "a.x.y.0")) == {"a.x.y.1.z": 2.5, "a.x.y.0": 1}
    for key in ("a.x.n", "a.x.y.2", "b.x"):
        with pytest.raises(DataError):
            collected(tmp_path, (key,))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"axes": {"seed": [1, 2]}}, "no axis"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": []}, "at least 1 item"),
        ({"axes": {"a.b": []}}, "at least 1 item"),
        ({"collect": ["closure"]}, "match pattern"),
    ],
)
def test_wrong_studies_are_refused(tmp_path, change, problem):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY | change))
    with pytest.raises(ConfigError) as caught:
        load_study(str(path))
    assert problem in str(caught.value)
    assert "study.yaml, line 1" in str(caught.value)


def test_shipped_study_and_its_base_are_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study("seeds")
    assert study.config.seeds == (1, 2, 3, 4)
    assert study.base.endswith("configs/demo.yaml")
    with pytest.raises(ConfigError, match="no such study"):
        load_study("nothing")
