"""Study files: the points of grids, cases and seeds, and what is refused."""

from __future__ import annotations

import json

import pytest

from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError
from selfcal.study.points import Point, load_study, study_points

STUDY = {
    "name": "width",
    "description": "d",
    "base": "run.yaml",
    "axes": {"tagger.width": [32, 64], "data.root": ["a", "b c"]},
    "seeds": [1, 2],
    "collect": ["closure.summary.chi2"],
    "expected": "less is more",
}


CASES = [
    {"name": "low", "set": {"a.b": 1, "a.c": 2}, "at": 0.5},
    {"name": "high", "set": {"a.b": 3}, "at": 2},
]


@pytest.fixture
def study():
    return StudyConfig.model_validate(STUDY)


def test_points_are_the_product_and_the_seed_varies_fastest(study):
    points = [point.values for point in study_points(study)]
    assert len(points) == 8
    assert points[:3] == [
        {"tagger.width": 32, "data.root": "a", "seed": 1},
        {"tagger.width": 32, "data.root": "a", "seed": 2},
        {"tagger.width": 32, "data.root": "b c", "seed": 1},
    ]
    assert Point(points[0]).assignments == ("tagger.width=32", 'data.root="a"', "seed=1")


def test_cases_are_named_points_on_top_of_the_grid(study):
    config = StudyConfig.model_validate(
        STUDY | {"axes": {"tagger.width": [32]}, "seeds": [7], "cases": CASES}
    )
    first, second = study_points(config)
    assert first.identity == {"case": "low", "tagger.width": 32, "seed": 7}
    assert first.assignments == ("a.b=1", "a.c=2", "tagger.width=32", "seed=7")
    assert (first.label, second.label) == ("low,width=32,seed=7", "high,width=32,seed=7")


def test_bootstraps_are_done_beside_the_data_as_they_are(study):
    config = StudyConfig.model_validate(STUDY | {"axes": {}, "seeds": [3], "bootstraps": 2})
    assert [point.assignments for point in study_points(config)] == [
        (f"data.bootstrap={number}", "seed=3") for number in (0, 1, 2)
    ]


def test_labels_are_distinct_and_safe_folder_names(study):
    values = [{"a.x": 1, "b.x": 2}, {"a.x": 2, "b.x": 1}, {"a": "../../etc"}, {"a": [1, 2]}, {"a": "x" * 300}]
    labels = [point.label for point in (*study_points(study), *map(Point, values))]
    assert len(set(labels)) == len(labels)
    assert all("/" not in label and not label.startswith(".") and len(label) <= 80 for label in labels)
    assert Point({"tagger.width": 32, "seed": 1}).label == "width=32,seed=1"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"axes": {"seed": [1, 2]}}, "no axis"),
        ({"seeds": [1, 1]}, "twice"),
        ({"axes": {"data.bootstrap": [1]}}, "no axis"),
        ({"seeds": []}, "at least 1 item"),
        ({"axes": {"a.b": []}}, "at least 1 item"),
        ({"collect": ["closure"]}, "match pattern"),
        ({"cases": [CASES[0], CASES[0]]}, "twice"),
        ({"cases": CASES, "axes": {"a.b": [1]}}, "both set ['a.b']"),
        ({"checks": [{"value": "closure.other", "min": 0}]}, "not among 'collect'"),
        ({"checks": [{"value": "closure.summary.chi2"}]}, "'min', 'max' or both"),
        ({"checks": [{"value": "closure.summary.chi2", "min": 0, "where": {"x": 1}}]}, "name ['x']"),
        ({"checks": [{"value": "closure.summary.chi2", "min": 0, "over": "slope"}]}, "'along'"),
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
    assert [name.endswith("configs/demo.yaml") for name in study.base] == [True]
    with pytest.raises(ConfigError, match="no such study"):
        load_study("nothing")
