"""The stage: from files to a posterior, and from it to corrected scores beside the nominal ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.loading import load_run
from selfcal.config.smearing_parameters import PARAMETERS, SmearingParameters
from selfcal.data.folds import UNTRAINED
from selfcal.data.hdf5 import write_jets
from selfcal.data.samples import read_card
from selfcal.data.score_files import NOMINAL, detector_variants, load_scores, scores_path
from selfcal.errors import ConfigError
from selfcal.run.atomic import read_arrays, read_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import SilentReporter
from selfcal.sbi.correction import load_correction
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.smearing import smear
from selfcal.sbi.stage import run_infer, thinned
from selfcal.study.pipeline import pipeline, stages_for_verb
from selfcal.tagger.scoring import JetScores
from selfcal.training.scores_stage import score_datasets

SHIFTED = SmearingParameters(d0_core_scale_low=1.25, d0_core_scale_high=1.25, pileup_scale=1.5)
SETTINGS = """
name: small
data: {cards: [sim.yaml, data.yaml, truth.yaml]}
inference: {enabled: ENABLED, chain_check: false}
"""


@pytest.fixture(scope="module")
def folder(make_toy_jets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, role, use, seed in (
        ("sim", "simulation", "control", 1),
        ("data", "data", "control", 2),
        ("truth", "simulation", "truth", 3),
    ):
        jets = make_toy_jets(2500, seed=seed, dataset=name)
        if role == "data":
            jets = smear(jets, SHIFTED, collect_donors([jets], 1), seed=9)
        write_jets(folder / f"{name}.h5", jets, labels=role == "simulation")
        prior = "composition: {}\n" if role == "data" else ""
        text = f"name: {name}\nrole: {role}\nuse: {use}\nregion: only\nfiles: [{name}.h5]\n{prior}"
        (folder / f"{name}.yaml").write_text(text)
    return folder


def context_of(folder, enabled: bool) -> RunContext:
    path = folder / f"run_{enabled}.yaml"
    path.write_text(SETTINGS.replace("ENABLED", str(enabled).lower()))
    loaded = load_run([str(path)], ())
    directory = RunDirectory(folder / f"run_{enabled}")
    return RunContext(loaded.config, loaded.cards, directory, card_folders=loaded.card_folders)


@pytest.fixture(scope="module")
def inferred(folder):
    context = context_of(folder, enabled=True)
    written = run_infer(context)
    return context, written


def test_the_shifted_detector_is_found(inferred):
    context, written = inferred
    assert all(path.exists() for path in written)
    content = read_json(context.directory.results / "posterior.json")
    rows = {row["name"]: row for row in content["parameters"]}
    for name, value in (("d0_core_scale_low", 1.25), ("pileup_scale", 1.5), ("z0_core_scale_low", 1.0)):
        assert abs(rows[name]["mean"] - value) < 3.5 * rows[name]["uncertainty"], name
    assert rows["d0_core_scale_low"]["mean"] > 1 + 2 * rows["d0_core_scale_low"]["uncertainty"]
    assert content["predictive"][0]["p_value"] > 0.001
    assert {row["region"] for row in content["predictive"]} == {"all", "only"}
    samples = read_arrays(context.directory.results / "posterior_samples.safetensors")["theta"]
    assert np.allclose(samples.mean(axis=0), [rows[name]["mean"] for name in PARAMETERS], atol=0.1)


def test_the_neural_method_writes_the_same_posterior_and_more(folder):
    path = folder / "run_neural.yaml"
    network = "networks: 2, passes: 2, hidden_width: 16, steps: 100, batch_size: 256, sets: 0"
    path.write_text(SETTINGS.replace("ENABLED", f"true, method: neural, neural: {{{network}}}"))
    loaded = load_run([str(path)], ())
    context = RunContext(
        loaded.config, loaded.cards, RunDirectory(folder / "run_neural"), card_folders=loaded.card_folders
    )
    assert all(written.exists() for written in run_infer(context))
    content = read_json(context.directory.results / "posterior.json")
    assert content["method"] == "neural"
    assert content["ensemble"]["networks"] == 2
    assert len(content["ensemble"]["spread"]) == len(PARAMETERS)
    assert {row["region"] for row in content["predictive"]} == {"all", "only"}
    assert content["set_posterior"] is None
    assert sum(row["fitted"] for row in content["composition"]) == pytest.approx(1.0)
    rows = {row["name"]: row for row in content["parameters"]}
    for name, value in (("d0_core_scale_low", 1.25), ("pileup_scale", 1.5), ("z0_core_scale_low", 1.0)):
        assert abs(rows[name]["mean"] - value) < 3.5 * rows[name]["uncertainty"], name
    assert rows["d0_core_scale_low"]["mean"] > 1 + 2 * rows["d0_core_scale_low"]["uncertainty"]
    correction, directions = load_correction(context)
    assert correction is not None
    assert len(directions) == len(PARAMETERS)


def test_only_control_simulation_is_corrected(inferred):
    context, _ = inferred
    correction, directions = load_correction(context)
    assert len(directions) == len(PARAMETERS)
    for card in context.cards:
        (plain,), (moved,) = (list(read_card(context, card, one)) for one in (None, correction))
        assert (len(plain.tracks) != len(moved.tracks)) == (card.name == "sim")
        assert np.array_equal(plain.event, moved.event)


def test_scores_have_their_variants(inferred):
    """Corrected scores under the card's name, nominal ones and those along the directions beside them."""
    context, _ = inferred
    correction, directions = load_correction(context)

    def scorer(jets):
        """A score that is the number of tracks of each jet."""
        return JetScores(np.repeat(jets.n_tracks[:, None].astype(float), 4, axis=1))

    score_datasets(context, scorer, correction, directions[:2])
    assert detector_variants(context) == ("detector_0", "detector_1")
    sim, data, truth = context.cards
    assert scores_path(context, data, NOMINAL) == scores_path(context, data)
    assert scores_path(context, truth, NOMINAL) == scores_path(context, truth)
    (nominal,), (corrected,) = (list(read_card(context, sim, one)) for one in (None, correction))
    for variant, jets in ((None, corrected), (NOMINAL, nominal)):
        found = load_scores(scores_path(context, sim, variant), "only")
        assert np.array_equal(found.log_probability[:, 0], jets.n_tracks)
    varied = load_scores(scores_path(context, sim, "detector_0"), "only")
    assert set(varied.fold) == set(UNTRAINED)
    (other,) = read_card(context, sim, directions[0])
    assert np.isin(varied.log_probability[:, 0], other.n_tracks).all()


