"""A few thousand jets through every verb of the command line, as a user would."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import correctionlib
import numpy as np
import pyhf
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import selfcal as selfcal_package
from bench.map_convergence import refit_map
from bench.refit import refit
from bench.replicas import Efficiencies, compare
from selfcal.config.loading import load_run
from selfcal.errors import ConfigError
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import SilentReporter
from selfcal.study.execution import context_of
from selfcal.transport.calibration import load_calibration
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.families import with_other_maps

SETTINGS = """
training: {epochs: 3, batch_size: 128}
tagger: {width: 32, layers: 2, feedforward_width: 64, latent: 32}
calibration:
  base_density: {steps: 80, hidden_width: 16, transforms: 2, batch_size: 256, learning_rate: 5.0e-3}
  composition: {steps: 60, batch_size: 128}
  map: {steps: 60, batch_size: 256, hidden_width: 16, learning_rate: 6.0e-3}
  joint: {epochs: 1, batch_size: 256}
  bootstraps: 2
  bootstrap_steps: 10
fit: {pt_gev_edges: [20, 60, 250]}
"""
LAUNCH = "import sys; from selfcal.cli.app import main; sys.exit(main())"
JETS = {"sim": 800, "data": 500, "truth": 500}


def selfcal(*words: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command; stands for what a user types."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"selfcal {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starter project whose datasets are cut to a few hundred jets."""
    folder = tmp_path_factory.mktemp("project")
    selfcal("init", "mine", folder=folder)
    project = folder / "mine"
    for path in (project / "data_cards").rglob("*.yaml"):
        card = yaml.safe_load(path.read_text())
        if "generate" in card:
            card["generate"]["jets"] = JETS[card["name"].partition("_")[0]]
            path.write_text(yaml.safe_dump(card))
    (project / "small.yaml").write_text(SETTINGS)
    return project


COMMON = ("--config", "configs/demo.yaml", "--config", "small.yaml", "--out", "run")


@pytest.fixture(scope="module")
def run(project: Path) -> Path:
    """Every stage by its own verb, in order."""
    planned = selfcal("run", *COMMON, "--dry-run", folder=project)
    assert "nothing was written" in planned.stdout
    assert not (project / "run").exists()
    refused = selfcal("fit", *COMMON, folder=project, code=2)
    assert "first" in refused.stderr
    for verb in ("generate", "validate", "train", "calibrate", "fit", "export", "report"):
        selfcal(verb, *COMMON, folder=project)
    return project / "run"


def test_every_promised_file_is_there(run: Path) -> None:
    for name in (
        "config.resolved.yaml",
        "provenance.json",
        "metrics.jsonl",
        "report.html",
        "results/scale_factors.json",
        "results/correctionlib.json",
        "results/workspace.json",
        "results/closure.json",
        "results/composition.json",
        "results/scale_factors_against_truth.json",
        "results/map/map.safetensors",
        "results/roc_before_after.safetensors",
        "checkpoints/tagger_final/model.safetensors",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.rglob("*.part"))
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pt"))


def test_a_refit_is_the_fit_of_the_run_and_less_freedom_is_more_precise(run: Path) -> None:
    written = json.loads((run / "results/scale_factors_against_truth.json").read_text())
    again, stiffer = refit(run), refit(run, ["fit.residual_slide={}"])
    assert again.comparison["rows_used"] == written["rows_used"]
    assert again.comparison["chi2"] == pytest.approx(written["chi2"], rel=1e-6)
    assert 0 <= again.covered <= 1
    for (total, systematic), (less, _) in zip(again.precision, stiffer.precision, strict=True):
        assert systematic < total
        assert less < total


def test_maps_with_more_steps_are_more_likely_and_the_run_is_left_alone(run: Path) -> None:
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    as_it_is, longer = refit_map(run), refit_map(run, ("calibration.map.steps=240",))
    assert longer.inside > as_it_is.inside
    assert longer.outside != as_it_is.outside
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
    for refused in ("calibration.map.fit_by=distance", "calibration.base_density.steps=7"):
        with pytest.raises(ConfigError, match="only maps that are fitted by likelihood"):
            refit_map(run, (refused,))


