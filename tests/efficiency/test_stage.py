"""The stage: from scores and files to tables and networks, again after a kill, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.run import RunConfig
from selfcal.data.hdf5 import write_jets
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.score_files import load_scores, save_scores, scores_path
from selfcal.data.scored import ScoredJets
from selfcal.efficiency import stage
from selfcal.efficiency.prediction import load_efficiencies
from selfcal.efficiency.stage import FOLDER, run_efficiencies
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.study.pipeline import pipeline
from selfcal.tagger.scoring import JetScores
from selfcal.training.scores_stage import scored

EDGES = (0.5, 2.0)
MAP = {"enabled": True, "bags": 2, "epochs": 2, "width": 8, "layers": 1, "closure_share": 0.4}


@pytest.fixture
def make_context(tmp_path, make_jets):
    """``make_context(phi=True, **changes)``: a control region and a held-out one, scored, and edges."""

    def make(*, phi: bool = True, **changes) -> RunContext:
        config = RunConfig.model_validate(
            {"name": "r", "data": {"cards": ["x"]}, "efficiency_map": {**MAP, **changes}}
        )
        cards = [
            DataCard(name=f"sim_{use}", role="simulation", region=use, use=use, files=(f"{use}.h5",))
            for use in ("control", "validation")
        ]
        context = RunContext(config, tuple(cards), RunDirectory(tmp_path / "run"), data_root=tmp_path)
        for seed, card in enumerate(cards):
            jets = make_jets(2, jets=1500, seed=seed, dataset=card.name)
            if phi:
                angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(jets)).astype(np.float32)
                jets = replace(jets, phi=angles)
            write_jets(tmp_path / f"{card.use}.h5", jets, labels=True)
            save_scores(scores_path(context, card), scores_of_jets(jets, card.region))
        factors = {"discriminant_edges": list(EDGES), "working_points": [0.85, 0.6]}
        write_json(context.directory.results / "scale_factors.json", factors)
        return context

    return make


def scores_of_jets(jets, region: str) -> ScoredJets:
    def scorer(part) -> JetScores:
        logits = np.random.default_rng(3).normal(size=(len(part), 4))
        logits[np.arange(len(part)), part.flavour] += 1.5
        return JetScores(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    return scored(scorer, [jets], region, (0.5, 0.2, 0.3), labelled=True)


def test_tables_are_of_jets_that_taught_neither_tagger_nor_judge(make_context):
    context = make_context()
    written = run_efficiencies(context)
    assert all(path.is_file() for path in written)
    table = read_json(context.directory.results / "efficiency_map.json")
    closure = read_json(context.directory.results / "efficiency_closure.json")
    scores = {card.use: card_scores(context, card) for card in context.cards}
    untrained = int((scores["control"].fold > 0).sum())
    judged = {
        region: sum(
            row["jets"]
            for row in closure["rows"]
            if row["region"] == region and row["variable"] == "delta_r" and row["working_point"] == 0.85
        )
        for region in ("control", "validation")
    }
    assert table["learning_jets"] + judged["control"] == untrained
    assert judged["validation"] == len(scores["validation"])
    assert {row["region"]: row["held_out"] for row in closure["rows"]} == {
        "control": False,
        "validation": True,
    }
    assert sum(row["jets"] for row in table["rows"] if row["working_point"] == 0.6) == table["learning_jets"]
    for row in table["rows"]:
        assert (row["value"] is None) == (row["jets"] == 0)
        if row["value"] is not None:
            assert 0 <= row["value"] <= 1
            assert row["uncertainty"] > 0
    learnt = load_efficiencies(context.directory.results / FOLDER)
    assert (learnt.working_points, learnt.discriminant_edges) == ((0.85, 0.6), EDGES)


def card_scores(context: RunContext, card: DataCard) -> ScoredJets:
    return load_scores(scores_path(context, card), card.region)


def test_a_killed_stage_goes_on_with_the_bags_that_are_missing(make_context, monkeypatch):
    context = make_context()
    run_efficiencies(context)
    folder = context.directory.checkpoints / FOLDER
    before = contents(folder)
    (folder / "bag_1.safetensors").unlink()
    learnt: list[int] = []

    def counting(jets, shape, config, seed):
        learnt.append(seed)
        return original(jets, shape, config, seed)

    original = stage.learn_bag
    monkeypatch.setattr(stage, "learn_bag", counting)
    run_efficiencies(context)
    assert len(learnt) == 1
    assert contents(folder) == before
    # Another seed or another radius is another bag; a damaged file is no bag at all.
    damaged = bytearray((folder / "bag_0.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "bag_0.safetensors").write_bytes(bytes(damaged))
    run_efficiencies(context)
    assert len(learnt) == 2
    assert contents(folder) == before
    run_efficiencies(make_context(delta_r_max=1.0))
    assert len(learnt) == 4


def contents(folder: Path) -> dict[str, dict[str, list]]:
    """The numbers of every bag."""
    return {
        path.name: {name: values.tolist() for name, values in read_arrays(path).items()}
        for path in folder.iterdir()
    }


def test_files_without_directions_are_refused(make_context):
    with pytest.raises(DataError, match="no φ"):
        run_efficiencies(make_context(phi=False))


def test_the_number_of_jets_in_memory_is_bounded_by_whole_events(make_context):
    context = make_context(jets_max=600)
    run_efficiencies(context)
    table = read_json(context.directory.results / "efficiency_map.json")
    assert 0 < table["learning_jets"] < 600
    assert table["learning_jets"] > table["learning_events"]


def test_the_stage_is_off_by_default_and_stands_before_the_export(make_context):
    names = [stage.name for stage in pipeline(make_context())]
    assert names.index("fit") < names.index("efficiencies") < names.index("export")
    assert "efficiencies" not in [stage.name for stage in pipeline(make_context(enabled=False))]


def test_edges_that_do_not_increase_are_refused():
    with pytest.raises(ValueError, match="that increase"):
        RunConfig.model_validate(
            {"name": "r", "data": {"cards": ["x"]}, "efficiency_map": {"pt_gev_edges": [30, 20]}}
        )


def test_a_native_file_keeps_the_direction(tmp_path: Path, make_jets):
    jets = make_jets(2, jets=20)
    write_jets(tmp_path / "without.h5", jets, labels=True)
    assert read_jets(tmp_path / "without.h5", "d").phi is None
    angles = np.linspace(-3, 3, 20, dtype=np.float32)
    write_jets(tmp_path / "with.h5", replace(jets, phi=angles), labels=True)
    read = read_jets(tmp_path / "with.h5", "d")
    np.testing.assert_allclose(read.phi, angles, atol=1e-6)
    np.testing.assert_allclose(read.select(np.array([3, 1])).phi, angles[[3, 1]], atol=1e-6)