def test_without_inference_there_is_no_stage_and_nothing_changes(folder):
    context = context_of(folder, enabled=False)
    assert "infer" not in [stage.name for stage in pipeline(context)]
    assert load_correction(context) == (None, ())
    assert detector_variants(context) == ()
    with pytest.raises(ConfigError, match="no stage 'infer'"):
        stages_for_verb(context, "infer")
    names = [stage.name for stage in pipeline(context_of(folder, enabled=True))]
    assert names.index("train") < names.index("infer") < names.index("calibrate")


def test_the_map_explains_only_the_remainder(folder):
    """Priors of the maps are narrower where the detector is inferred; nothing else of them changes."""
    plain, inferred = (context_of(folder, enabled).config for enabled in (False, True))
    assert plain.calibration_in_use == plain.calibration
    used, wide = inferred.calibration_in_use, inferred.calibration
    assert used.map.displacement_scale == pytest.approx(wide.map.displacement_scale / 3)
    assert used.composition.map_scale == pytest.approx(wide.composition.map_scale / 3)
    restored = used.model_copy(
        update={
            "map": used.map.model_copy(update={"displacement_scale": wide.map.displacement_scale}),
            "composition": used.composition.model_copy(update={"map_scale": wide.composition.map_scale}),
        }
    )
    assert restored == wide


def test_given_scores_cannot_be_corrected(folder):
    path = folder / "given.yaml"
    path.write_text(SETTINGS.replace("ENABLED", "true") + "tagger: {kind: scores}\n")
    with pytest.raises(ConfigError, match=r"inference\.enabled"):
        load_run([str(path)], ())