def test_replicas_beside_whole_fits_are_those_of_the_run(run: Path) -> None:
    """By the run's own file of maps; a whole fit of the same events ends elsewhere."""
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    found = compare(run, 2)
    context = context_of(load_run([run / "config.resolved.yaml"]), run, SilentReporter())
    calibration = load_calibration(run / "results" / "map")
    efficiencies = Efficiencies(context, calibration)
    nominal = efficiencies.of(calibration.nominal)
    assert found.names[0] == "b 85%"
    assert nominal[0] == pytest.approx(0.85, abs=0.1)
    for shift, maps in zip(found.replicas, calibration.replicas, strict=True):
        np.testing.assert_allclose(shift, efficiencies.of(maps) / nominal - 1, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found.whole).all()
    assert not np.allclose(found.whole, found.replicas)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(run, 99)


def test_the_fit_of_a_map_does_not_depend_on_where_it_is_done(run: Path, tmp_path: Path) -> None:
    """What the run's own process fitted comes back from its settings in another folder, to the last digit."""
    (folder,) = (run / "checkpoints" / "derivation").iterdir()
    derivation = Derivation.open(folder)
    again = with_other_maps(derivation, tmp_path, derivation.config)
    run_task(again, "mixture")
    found, expected = Derivation.open(again).mixture(), derivation.mixture()
    assert torch.equal(found.fractions, expected.fractions)
    for name, value in expected.maps.state_dict().items():
        assert torch.equal(found.maps.state_dict()[name], value)


def test_the_tutorial_runs_in_the_folder_of_the_project(run: Path, monkeypatch, capsys) -> None:
    """Its blocks one after the other, with every public name; what they find is what the run wrote."""
    page = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert {name for name in selfcal_package.__all__ if f"selfcal.{name}" not in "".join(blocks)} == set()
    (run.parent / "runs").mkdir()
    (run.parent / "runs" / "demo").symlink_to(run)
    monkeypatch.chdir(run.parent)
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block, found)
    written = selfcal_package.load_scores(run / "scores" / "sim_ttbar_emu.safetensors", "ttbar_emu")
    kept = np.isin(found["scores"].log_probability, written.log_probability).all(axis=1)  # those in range
    np.testing.assert_array_equal(found["scores"].log_probability[kept], written.log_probability)
    fit = json.loads((run / "results/fit.json").read_text())
    assert found["outcome"]["twice_nll"] == pytest.approx(fit["twice_nll"], abs=1e-6)
    assert found["efficiency"] != pytest.approx(0.77, abs=1e-4)
    assert "is the largest source" in capsys.readouterr().out


def test_scale_factors_are_finite_or_absent(run: Path) -> None:
    content = json.loads((run / "results/scale_factors.json").read_text())
    matrix = np.array(content["covariance"]["matrix"])
    assert np.linalg.eigvalsh(matrix).min() > -1e-9 * np.linalg.eigvalsh(matrix).max()
    for row in content["rows"]:
        if row["status"] == "unmeasured":
            assert row["value"] is None
            continue
        parts = [row["stat"], *row["syst"].values()]
        assert row["total"] == pytest.approx(np.sqrt(np.sum(np.square(parts))), rel=1e-6)
    assert {row["flavour"] for row in content["rows"] if row["value"] is not None} == {
        "b",
        "c",
        "light",
        "tau",
    }
    assert any(row["truth"] is not None for row in content["rows"])


EVALUATION = (
    "evaluation.families=[identity, flow]",
    "evaluation.references=[quantile_morphing, classifier_reweighting]",
    "evaluation.replicas=0",
    "evaluation.bootstraps=4",
    "evaluation.classifier_repeats=2",
    "evaluation.classifier_jets=200",
    "evaluation.workers=1",
)


