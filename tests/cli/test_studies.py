"""``selfcal study`` on real runs that fail early: no training needed to see points isolated and resumed."""

from __future__ import annotations

import json

import pytest

STUDY = """
name: small
description: Two seeds.
base: run.yaml
axes: {data.root: [files, elsewhere]}
seeds: [1, 2]
collect: [validation.datasets]
expected: nothing
"""


@pytest.fixture
def study(project):
    """In one of the two places the files are missing; in the other there is too little to measure."""
    (project / "study.yaml").write_text(STUDY)
    return project


def test_list_shows_the_shipped_studies(selfcal):
    answer = selfcal("study", "list")
    assert answer.code == 0
    assert "seeds" in answer.out
    rows = json.loads(selfcal("study", "list", "--json").out)
    points = {row["name"]: row["points"] for row in rows}
    assert (points["seeds"], points["coverage"]) == (4, 1)


def test_dry_run_lists_points_and_writes_nothing(selfcal, study):
    answer = selfcal("study", "run", "study.yaml", "--dry-run", "--json")
    assert answer.code == 0, answer.err
    plan = json.loads(answer.out)
    assert [point["values"]["seed"] for point in plan["points"]] == [1, 2, 1, 2]
    assert not (study / "studies-out").exists()


def test_a_wrong_axis_is_found_before_anything_runs(selfcal, study):
    (study / "study.yaml").write_text(STUDY.replace("data.root: [files, elsewhere]", "tagger.widht: [32]"))
    answer = selfcal("study", "run", "study.yaml")
    assert answer.code == 2
    assert "did you mean 'width'?" in answer.err
    assert not (study / "studies-out").exists()


def test_failed_points_are_listed_and_the_exit_code_says_so(selfcal, study):
    (study / "study.yaml").write_text(STUDY.replace("[files, elsewhere]", "[nowhere, elsewhere]"))
    answer = selfcal("study", "run", "study.yaml", "--json")
    assert answer.code == 1
    assert "4 of 4 points failed" in answer.err
    summary = json.loads((study / "studies-out/small/summary.json").read_text())
    assert [row["error"].splitlines()[0] for row in summary["rows"]] == ["no file of dataset 'sim' found"] * 4
    assert selfcal("study", "resume", "study.yaml").code == 1


def test_resume_needs_a_study(selfcal, study):
    answer = selfcal("study", "resume", "study.yaml")
    assert answer.code == 2
    assert "no study to resume" in answer.err


def test_a_study_may_stop_after_a_stage(selfcal, study):
    (study / "study.yaml").write_text(
        "{name: small, description: d, base: run.yaml, seeds: [1], until: validate,\n"
        " collect: [validation.datasets], expected: nothing}\n"
    )
    answer = selfcal("study", "run", "study.yaml")
    assert answer.code == 0, answer.err
    stages = study / "studies-out/small/seed=1/stages"
    assert (stages / "validate.json").exists()
    assert not (stages / "train.json").exists()
    assert "report: studies-out/small/report.html" in answer.out
    assert "Study small" in (study / "studies-out/small/report.html").read_text()
    (study / "study.yaml").write_text((study / "study.yaml").read_text().replace("validate", "dream"))
    answer = selfcal("study", "run", "study.yaml")
    assert answer.code == 2
    assert "no stage 'dream'" in answer.err
