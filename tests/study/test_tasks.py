"""Tasks on real stages: what is shared is done once, what failed or changed is done again."""

from __future__ import annotations

import json
import shutil

import pytest

from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError
from selfcal.run.atomic import read_json
from selfcal.run.progress import SilentReporter
from selfcal.study.engine import plan_study, run_study
from selfcal.study.executors import in_process
from selfcal.study.points import Study
from selfcal.study.tasks import Store, run_task


def run(study, folder, assignments=()):
    """Run a study in this process; the store is beside the project."""
    store = Store(folder.parent / "store")
    planned = plan_study(study, store, (), assignments)
    return run_study(study, folder, store, planned, in_process(SilentReporter()), lambda text: None)


def test_stages_that_points_share_are_done_once(study_of, tmp_path):
    study = study_of(until="train", axes={"training.epochs": [1, 2]})
    store = Store(tmp_path / "store")
    planned = plan_study(study, store)
    shared, first, second = planned.tasks
    assert (shared.until, shared.parent) == ("validate", None)
    assert {first.parent, second.parent} == {shared.key}
    assert planned.keys == (first.key, second.key)
    outcomes = list(in_process(SilentReporter())(planned.tasks, store))
    assert [outcome.done for outcome in outcomes] == [("validate",), ("train",), ("train",)]
    results = [store.run(task.key) / "results" / "validation.json" for task in planned.tasks]
    assert len({path.stat().st_ino for path in results}) == 1


def test_a_second_study_computes_nothing_that_the_first_has(study_of, tmp_path):
    summary = run(study_of(until="train", axes={"training.epochs": [1]}), tmp_path / "one")
    wider = study_of(until="train", axes={"training.epochs": [1, 2]})
    again = run(wider, tmp_path / "two")
    assert [row["done"] for row in again["rows"]] == [[], ["train"]]
    assert again["rows"][0]["values"] == summary["rows"][0]["values"]
    assert again["rows"][0]["key"] == summary["rows"][0]["key"]


def test_a_run_from_elsewhere_lends_its_stages_and_collisions(study_of, tmp_path):
    study = study_of(until="train", seeds=[1, 2])
    run(study, tmp_path / "one" / "out")
    made = tmp_path / "one" / "store" / plan_study(study, Store(tmp_path / "one" / "store")).keys[0]
    lent = tmp_path / "runs" / "mine"
    shutil.copytree(made, lent)
    (lent / "cache" / "truth").mkdir(parents=True)
    (lent / "cache" / "truth" / "0.safetensors").write_text("collisions")
    store = Store(tmp_path / "two" / "store")
    store.include(lent)
    store.include(lent)
    assert [folder.path.resolve() for folder in store.runs()] == [lent]
    assert [row["done"] for row in run(study, tmp_path / "two" / "out")["rows"]] == [[], ["train"]]
    assert (store.collisions / "truth" / "0.safetensors").read_text() == "collisions"
    with pytest.raises(ConfigError, match="no run to take stages from"):
        store.include(tmp_path / "runs")


def test_a_key_depends_on_configuration_inputs_and_additions(study_of, project, tmp_path):
    store = Store(tmp_path / "store")

    def key(*assignments, **changes):
        return plan_study(study_of(**changes), store, (), assignments).keys[0]

    plain = key()
    assert key() == plain
    assert key("calibration.workers=3") == plain  # changes no number
    assert key("fit.goodness_toys=0") != plain
    assert key(until="validate") != plain
    assert key(coverage={"toys": 5}) != plain
    assert key(seeds=[2]) != plain
    assert key("data.bootstrap=1") != plain
    assert key("data.bootstrap=1", until="train") == key(until="train")  # trained on simulation alone
    assert key('data.changes.data.composition={"relative_uncertainty": 0.1}') != plain
    with open(project / "files" / "sim.h5", "ab") as handle:
        handle.write(b"\0")
    assert key() != plain


