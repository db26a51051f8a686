"""Small networks on toy jets: a shifted detector is found, data outside of the model are noticed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from selfcal.config.inference import InferenceConfig, NeuralConfig
from selfcal.config.smearing_parameters import PARAMETERS, SmearingParameters
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_bank import multiplicity_width, simulated_rows
from selfcal.sbi.jet_predictive import BINS, _rows, mixture_weights, predictive_jets
from selfcal.sbi.jet_summaries import SUMMARIES
from selfcal.sbi.neural_inference import (
    fit_of_jets,
    infer_neural,
    moves_of_networks,
    observed_rows,
    parts_of,
    train_ensemble,
    with_error,
)
from selfcal.sbi.set_posterior import compare_with_sets
from selfcal.sbi.smearing import smear
from selfcal.sbi.stage import inflated

TRUTH = SmearingParameters(d0_core_scale_low=1.3, d0_core_scale_high=1.3, pileup_scale=1.5)
SMALL = NeuralConfig(networks=2, passes=4, hidden_width=16, steps=150, batch_size=512, sets=40)
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


def test_a_shifted_detector_is_found(inferred):
    posterior = inferred[0].posterior
    pulls = (posterior.mean - TRUTH.vector()) / posterior.uncertainty
    assert np.abs(pulls).max() < 3, dict(zip(PARAMETERS, pulls.round(1), strict=True))
    assert (pulls**2).sum() < stats.chi2.isf(0.001, len(PARAMETERS))
    for name in ("d0_core_scale_low", "pileup_scale"):
        i = PARAMETERS.index(name)
        assert posterior.mean[i] > 1 + 2 * posterior.uncertainty[i], name
    assert (posterior.contraction < 1).all()
    assert (posterior.contraction > -0.05).all()


def test_networks_that_learnt_nothing_are_unbiased_too(inferred, region, make_toy_jets):
    """What networks are worth decides the width, not the place: simulation says what to expect of them."""
    found = inferred[0]
    torch.manual_seed(3)
    rough = []
    for network in found.ensemble.networks:
        other = deepcopy(network)
        for value in other.parameters():
            value.copy_(0.3 * torch.randn_like(value))
        rough.append(other)
    truth = SmearingParameters(d0_core_scale_low=1.1, d0_core_scale_high=1.1, pileup_scale=1.2)
    near = replace(region, data=[moved(make_toy_jets, truth)])
    again = infer_neural([near], CONFIG, 1, ensemble=replace(found.ensemble, networks=tuple(rough)))
    pulls = (again.posterior.mean - truth.vector()) / again.posterior.uncertainty
    assert np.abs(pulls).max() < 3, dict(zip(PARAMETERS, pulls.round(1), strict=True))
    wider = again.posterior.uncertainty / found.posterior.uncertainty
    assert wider[PARAMETERS.index("d0_core_scale_low")] > 1.2
    assert wider.mean() > 1.05


def test_networks_and_detectors_are_files_and_not_made_again(inferred, region, monkeypatch):
    first, scratch, steps = inferred
    assert steps == sorted(steps)
    assert steps[-1] == SMALL.networks * SMALL.steps
    assert len(list(scratch.glob("network-*"))) == SMALL.networks
    assert len(list(scratch.glob("points-*"))) > 10
    monkeypatch.setattr("selfcal.sbi.neural_inference.train_scores", None)
    monkeypatch.setattr("selfcal.sbi.neural_inference.SmearedMeans.__call__", None)
    again = infer_neural([region], CONFIG, 1, scratch=scratch)
    assert np.array_equal(again.posterior.mean, first.posterior.mean)
    assert np.array_equal(again.posterior.covariance, first.posterior.covariance)


def test_jets_are_judged_by_the_network_that_did_not_see_them(inferred):
    """... of the simulation; those of data by the mean of all."""
    ensemble = inferred[0].ensemble
    rows = inferred[0].means.nominal[0]
    single = np.stack([network.statistic(rows) for network in ensemble.networks])
    part = parts_of(rows, SMALL.networks)
    assert set(part) == {0, 1}
    crossed = ensemble.of_simulation(rows)
    assert np.allclose(crossed, single[part, np.arange(len(rows))], atol=1e-12)
    assert np.allclose(ensemble.of_data(rows), single.mean(axis=0), atol=1e-12)
    assert np.array_equal(replace(ensemble, crossed=False).of_simulation(rows), ensemble.of_data(rows))


def test_single_networks_find_nearly_the_same(inferred):
    moves = moves_of_networks(inferred[0])
    assert moves.shape == (SMALL.networks, len(PARAMETERS))
    assert moves.sum(axis=0) == pytest.approx(np.zeros(len(PARAMETERS)), abs=1e-9)
    sigma = inferred[0].posterior.uncertainty / inferred[0].posterior.prior_width
    assert 0 < np.abs(moves / sigma).max() < 2


def test_a_larger_error_of_the_generator_widens_the_posterior(inferred, region):
    found = inferred[0]
    same = with_error(found, [region], CONFIG)
    sigma = found.posterior.uncertainty
    assert same.posterior.mean == pytest.approx(found.posterior.mean, abs=0.01 * sigma.min())
    assert same.posterior.uncertainty == pytest.approx(sigma, rel=0.01)
    errors = {"modelling_error": 0.2, "multiplicity_error": 0.2}
    wider = with_error(found, [region], CONFIG.model_copy(update=errors)).posterior
    ratio = wider.uncertainty / sigma
    assert (ratio > 0.99).all()
    assert ratio[PARAMETERS.index("efficiency_shift")] > 1.05


def test_data_outside_of_the_model_are_noticed_and_the_covariance_grows(inferred, region, make_toy_jets):
    """A generator with many far tracks on the negative side of d0 alone, as no detector of the model has."""
    found, *_ = inferred
    jets = moved(make_toy_jets, TRUTH)
    tracks = jets.tracks.copy()
    chosen = np.random.default_rng(1).random(len(tracks)) < 0.25
    value, significance = (jets.track_fields.index(name) for name in ("d0", "lifetimeSignedD0Significance"))
    tracks[chosen, value] *= 3.9 / np.abs(tracks[chosen, significance])
    tracks[chosen, significance] = -3.9
    strange = replace(region, data=[replace(jets, tracks=tracks)])
    p_values = {}
    for name, one in (("inside", region), ("outside", strange)):
        seen = found if name == "inside" else infer_neural([one], CONFIG, 1, ensemble=found.ensemble)
        rows = predictive_jets(
            [one], seen.data, seen.fit.best, seen.fit.covariance, found.ensemble.donors, CONFIG, 3
        )
        p_values[name] = rows[0]["p_value"]
        posterior, factor = inflated(seen.posterior, rows[0])
        assert (factor > 1) == (rows[0]["p_value"] < 0.05)
        assert np.allclose(posterior.covariance, factor * seen.posterior.covariance)
    assert p_values["inside"] > 0.05
    assert p_values["outside"] < 0.01
    assert factor > 1.3


def test_the_predictive_check_needs_the_right_detector(region):
    """At the truth the simulation looks like the data, at nominal values it does not."""
    donors = collect_donors(region.simulation, 1)
    data = observed_rows([region], 1)
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
    rows = observed_rows([region], 1)
    simulated = simulated_rows([region.simulation], collect_donors(region.simulation, 1), CONFIG, 1)
    share = np.array([0.5, 0.3, 0.2, 0.0])
    weight = mixture_weights(simulated, rows, share)
    assert weight.sum() == pytest.approx(len(rows), rel=1e-9)
    found = np.bincount(simulated.flavour, weight, 4) / weight.sum()
    assert found == pytest.approx(share, abs=0.03)


def test_jets_are_simulated_in_pairs(region):
    """Under u and -u with the same noise; beyond the range of a parameter, at its edge."""
    donors = collect_donors(region.simulation, 1)
    rows = simulated_rows([region.simulation], donors, CONFIG, 1)
    half = len(rows) // 2
    first, other = rows.theta[:half], rows.theta[half:]
    assert np.array_equal(rows.event[:half], rows.event[half:])
    free = [i for i, name in enumerate(PARAMETERS) if "tail" not in name and "fake" not in name]
    inside = np.abs(first) < 4
    assert first[:, free][inside[:, free]] == pytest.approx(-other[:, free][inside[:, free]], abs=1e-9)
    reach = SMALL.proposal_scale * np.hypot(1, multiplicity_width(CONFIG))
    assert first.std(axis=0)[free] == pytest.approx(reach[free], rel=0.03)
    assert rows.theta.min(axis=0)[PARAMETERS.index("fake_scale")] == pytest.approx(-2.0)
    same = (rows.counts[:half] == rows.counts[half:]).mean()
    shuffled = (rows.counts[:half] == np.roll(rows.counts[half:], 1, axis=0)).mean()
    assert same > shuffled


def test_the_amortised_posterior_is_compared(inferred, region):
    found, *_ = inferred
    few = found.data.select(np.arange(200))
    fit = fit_of_jets(found, few, [region], CONFIG)
    judged = found.ensemble
    sets = compare_with_sets(
        [region], judged.of_data, few, fit.best, fit.covariance, judged.donors, CONFIG, 1
    )
    assert sets["samples"] == SMALL.sets
    assert sets["jets"] == 200
    assert len(sets["width_ratio"]) == len(PARAMETERS)
    assert sets["calibration"]["experiments"] == 8
    assert min(sets["width_ratio"]) > 0


def test_an_ensemble_is_its_seed(region):
    few = replace(region, simulation=[region.simulation[0].select(np.arange(200))])
    quick = CONFIG.model_copy(update={"neural": SMALL.model_copy(update={"steps": 4, "networks": 1})})
    first, again, other = (train_ensemble([few], quick, seed).networks[0] for seed in (1, 1, 2))
    weights = [next(iter(one.trunk.parameters())) for one in (first, again, other)]
    assert bool((weights[0] == weights[1]).all())
    assert not bool((weights[0] == weights[2]).all())


def test_pulls_are_summed_over_bins_summaries_and_regions():
    """χ² by loops, one degree of freedom less for every summary of every region."""
    random = np.random.default_rng(4)
    seen, repeated = random.normal(size=(3, 2, 4, BINS)), random.normal(size=(3, 5, 2, 4, BINS))
    rows = _rows(seen, repeated)
    assert len(rows) == 1 + 2 * 4
    totals = [sum(seen[d].ravel() ** 2) for d in range(3)]
    assert rows[0]["chi2"] == pytest.approx(np.mean(totals))
    assert rows[0]["ndf"] == 2 * 4 * (BINS - 1)
    above = [sum(repeated[d, i].ravel() ** 2) >= totals[d] for d in range(3) for i in range(5)]
    assert rows[0]["p_value"] == pytest.approx(np.mean(above))
    for number, row in enumerate(rows[1:]):
        region, summary = divmod(number, 4)
        assert (row["region"], f"{row['histogram']} {row['category']}") == (region, SUMMARIES[summary])
        chi2 = [sum(seen[d, region, summary] ** 2) for d in range(3)]
        assert row["chi2"] == pytest.approx(np.mean(chi2))
        assert row["ndf"] == BINS - 1
        assert row["p_value"] == pytest.approx(np.mean([stats.chi2.sf(one, BINS - 1) for one in chi2]))
        pulls = seen[:, region, summary].mean(axis=0)
        assert row["pull"] == max(pulls, key=abs)
