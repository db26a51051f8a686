"""Small networks on toy jets: their files, the predictive check, mixtures, comparison with whole samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.inference import InferenceConfig, NeuralConfig
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_bank import drawn_detectors, multiplicity_width, simulated_rows
from selfcal.sbi.jet_predictive import mixture_weights, predictive_jets
from selfcal.sbi.neural_inference import infer_neural, observed_rows, train_ensemble
from selfcal.sbi.parameters import PARAMETERS, SmearingParameters
from selfcal.sbi.set_posterior import compare_with_sets
from selfcal.sbi.smearing import smear

TRUTH = SmearingParameters(d0_core_scale_low=1.3, d0_core_scale_high=1.3, pileup_scale=1.5)
SMALL = NeuralConfig(
    networks=2,
    passes=4,
    hidden_width=16,
    spline_bins=5,
    steps=200,
    batch_size=256,
    learning_rate=5e-3,
    sets=40,
)
CONFIG = InferenceConfig(neural=SMALL)
FRACTIONS, WIDTH = np.full(4, 0.25), np.full(4, 0.2)
NUMBERS = len(PARAMETERS) + 4 + 1


def moved(make_toy_jets, theta, seed=2):
    """Other jets of the same law, smeared with donors and a seed of their own."""
    source = make_toy_jets(700, seed=1000 + seed, dataset=f"data{seed}")
    return smear(source, theta, collect_donors([source], seed), seed=50 + seed)


@pytest.fixture(scope="module")
def region(make_toy_jets):
    simulation = make_toy_jets(2500, seed=2, dataset="simulation")
    return RegionTracks("toy", [simulation], [moved(make_toy_jets, TRUTH)], FRACTIONS, WIDTH)


@pytest.fixture(scope="module")
def inferred(region, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    steps: list[int] = []
    found = infer_neural([region], CONFIG, 1, scratch=scratch, on_step=steps.append)
    return found, scratch, steps


def test_networks_and_fits_are_files_and_not_made_again(inferred, region, monkeypatch):
    first, scratch, steps = inferred
    assert steps == sorted(steps)
    assert steps[-1] == SMALL.networks * SMALL.steps
    assert len(list(scratch.glob("network-*"))) == len(list(scratch.glob("fit-*"))) == SMALL.networks
    monkeypatch.setattr("selfcal.sbi.neural_inference.train_density", None)
    monkeypatch.setattr("selfcal.sbi.neural_inference.fit_unbinned", None)
    again = infer_neural([region], CONFIG, 1, scratch=scratch)
    assert np.array_equal(again.posterior.mean, first.posterior.mean)
    assert np.array_equal(again.posterior.covariance, first.posterior.covariance)


def test_the_predictive_check_needs_the_right_detector(region):
    """At the truth the simulation looks like the data, at nominal values it does not."""
    donors = collect_donors(region.simulation, 1)
    data = observed_rows([region], 5000, 1)
    widths = np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.005, 0.02, 0.02, 0.02, 0.2, 0.5])
    truth = np.zeros(NUMBERS)
    truth[: len(PARAMETERS)] = (TRUTH.vector() - SmearingParameters().vector()) / widths
    p_values = [
        predictive_jets([region], data, best, 1e-8 * np.eye(NUMBERS), donors, CONFIG, 3)[0]["p_value"]
        for best in (truth, np.zeros(NUMBERS))
    ]
    assert p_values[0] > 0.01
    assert p_values[1] == 0.0


def test_mixtures_have_the_asked_shares_and_the_spectrum_of_data(region):
    rows = observed_rows([region], 5000, 1)
    simulated = simulated_rows([region.simulation], collect_donors(region.simulation, 1), CONFIG, 1)
    share = np.array([0.5, 0.3, 0.2, 0.0])
    weight = mixture_weights(simulated, rows, share)
    assert weight.sum() == pytest.approx(len(rows), rel=1e-9)
    found = np.bincount(simulated.flavour, weight, 4) / weight.sum()
    assert found == pytest.approx(share, abs=0.03)


def test_detectors_are_drawn_as_wide_as_asked():
    drawn = drawn_detectors(np.random.default_rng(1), 20_000, CONFIG)
    reach = SMALL.proposal_scale * np.hypot(1, multiplicity_width(CONFIG))
    free = [i for i, name in enumerate(PARAMETERS) if "tail" not in name and "fake" not in name]
    assert drawn.std(axis=0)[free] == pytest.approx(reach[free], rel=0.03)
    assert drawn.min(axis=0)[PARAMETERS.index("fake_scale")] == pytest.approx(-2.0)


def test_the_amortised_posterior_is_compared(inferred, region, monkeypatch):
    monkeypatch.setattr("selfcal.sbi.set_posterior.EMBEDDING_STEPS", 60)
    found, *_ = inferred
    bank = simulated_rows([region.simulation], found.ensemble.donors, CONFIG, 1)
    few = observed_rows([region], 5000, 1).select(np.arange(200))
    sets = compare_with_sets(
        [region], bank, few, found.best, found.covariance, found.ensemble.donors, CONFIG, 1
    )
    assert sets["samples"] == SMALL.sets
    assert sets["jets"] == 200
    assert len(sets["width_ratio"]) == len(PARAMETERS)
    assert sets["calibration"]["experiments"] == 8
    assert min(sets["width_ratio"]) > 0


def test_an_ensemble_is_its_seed(region):
    few = replace(region, simulation=[region.simulation[0].select(np.arange(200))])
    quick = CONFIG.model_copy(update={"neural": SMALL.model_copy(update={"steps": 4, "networks": 1})})
    first, again, other = (train_ensemble([few], quick, seed).densities[0] for seed in (1, 1, 2))
    weights = [next(iter(one.flow.parameters())) for one in (first, again, other)]
    assert bool((weights[0] == weights[1]).all())
    assert not bool((weights[0] == weights[2]).all())