def test_maps_side_by_side(run: Path, project: Path) -> None:
    """On a copy, where a second call measures nothing again; the report then shows the table."""
    shutil.copytree(run, project / "judged")
    words = [*COMMON[:-1], "judged", *(word for one in EVALUATION for word in ("--set", one))]
    text = selfcal("calibrate", *words, "--evaluate", folder=project).stdout
    assert "flow *" in text
    content = json.loads((project / "judged/results/evaluation.json").read_text())
    names = [one["name"] for one in content["candidates"]]
    assert names == ["identity", "flow", "quantile_morphing", "classifier_reweighting"]
    assert any(row["held_out"] for one in content["candidates"] for row in one["rows"])
    kept = project / "judged/results/evaluation/identity.json"
    before = kept.stat().st_mtime_ns
    selfcal("calibrate", *words, "--evaluate", folder=project)
    assert kept.stat().st_mtime_ns == before
    selfcal("report", *words, folder=project)
    assert "table_evaluation" in (project / "judged/report.html").read_text()


def test_closure_knows_the_held_out_region(run: Path) -> None:
    rows = json.loads((run / "results/closure.json").read_text())["rows"]
    assert {row["region"] for row in rows if row["held_out"]} == {"ttbar_ljets"}
    assert all(row["ratio_calibrated"] > 0 and row["error"] > 0 for row in rows)


def test_other_programs_open_the_outputs(run: Path) -> None:
    content = json.loads((run / "results/scale_factors.json").read_text())
    corrections = correctionlib.CorrectionSet.from_file(str(run / "results/correctionlib.json"))
    row = next(
        r
        for r in content["rows"]
        if (r["flavour"], r["kind"], r["working_point"]) == ("b", "working_point", 0.77)
    )
    pt_gev = sum(row["pt_gev"]) / 2
    value = corrections["SelfCal_comb"].evaluate("central", "77", 5, 0.5, pt_gev)
    assert value == pytest.approx(row["value"])
    with warnings.catch_warnings():
        # pyhf 0.7 uses a deprecated class of jsonschema.
        warnings.simplefilter("ignore", DeprecationWarning)
        workspace = pyhf.Workspace(json.loads((run / "results/workspace.json").read_text()))
        model = workspace.model(poi_name=None)
    fitted = json.loads((run / "results/fit.json").read_text())
    assert fitted["certificate"]["converged"] is True
    assert len(workspace.data(model)) > 0


def test_pseudo_data_files_carry_no_labels(run: Path) -> None:
    import h5py

    with h5py.File(run / "data/data_dijet.h5") as file:
        assert "HadronConeExclTruthLabelID" not in file["jets"].dtype.names
        assert "ftagTruthOriginLabel" not in file["tracks"].dtype.names
        assert "closure_truth" in file


def test_given_scores_give_the_scale_factors_of_the_tagger_that_wrote_them(run: Path, project: Path) -> None:
    files = sorted((run / "data").glob("*.h5"))
    selfcal("predict", "run", *(str(path) for path in files), "--out", "scored", folder=project)
    cards = []
    for path in sorted((project / "data_cards").rglob("*.yaml")):
        card = yaml.safe_load(path.read_text())
        if not (run / "data" / f"{card['name']}.h5").exists():
            continue
        del card["generate"]
        card |= {"files": [f"{card['name']}.h5"], "scores": {"tagger": "SelfCal"}}
        cards.append(f"given/{card['name']}.yaml")
        (project / "given").mkdir(exist_ok=True)
        (project / cards[-1]).write_text(yaml.safe_dump(card))
    order = [card["name"] for card in json.loads((run / "results/validation.json").read_text())["datasets"]]
    cards.sort(key=lambda name: order.index(Path(name).stem))
    configuration = yaml.safe_load((project / "small.yaml").read_text())
    configuration |= {
        "name": "given",
        "seed": yaml.safe_load((project / "configs/demo.yaml").read_text())["seed"],
        "data": {"cards": cards, "root": "scored"},
        "tagger": {"kind": "scores", "name": "SelfCal"},
    }
    del configuration["training"], configuration["calibration"]["joint"]
    configuration["fit"] = {
        **yaml.safe_load((project / "configs/demo.yaml").read_text()).get("fit", {}),
        **configuration["fit"],
    }
    (project / "given.yaml").write_text(yaml.safe_dump(configuration))
    selfcal("run", "given.yaml", "--out", "given-run", folder=project)
    assert not (project / "given-run/checkpoints/tagger").exists()
    expected, found = (
        json.loads((folder / "results/scale_factors.json").read_text())["rows"]
        for folder in (run, project / "given-run")
    )
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        assert one["status"] == other["status"]
        for key in ("value", "total"):
            assert (one[key] is None) == (other[key] is None)
            if one[key] is not None:
                assert other[key] == pytest.approx(one[key], rel=1e-6, abs=1e-6)