def test_points_with_other_data_and_the_same_simulation_have_one_training(study_of, project, tmp_path):
    """By what was done, and by the weights; with other simulation they are trained anew."""
    (project / "files" / "early.h5").write_bytes((project / "files" / "data.h5").read_bytes() + b"\0")
    study = study_of(until="train", axes={"data.changes.data.files": [["data.h5"], ["early.h5"]]})
    store = Store(tmp_path / "store")
    shared, first, second = plan_study(study, store).tasks
    assert shared.shared
    assert {first.parent, second.parent} == {shared.key}
    outcomes = list(in_process(SilentReporter())((shared, first, second), store))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert [outcome.done for outcome in outcomes] == [("validate", "train"), (), ("validate",)]
    weights = [next((store.run(t.key) / "checkpoints").rglob("*.safetensors")) for t in (first, second)]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino
    # The next study has the same simulation and a third sample: what is shared is there, wherever that is.
    (project / "files" / "early.h5").write_bytes((project / "files" / "data.h5").read_bytes() + b"\0\0")
    assert [row["done"] for row in run(study, tmp_path / "out")["rows"]] == [[], ["validate"]]
    with open(project / "files" / "sim.h5", "ab") as handle:
        handle.write(b"\0")
    assert [row["done"] for row in run(study, tmp_path / "out")["rows"]] == [[], ["validate"]]


@pytest.mark.fault(1, "a study that was killed goes on with what is missing")
def test_a_study_that_was_killed_goes_on_with_what_is_missing(study_of, tmp_path):
    study = study_of(until="train", seeds=[1, 2])
    whole = run(study, tmp_path / "out")
    killed = tmp_path / "store" / whole["rows"][1]["key"]
    record = json.loads((killed / "stages" / "train.json").read_text())
    (killed / "stages" / "train.json").write_text(json.dumps(record | {"fingerprint": None}))
    again = run(study, tmp_path / "out")
    assert [row["done"] for row in again["rows"]] == [[], ["train"]]
    assert [row["values"] for row in again["rows"]] == [row["values"] for row in whole["rows"]]


def test_a_failure_of_shared_stages_is_that_of_all_points_behind_them(study_of, project, tmp_path):
    (project / "files" / "sim.h5").write_bytes(b"no HDF5 at all")
    summary = run(study_of(until="train", axes={"training.epochs": [1, 2]}), tmp_path / "out")
    assert summary["failed"] == 2
    assert len({row["error"] for row in summary["rows"]}) == 1
    assert "sim.h5" in summary["rows"][0]["error"]


def test_a_worker_that_sees_other_files_is_refused(study_of, project, tmp_path):
    store = Store(tmp_path / "store")
    (task,) = plan_study(study_of(until="validate"), store).tasks
    with open(project / "files" / "sim.h5", "ab") as handle:
        handle.write(b"\0")
    assert "not what the study was planned with" in str(run_task(task, store).error)


def test_a_wrong_stage_or_key_is_found_when_planning(study_of, tmp_path):
    wrong = (({"until": "dream"}, "no stage"), ({"axes": {"tagger.widht": [1]}}, "unknown key"))
    for change, problem in wrong:
        with pytest.raises(ConfigError, match=problem):
            plan_study(study_of(**change), Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_runs_of_a_study_do_not_disturb_each_other(study_of, tmp_path):
    """Hard-linked outputs of one run survive that the other is made anew with another configuration."""
    study = study_of(until="train", seeds=[1])
    before = run(study, tmp_path / "out")
    directory = tmp_path / "store" / before["rows"][0]["key"]
    content = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    other = Study(StudyConfig.model_validate(study.config.model_dump() | {"seeds": [2]}), study.path)
    after = run(other, tmp_path / "other")
    copy = tmp_path / "store" / after["rows"][0]["key"]
    shared, own = (folder / "results" / "validation.json" for folder in (copy, directory))
    assert shared.stat().st_ino == own.stat().st_ino
    shutil.rmtree(copy)
    assert all(path.read_bytes() == text for path, text in content.items())
    assert read_json(directory / "results" / "tagger_metrics.json")
