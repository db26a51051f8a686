"""Tiny pseudo-experiments of a tiny run: the whole engine, what is exact in it, and what a stop costs."""

from __future__ import annotations

import os

import numpy as np
import pytest

from selfcal.config.loading import load_run, resolved_yaml
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS
from selfcal.config.study import PseudoExperimentsConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.hdf5 import write_jets
from selfcal.errors import DataError
from selfcal.run.atomic import read_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.stages import run_stages
from selfcal.study.pipeline import pipeline
from selfcal.study.pseudo_experiments import prepare, run_experiment
from selfcal.study.pseudo_stage import finished_run, run_pseudo_experiments
from tests.conftest import make_synthetic_jets

RUN = """
name: tiny
data: {cards: [sim.yaml, data.yaml]}
tagger: {kind: deep_sets, width: 16, latent: 16}
training: {epochs: 1}
inference: {enabled: true, chain_check: false}
calibration:
  base_density: {transforms: 1, hidden_width: 8, steps: 5}
  composition: {steps: 4}
  map: {hidden_width: 8, steps: 4}
  joint: {enabled: false}
  bootstraps: 2
  bootstrap_steps: 2
  workers: 1
fit:
  working_points: [0.6, 0.8]
  working_point_region: r
  pt_gev_edges: [20.0, 250.0]
  reference_regions: {b: r, c: r, light: r, tau: r}
  goodness_toys: 0
"""
TINY = PseudoExperimentsConfig(experiments=3, jets_per_region=600, steps=2, detectors=1, workers=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run finished up to its fit."""
    folder = tmp_path_factory.mktemp("run")
    for seed, (name, role) in enumerate((("sim", "simulation"), ("data", "data")), start=1):
        jets = make_synthetic_jets(6, jets=3000, seed=seed, dataset=name)
        write_jets(folder / f"{name}.h5", jets, labels=role == "simulation")
        prior = "composition: {}\n" if role == "data" else ""
        text = f"name: {name}\nrole: {role}\nregion: r\nfiles: [{name}.h5]\n{prior}"
        (folder / f"{name}.yaml").write_text(text)
    (folder / "run.yaml").write_text(RUN)
    loaded = load_run([str(folder / "run.yaml")])
    run = RunDirectory(folder / "out")
    context = RunContext(loaded.config, loaded.cards, run, card_folders=loaded.card_folders)
    with run.lock():
        write_text(run.resolved_config, resolved_yaml(loaded, run.path))
        run_stages(pipeline(context, "fit"), context)
    return run.path


@pytest.fixture(scope="module")
def laboratory(directory, tmp_path_factory):
    return prepare(finished_run(directory), TINY, tmp_path_factory.mktemp("scratch"), lambda text: None)


def test_an_experiment_is_its_index_alone(laboratory) -> None:
    first, again = (run_experiment(laboratory, 1) for _ in range(2))
    for one in (first, again):
        assert set(one.pop("seconds")) == {"detector", "scores", "composition and map", "likelihood"}
    assert first == again
    other = run_experiment(laboratory, 0)
    assert other["detector"][0]["truth"] != first["detector"][0]["truth"]
    assert [row["parameter"] for row in first["detector"]] == list(PARAMETERS)
    assert len(first["fractions"]) == len(FLAVOURS)
    assert sum(row["truth"] for row in first["fractions"]) == pytest.approx(1)
    for row in first["scale_factors"]:
        assert row["total"] > 0
        assert row["truth"] > 0


def test_the_population_under_nominal_parameters_is_the_simulation(laboratory) -> None:
    population = laboratory.populations["r"]
    some = np.arange(0, len(population), 7)
    part = population.log_probability(laboratory.bundle, NOMINAL, some)
    np.testing.assert_allclose(part[some], laboratory.nominal["r"][some], atol=1e-5)
    assert np.isnan(np.delete(part, some, axis=0)).all()


def test_a_stopped_study_continues_with_what_is_missing(directory) -> None:
    target = run_pseudo_experiments(directory, TINY)
    table = read_json(target)
    files = sorted((directory / "pseudo_experiments").glob("*/experiment_*.json"))
    assert [path.name for path in files] == [f"experiment_{i:04d}.json" for i in range(3)]
    assert table["summary"]["experiments"] + table["summary"]["failed"] == 3
    kept = read_json(files[1])
    before = os.stat(files[0]).st_mtime_ns
    files[1].unlink()
    run_pseudo_experiments(directory, TINY)
    anew = read_json(files[1])
    for one in (kept, anew):
        one.pop("seconds")
    assert anew == kept
    assert os.stat(files[0]).st_mtime_ns == before
    assert "68 %" in (directory / "results" / "pseudo_experiments.txt").read_text()


def test_processes_share_the_experiments_and_change_no_number(directory) -> None:
    alone = read_json(run_pseudo_experiments(directory, TINY))
    files = sorted((directory / "pseudo_experiments").glob("*/experiment_*.json"))
    for path in files:
        path.unlink()
    said: list[str] = []
    shared = read_json(run_pseudo_experiments(directory, TINY.model_copy(update={"workers": 2}), said.append))
    assert sorted((directory / "pseudo_experiments").glob("*/experiment_*.json")) == files
    for table in (alone, shared):
        table.pop("seconds")
    assert shared == alone
    assert "3 of 3 done" in said[-1]


def test_a_run_without_a_fit_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        run_pseudo_experiments(tmp_path, TINY)