def test_a_second_run_does_nothing_and_says_so(run: Path, project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = selfcal("run", *COMMON, folder=project)
    assert "nothing to be done" in done.stdout + done.stderr
    changed = [p for p, t in before.items() if p.name != ".lock" and p.stat().st_mtime_ns != t]
    assert changed == []


@pytest.mark.fault(1, "calibration and bootstraps killed with -9, resumed bit-identical")
def test_calibration_killed_and_resumed_gives_the_same_numbers(run: Path, project: Path) -> None:
    """kill -9 in the middle of the derivation, once its first results are there."""
    copy = project / "again"
    shutil.copytree(run, copy)
    (copy / "stages/calibrate.json").unlink()
    shutil.rmtree(copy / "checkpoints/derivation")
    (copy / "results/map/map.safetensors").unlink()
    words = ("calibrate", *COMMON[:-1], "again")
    command = [sys.executable, "-c", LAUNCH, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list(copy.glob("checkpoints/derivation/*/densities.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (copy / "results/map/map.safetensors").exists()
    selfcal(*words, folder=project)
    for name in ("results/map/map.safetensors", "scores/data_dijet.safetensors"):
        resumed, undisturbed = load_file(copy / name), load_file(run / name)
        assert resumed.keys() == undisturbed.keys()
        assert all(np.array_equal(resumed[key], undisturbed[key]) for key in resumed), name


def test_damaged_input_gives_one_clear_error(run: Path, project: Path) -> None:
    card = project / "broken.yaml"
    damaged = project / "broken.h5"
    damaged.write_bytes((run / "data/data_dijet.h5").read_bytes()[:20_000])
    card.write_text("name: broken\nrole: data\nregion: dijet\nuse: validation\nfiles: [broken.h5]\n")
    done = selfcal("validate", "broken.yaml", folder=project, code=3)
    assert "broken.h5" in done.stdout + done.stderr


def test_studies_and_schemas(project: Path) -> None:
    assert "seeds" in selfcal("study", "list", folder=project).stdout
    schema = selfcal("schema", "run", folder=project).stdout
    assert "calibration" in json.loads(schema)["properties"]


STUDY_OF_ONE = """
name: one
description: The configuration of a run that is there.
base: [configs/demo.yaml, small.yaml]
cases: [{name: same, set: {}}]
until: calibrate
collect: {rows: composition_fitted.rows}
expected: what the run has said
"""


def test_a_calibration_taken_over_can_be_repeated_task_by_task(run: Path, project: Path) -> None:
    """Pseudo-experiments start from the derivation: maps alone would not do."""
    (project / "one.yaml").write_text(STUDY_OF_ONE)
    said = selfcal("study", "run", "one.yaml", "--from", "run", "--out", "one", folder=project)
    assert re.search("taken over from another run: .*calibrate", said.stdout + said.stderr)
    (point,) = (project / "one").glob("same*/")
    theirs, ours = (Derivation.of_run(RunDirectory(path)) for path in (run, point))
    assert {file.name for file in ours.folder.iterdir()} == {file.name for file in theirs.folder.iterdir()}
    assert torch.equal(ours.simulation.coordinates, theirs.simulation.coordinates)
    assert torch.equal(ours.mixture().fractions, theirs.mixture().fractions)
