"""The stage of the profile likelihood: what it writes, and how it goes on after a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.run import RunConfig
from selfcal.likelihood import profile_stage
from selfcal.likelihood.neural_profile import load_profile
from selfcal.likelihood.profile_stage import run_profile
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import templates_json
from selfcal.run.atomic import read_arrays, read_json, write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.study.pipeline import pipeline

PROFILE = {"enabled": True, "flavours": ["b", "c"], "points": 30, "test_points": 10, "width": 8, "steps": 30}


@pytest.fixture
def context(tmp_path, small_world) -> RunContext:
    """A run whose fit is done."""
    config = RunConfig.model_validate({"name": "r", "data": {"cards": ["x"]}, "neural_profile": PROFILE})
    context = RunContext(config, (), RunDirectory(tmp_path / "run"))
    blinded = measure(small_world.templates, config.fit, blind=True).templates
    write_json(context.directory.results / "templates.json", templates_json(blinded))
    write_json(context.directory.results / "scale_factors.json", {"blinded": True})
    return context


def test_table_network_and_points_and_only_missing_points_are_found_again(context, small_world, monkeypatch):
    written = run_profile(context)
    assert all(path.is_file() for path in written)
    table = read_json(context.directory.results / "profile_likelihood.json")
    factors = measure(small_world.templates, context.config.fit, blind=True).factors
    for entry in table["inputs"]:
        row = factors.rows[entry["row"]]
        assert (row.flavour, row.working_point) == (entry["flavour"], 0.77)
        place = factors.measured.tolist().index(entry["row"])
        assert entry["best_fit"] == pytest.approx(factors.value[place], rel=1e-6)
        sigma = np.sqrt(factors.covariance[place, place])
        assert entry["uncertainty"] == pytest.approx(sigma, rel=0.03)
    assert [entry["flavour"] for entry in table["inputs"]] == ["b", "c"]
    assert table["blinded"] is True
    assert table["accuracy"]["points"] + table["accuracy"]["beyond"] + table["accuracy"]["unreached"] == 10
    network = load_profile(context.directory.results / "profile_likelihood.safetensors")
    best = torch.tensor([[entry["best_fit"] for entry in table["inputs"]]], dtype=torch.float64)
    assert float(network(best).detach()) == pytest.approx(0, abs=1e-20)

    folder = context.directory.checkpoints / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "judged_0.safetensors",
        "taught_0.safetensors",
        "taught_1.safetensors",
    ]
    before = read_arrays(folder / "taught_1.safetensors")
    (folder / "taught_1.safetensors").unlink()
    sizes: list[int] = []

    def counting(target, values):
        sizes.append(len(values))
        return original(target, values)

    original = profile_stage.exact_profile
    monkeypatch.setattr(profile_stage, "exact_profile", counting)
    run_profile(context)
    assert sizes == [5]
    again = read_arrays(folder / "taught_1.safetensors")
    assert {name: values.tolist() for name, values in again.items()} == {
        name: values.tolist() for name, values in before.items()
    }
    assert read_json(context.directory.results / "profile_likelihood.json") == table


def test_the_stage_is_off_by_default_and_stands_before_the_export(context):
    names = [stage.name for stage in pipeline(context)]
    assert names.index("fit") < names.index("profile") < names.index("export")
    other = RunConfig.model_validate({"name": "r", "data": {"cards": ["x"]}})
    assert "profile" not in [stage.name for stage in pipeline(RunContext(other, (), context.directory))]


def test_a_damaged_piece_counts_as_missing(tmp_path):
    path = tmp_path / "piece.safetensors"
    assert profile_stage.finished_piece(path, "key") is None
    arrays = {"values": np.ones((1, 2)), "rise": np.ones(1), "gradient": np.ones((1, 2))}
    arrays["converged"] = np.ones(1, dtype=bool)
    assert tuple(arrays) == profile_stage.PIECE_ARRAYS
    write_arrays(path, arrays, {"key": "key"})
    assert profile_stage.finished_piece(path, "key") is not None
    assert profile_stage.finished_piece(path, "other") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert profile_stage.finished_piece(path, "key") is None
