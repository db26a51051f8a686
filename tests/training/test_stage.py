"""The train stage on files: what it reads, writes, and refuses; scores of all datasets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.card import DataCard
from selfcal.config.fit import FitConfig
from selfcal.config.run import DataConfig, RunConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.folds import Fold, fold_of
from selfcal.data.hdf5 import write_jets
from selfcal.data.samples import for_validation, read_card, training_fold
from selfcal.data.score_files import load_scores
from selfcal.data.scored import concatenate
from selfcal.errors import ConfigError, DataError
from selfcal.run.atomic import read_arrays
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.tagger.bundle import load_bundle
from selfcal.tagger.discriminants import discriminant_b, discriminant_of
from selfcal.tagger.scoring import score_jets
from selfcal.training.scores_stage import score_datasets, scorer_of
from selfcal.training.stage import prepare_training, run_train


@pytest.fixture
def context(make_jets, tmp_path):
    cards = []
    for seed, (name, role, use, region) in enumerate(
        [
            ("sim_a", "simulation", "control", "a"),
            ("sim_b", "simulation", "control", "b"),
            ("sim_v", "simulation", "validation", "v"),
            ("truth_a", "simulation", "truth", "a"),
            ("data_a", "data", "control", "a"),
        ]
    ):
        jets = make_jets(5, jets=900 if region == "a" else 300, seed=seed)
        pairs = np.arange(len(jets)) // 2
        jets = replace(jets, dataset=name, event=pairs, weight=np.linspace(0.01, 9, len(jets)))
        write_jets(tmp_path / f"{name}.h5", jets, labels=role == "simulation")
        composition = {"composition": {}} if role == "data" else {}
        cards.append(
            DataCard(name=name, role=role, region=region, use=use, files=(f"{name}.h5",), **composition)
        )
    config = RunConfig(
        name="test",
        data=DataConfig(cards=("unused.yaml",), pt_gev_min=30.0, pt_gev_max=200.0, abs_eta_max=2.0),
        tagger=TaggerConfig(width=16, layers=1, heads=2, feedforward_width=16, latent=8),
        training=TrainingConfig(epochs=4, batch_size=64, learning_rate=5e-3),
        fit=FitConfig(
            working_point_region="a",
            working_points=(0.6, 0.8),
            pt_gev_edges=(30.0, 200.0),
            abs_eta_edges=(0.0, 2.0),
        ),
    )
    return RunContext(config, tuple(cards), RunDirectory(tmp_path / "run"), data_root=tmp_path)


def test_jets_are_in_range_in_the_train_fold_and_of_weight_one(context):
    samples = training_fold(context)
    assert [jets.dataset for jets in samples] == ["sim_a", "sim_b"]
    for jets in samples:
        assert (jets.pt_gev >= 30).all()
        assert (jets.pt_gev < 200).all()
        assert (jets.abs_eta < 2).all()
        assert (fold_of(jets, context.config.data.simulation_folds) == Fold.TRAIN).all()
        assert (jets.weight == 1).all()


def test_validation_takes_whole_events_of_about_the_fraction(make_jets):
    jets = make_jets([1] * 8000)
    jets = replace(jets, event=np.arange(8000) // 2)
    taken = for_validation(jets, 0.2)
    np.testing.assert_array_equal(taken[0::2], taken[1::2])
    assert taken.mean() == pytest.approx(0.2, abs=0.03)


def test_outputs_say_what_the_saved_tagger_does(context):
    written = run_train(context)
    assert all(path.is_file() for path in written)
    bundle = load_bundle(context.directory.checkpoints / "tagger")
    metrics = json.loads((context.directory.results / "tagger_metrics.json").read_text())
    assert [row["working_point"] for row in metrics["working_points"]] == [0.6, 0.8]
    card = context.cards[0]
    (jets,) = read_card(context, card)
    jets = jets.select(fold_of(jets, context.config.data.simulation_folds) == Fold.MEASURE)
    discriminant = discriminant_b(score_jets(bundle, jets).log_probability)
    signal = jets.flavour == B
    for row in metrics["working_points"]:
        passed = discriminant >= row["threshold"]
        assert row["b"]["efficiency"] == pytest.approx(passed[signal].mean())
        assert passed[signal].mean() == pytest.approx(row["working_point"], abs=1.01 / signal.sum())
        assert row["light"]["efficiency"] == pytest.approx(passed[jets.flavour == 2].mean())
    for name, region in (("c", "a"), ("tau", "a")):
        other = metrics["other_discriminants"][name]
        assert other["region"] == region
        points = getattr(context.config.tagger, {"c": "charm", "tau": "tau"}[name]).working_points
        values = discriminant_of(name, score_jets(bundle, jets).log_probability, context.config.tagger)
        mine = jets.flavour == FLAVOURS.index(name)
        assert [row["working_point"] for row in other["working_points"]] == list(points)
        for row in other["working_points"]:
            assert row[name]["efficiency"] == pytest.approx((values >= row["threshold"])[mine].mean())
            assert row["light"]["rejection_bootstrap_error"] is None or row["light"]["rejection"] > 0
    assert metrics["table"]["light_60"] == metrics["working_points"][0]["light"]["rejection"]
    speed = json.loads((context.directory.results / "tagger_speed.json").read_text())
    assert min(speed["train_jets_per_cpu_second"], speed["score_jets_per_cpu_second"]) > 0
    curves = read_arrays(context.directory.results / "roc.safetensors")
    assert {name.rsplit("_", 1)[0] for name in curves} == {"c", "light", "tau"}
    assert (np.diff(curves["light_background"]) >= 0).all()
    assert metrics["summary"]["auc_b_light"] > 0.9


def trained(context, name, tmp_path, **changes):
    """Weights of a training with other settings, and the jets that it kept aside."""
    training = context.config.training.model_copy(update={"epochs": 1, **changes})
    config = context.config.model_copy(update={"training": training})
    other = RunContext(config, context.cards, RunDirectory(tmp_path / name), data_root=tmp_path)
    run_train(other)
    bundle = load_bundle(other.directory.checkpoints / "tagger")
    return bundle.model.state_dict(), prepare_training(other).validation.jet


def test_a_seed_of_the_training_draws_other_weights_with_the_same_jets(context, tmp_path):
    own, kept = trained(context, "own", tmp_path)
    same, _ = trained(context, "same", tmp_path, seed=context.config.seed)
    other, kept_by_other = trained(context, "other", tmp_path, seed=context.config.seed + 1)
    assert all(torch.equal(own[name], value) for name, value in same.items())
    assert not torch.equal(own["flavour.weight"], other["flavour.weight"])
    assert torch.equal(kept, kept_by_other)


def test_the_training_sees_other_detectors_where_asked_to(context, tmp_path):
    """On files: every configuration of them is another training, and the same again when repeated."""
    settings = (
        {},
        {"vary_detector": True},
        {"vary_detector": True, "consistency_weight": 3.0},
        {"contrastive_epochs": 1},
        {"contrastive_epochs": 1},
    )
    found = [
        trained(context, f"run {place}", tmp_path, **changes)[0]["flavour.weight"]
        for place, changes in enumerate(settings)
    ]
    for place in range(1, 4):
        assert not any(torch.equal(found[place], before) for before in found[:place])
    assert torch.equal(found[3], found[4])


def test_only_simulation_keeps_its_labels(context):
    run_train(context)
    bundle = load_bundle(context.directory.checkpoints / "tagger")
    paths = score_datasets(context, scorer_of(bundle))
    assert [path.stem for path in paths] == [card.name for card in context.cards]
    for path, card in zip(paths, context.cards, strict=True):
        labelled = card.role == "simulation"
        scored = load_scores(path, card.region)
        (jets,) = read_card(context, card)
        np.testing.assert_array_equal(scored.flavour, jets.flavour)
        assert (scored.flavour >= 0).all() == labelled
        assert (scored.flavour < 0).all() == (not labelled)
        np.testing.assert_array_equal(scored.pt_gev, jets.pt_gev)
        np.testing.assert_array_equal(np.unique(scored.event), np.arange(len(np.unique(jets.event))))
        expected = fold_of(jets, context.config.data.folds_for(card.role))
        np.testing.assert_array_equal(scored.fold, expected)


def test_the_regressed_pt_reaches_metrics_and_scores(context, make_jets, tmp_path):
    """True pT of b jets is larger than measured, of light ones smaller: the flavour tells."""
    factor = np.exp([0.3, 0.1, -0.2, -0.1])
    for seed, name in enumerate(("sim_a", "sim_b")):
        jets = replace(make_jets(5, jets=900, seed=seed), dataset=name)
        true = {"ptTruth": (1000.0 * jets.pt_gev * factor[jets.flavour]).astype(np.float32)}
        write_jets(tmp_path / f"{name}.h5", jets, labels=True, jet_fields=true)
    tagger = context.config.tagger.model_copy(update={"regress_pt": True})
    context = replace(context, config=context.config.model_copy(update={"tagger": tagger}))
    run_train(context)
    metrics = json.loads((context.directory.results / "tagger_metrics.json").read_text())
    rows = {row["flavour"]: row for row in metrics["response"]}
    for flavour, wanted in zip(FLAVOURS, factor, strict=True):
        assert rows[flavour]["before"]["scale"] == pytest.approx(1 / wanted, rel=1e-4)
        assert rows[flavour]["before"]["resolution"] < 1e-4
    after = [abs(rows[name]["after"]["scale"] - 1) for name in ("b", "light")]
    assert max(after) < 0.5 * (1 - 1 / factor[0])
    bundle = load_bundle(context.directory.checkpoints / "tagger")
    path = score_datasets(context, scorer_of(bundle))[0]
    scored = load_scores(path, "a")
    (jets,) = read_card(context, context.cards[0])
    scores = score_jets(bundle, jets)
    np.testing.assert_allclose(scored.regressed_pt_gev, jets.pt_gev * np.exp(scores.log_response), rtol=1e-6)
    b = scored.select(scored.flavour == B)
    assert np.median(b.regressed_pt_gev / b.pt_gev) > 1.15
    joined = concatenate([b, replace(b, regressed_pt_gev=None)])
    assert joined.regressed_pt_gev is None
    assert len(concatenate([b, b]).regressed_pt_gev) == 2 * len(b)


def test_the_working_point_region_must_be_simulated(context):
    wrong = context.config.model_copy(update={"fit": FitConfig(working_point_region="nowhere")})
    with pytest.raises(ConfigError, match="nowhere"):
        run_train(replace(context, config=wrong))


def test_no_jets_in_range_is_a_data_error(context):
    narrow = context.config.data.model_copy(update={"pt_gev_min": 800.0, "pt_gev_max": 801.0})
    with pytest.raises(DataError, match="no simulated jets"):
        run_train(replace(context, config=context.config.model_copy(update={"data": narrow})))


def test_a_true_pt_that_no_file_gives_is_a_data_error(context):
    tagger = context.config.tagger.model_copy(update={"regress_pt": True})
    with pytest.raises(DataError, match="true pT"):
        run_train(replace(context, config=context.config.model_copy(update={"tagger": tagger})))
