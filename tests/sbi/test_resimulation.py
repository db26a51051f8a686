"""The generator as simulator: its files again, a known detector found, and smearing beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from selfcal.config.detector_parameters import DetectorParameters
from selfcal.config.loading import load_run
from selfcal.config.smearing_parameters import GENERATOR, NOMINAL, PARAMETERS, SmearingParameters
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.samples import Replacement, jets_in, read_card
from selfcal.errors import ConfigError
from selfcal.generate.stage import run_generate
from selfcal.run.atomic import read_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.sbi.correction import load_correction
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.inference import RegionTracks, SmearedRates
from selfcal.sbi.posterior import Posterior, load_posterior, read_posterior, save_posterior
from selfcal.sbi.resimulation import ResimulatedRates, detector_of, resimulated
from selfcal.sbi.stage import run_infer
from selfcal.sbi.summaries import HISTOGRAMS, N_BINS

TRUTH = {"d0_core_scale": 1.15, "tail_fraction_scale": 1.6, "pileup_mu": 50.0, "fake_rate_scale": 1.5}
CONFIG = """
name: again
seed: 3
data: {cards: [sim.yaml, data.yaml], simulation_folds: [0.9, 0.05, 0.05], data_folds: [0.9, 0.05, 0.05]}
generate: {workers: 1, cache: CACHE, worlds: {nominal: {}, other: {detector: DETECTOR}}}
inference: {enabled: true, model: MODEL, chain_check: false, prior_width: {pileup_mu: 8.0}}
"""


def make_run(folder, jets, cache, model="generator"):
    folder.mkdir(exist_ok=True)
    for name, role, world in (("sim", "simulation", "nominal"), ("data", "data", "other")):
        prior = "composition: {}\n" if role == "data" else ""
        block = f"{{process: ttbar_emu, jets: {jets}, world: {world}}}"
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nrole: {role}\nregion: ttbar_emu\ngenerate: {block}\n{prior}"
        )
    detector = "{" + ", ".join(f"{name}: {value}" for name, value in TRUTH.items()) + "}"
    text = CONFIG.replace("MODEL", model).replace("DETECTOR", detector).replace("CACHE", str(cache))
    (folder / "run.yaml").write_text(text.replace("pileup_mu: 8.0" if model == "smearing" else "\0", ""))
    loaded = load_run([str(folder / "run.yaml")])
    run = RunDirectory(folder / "out")
    context = RunContext(loaded.config, loaded.cards, run, card_folders=loaded.card_folders)
    run_generate(context)
    return context


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(tmp_path_factory, cache):
    return make_run(tmp_path_factory.mktemp("small"), 500, cache)


def theta_of(**changed):
    return np.array(
        [changed.get(name, value) for name, value in zip(GENERATOR.names, GENERATOR.nominal, strict=True)]
    )


def test_the_nominal_detector_gives_the_file_again(small) -> None:
    card = small.cards[0]
    (from_file,) = read_card(small, card)
    anew = Replacement(partial(resimulated, small, theta=GENERATOR.nominal))
    (again,) = read_card(small, card, anew)
    # Files hold momenta in MeV.
    np.testing.assert_allclose(again.pt_gev, from_file.pt_gev, rtol=2e-7)
    for name in ("event", "jet_index", "flavour", "n_tracks", "tracks", "track_origin"):
        np.testing.assert_array_equal(getattr(again, name), getattr(from_file, name), err_msg=name)


def test_a_vector_is_a_detector_within_its_ranges() -> None:
    assert detector_of(GENERATOR.nominal) == DetectorParameters()
    assert detector_of(theta_of(fake_rate_scale=-3.0)).fake_rate_scale == 0.0
    assert set(GENERATOR.names) == set(DetectorParameters.model_fields)


def test_rates_are_those_of_the_train_fold_and_follow_the_detector(small) -> None:
    rates = ResimulatedRates(small, ["ttbar_emu"])
    shape = (1, len(FLAVOURS), N_BINS)
    nominal = rates(GENERATOR.nominal).reshape(shape)
    np.testing.assert_array_equal(rates(GENERATOR.nominal).reshape(shape), nominal)
    jets = jets_in(small, small.cards[0], (Fold.TRAIN,))
    sim = RegionTracks("ttbar_emu", jets, [], np.ones(4), np.ones(4))
    given = SmearedRates([sim], collect_donors(jets, 1), 1)(NOMINAL.vector()).reshape(shape)
    tracks = HISTOGRAMS[-1].bins
    # The same collisions with other random numbers: 300 b jets with about six tracks each.
    np.testing.assert_allclose(nominal[0, 0, tracks], given[0, 0, tracks], rtol=0.1)
    worse = rates(theta_of(efficiency_shift=-0.2)).reshape(shape)
    assert worse[0, 0, tracks][0] < 0.9 * nominal[0, 0, tracks][0]


def test_the_posterior_of_the_generator_replaces_the_simulation(small) -> None:
    results = small.directory.results
    results.mkdir(parents=True, exist_ok=True)
    mean = theta_of(d0_core_scale=1.3, efficiency_shift=-0.1)
    covariance = np.diag((0.1 * GENERATOR.widths({})) ** 2)
    save_posterior(Posterior(mean, covariance, GENERATOR.widths({}), GENERATOR), None, 3, {}, results)
    back = read_posterior(results)
    np.testing.assert_array_equal(back.mean, mean)
    assert back.space is GENERATOR
    with pytest.raises(Exception, match="of the generator's own detector"):
        load_posterior(results)
    correction, directions = load_correction(small)
    assert len(directions) == len(GENERATOR.names)
    sim, data = small.cards
    (plain,), (moved,) = (list(read_card(small, sim, one)) for one in (None, correction))
    assert len(moved) == pytest.approx(len(plain), abs=15)
    assert moved.n_tracks.mean() < 0.95 * plain.n_tracks.mean()
    assert set(np.unique(moved.weight)) == {1.0}
    (before,), (after,) = (list(read_card(small, data, one)) for one in (None, correction))
    np.testing.assert_array_equal(before.tracks, after.tracks)


def test_files_of_others_cannot_be_simulated_again(small) -> None:
    given = replace(small, cards=tuple(c.model_copy(update={"generate": None}) for c in small.cards))
    with pytest.raises(ConfigError, match="cannot be simulated again"):
        ResimulatedRates(given, ["ttbar_emu"])


@pytest.mark.parametrize(
    ("generator", "smearing"),
    [
        ({"d0_core_scale": 1.6}, {"d0_core_scale_low": 1.6, "d0_core_scale_high": 1.6}),
        ({"z0_core_scale": 1.6}, {"z0_core_scale_low": 1.6, "z0_core_scale_high": 1.6}),
        ({"d0_bias_mm": 0.02}, {"d0_bias_mm": 0.02}),
        ({"innermost_efficiency_shift": -0.3}, {"innermost_efficiency_shift": -0.3}),
        ({"efficiency_shift": -0.2}, {"efficiency_shift": -0.2}),
    ],
)
def test_smearing_does_what_the_generator_does(small, generator, smearing) -> None:
    """A shift that both have, large against what few jets leave to chance, moves the summaries alike."""
    jets = jets_in(small, small.cards[0], (Fold.TRAIN,))
    sim = RegionTracks("ttbar_emu", jets, [], np.ones(4), np.ones(4))
    of_smearing = SmearedRates([sim], collect_donors(jets, 1), 1)
    of_generator = ResimulatedRates(small, ["ttbar_emu"])
    moved = []
    for rates, nominal, theta in (
        (of_smearing, NOMINAL.vector(), SmearingParameters(**smearing).vector()),
        (of_generator, GENERATOR.nominal, theta_of(**generator)),
    ):
        before, after = (rates(one).reshape(-1, N_BINS)[[0, 2]].sum(axis=0) for one in (nominal, theta))
        moved.append((after - before) / np.sqrt(np.maximum(before, 0.02)))
    by_smearing, by_generator = moved
    slope = (by_smearing @ by_generator) / (by_generator @ by_generator)
    assert np.corrcoef(by_smearing, by_generator)[0, 1] > 0.8
    assert slope == pytest.approx(1.0, abs=0.3)


@pytest.mark.long
def test_a_known_detector_is_found_by_simulating_again(tmp_path, cache) -> None:
    """Pseudo-data of 4,000 jets from collisions of their own; every shifted parameter within errors."""
    context = make_run(tmp_path / "run", 4000, cache)
    run_infer(context)
    content = read_json(context.directory.results / "posterior.json")
    assert content["model"] == "generator"
    found = {row["name"]: row for row in content["parameters"]}
    nominal = DetectorParameters()
    for name, row in found.items():
        true = TRUTH.get(name, getattr(nominal, name))
        assert abs(row["mean"] - true) < 3 * row["uncertainty"], name
    for name in TRUTH:
        assert found[name]["contraction"] > 0.4, name
        # The fakes of so few jets are within the errors of both, their nominal and their true number.
        if name != "fake_rate_scale":
            assert abs(found[name]["mean"] - found[name]["nominal"]) > 1.5 * found[name]["uncertainty"], name
    assert content["predictive"][0]["p_value"] > 0.01
    assert set(PARAMETERS) != set(found)