def test_large_samples_are_thinned_by_events(make_toy_jets):
    samples = [make_toy_jets(3000, seed=s, dataset=f"part{s}") for s in (1, 2)]
    kept = thinned(samples, 1500)
    assert sum(len(jets) for jets in kept) == pytest.approx(1500, abs=200)
    for jets, whole in zip(kept, samples, strict=True):
        assert np.isin(whole.event, jets.event).sum() == len(jets)
    assert thinned(samples, 6000) == samples


class Listening(SilentReporter):
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_data_outside_of_the_model_are_noticed_widened_and_named(folder, make_toy_jets, tmp_path, inferred):
    """A third of the tracks near the vertex pulled together around 2.2 σ: no smearing does that."""
    jets = make_toy_jets(2500, seed=2, dataset="data")
    tracks = jets.tracks.copy()
    d0, significance = (jets.track_fields.index(name) for name in ("d0", "lifetimeSignedD0Significance"))
    chosen = (np.abs(tracks[:, significance]) < 3) & (np.arange(len(tracks)) % 3 == 0)
    sigma = np.abs(tracks[chosen, d0] / tracks[chosen, significance])
    sign = np.sign(tracks[chosen, significance])
    tracks[chosen, d0] = np.sign(tracks[chosen, d0]) * 2.2 * sigma
    tracks[chosen, significance] = 2.2 * sign
    write_jets(tmp_path / "data.h5", replace(jets, tracks=tracks), labels=False)
    for name in ("sim.h5", "truth.h5", "sim.yaml", "data.yaml", "truth.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    reporter = Listening()
    context = replace(context_of(tmp_path, enabled=True), reporter=reporter)
    run_infer(context)
    content = read_json(context.directory.results / "posterior.json")
    overall = content["predictive"][0]
    assert overall["p_value"] < 0.001
    assert content["inflation"] == pytest.approx(overall["chi2"] / overall["ndf"])
    assert content["inflation"] > 1.5
    assert any("d0" in name for name in content["flagged"])
    said = "\n".join(reporter.said)
    assert "does not describe the data" in said
    assert "not described: only d0" in said
    # The same jets as the model has them raise no alarm.
    regular = read_json(inferred[0].directory.results / "posterior.json")
    assert (regular["inflation"], regular["flagged"]) == (1.0, [])
    assert not regular["generator"]["noticed"]


def test_another_generator_is_noticed_and_its_error_taken(folder, make_toy_jets, tmp_path, inferred):
    """Every fourth track of b and c jets comes from further away on the side of the lifetimes alone."""
    jets = make_toy_jets(2500, seed=2, dataset="data")
    tracks = jets.tracks.copy()
    d0, significance = (jets.track_fields.index(name) for name in ("d0", "lifetimeSignedD0Significance"))
    heavy = np.repeat(jets.flavour, jets.n_tracks) < 2
    chosen = heavy & (tracks[:, significance] > 0) & (np.arange(len(tracks)) % 4 == 0)
    tracks[chosen, significance] += 6.0
    tracks[chosen, d0] *= 4.0
    write_jets(tmp_path / "data.h5", replace(jets, tracks=tracks), labels=False)
    for name in ("sim.h5", "truth.h5", "sim.yaml", "data.yaml", "truth.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = {}
    for checked in (True, False):
        reporter = Listening()
        context = replace(context_of(tmp_path, enabled=True), reporter=reporter)
        inference = context.config.inference.model_copy(update={"generator_check": checked})
        config = context.config.model_copy(update={"inference": inference})
        run_infer(replace(context, config=config))
        found[checked] = read_json(context.directory.results / "posterior.json")
        assert ("generator does not describe the data" in "\n".join(reporter.said)) == checked
    assert found[False]["generator"] is None
    content = found[True]["generator"]
    assert content["noticed"]
    assert "only displaced_tracks" in content["flagged"]
    assert content["error"] > 0.05
    wider, plain = (np.array(found[c]["covariance"]) for c in (True, False))
    assert (np.diag(wider) > 0.999 * np.diag(plain)).all()
    assert np.diag(wider)[0] > 1.1 * np.diag(plain)[0]
    # The negative side is as it was: without the check nobody would have known.
    assert found[False]["predictive"][0] == found[True]["predictive"][0]
    assert found[True]["predictive"][0]["p_value"] > 0.05
