"""Particle level: decay lengths, labels, origins and the biased selection against known truths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.data.jets import ORIGINS
from selfcal.errors import ConfigError
from selfcal.generate.processes import PROCESSES, ordered_settings, process_named
from selfcal.generate.records import TruthJets
from selfcal.generate.truth import WEAK_B, WEAK_C, generate_chunk, nearest_in_event, up_to_quota

PDG_CTAU_MM = {511: 0.4554, 521: 0.4911, 411: 0.3118, 421: 0.1230}
"""Review of Particle Physics."""


def jet_of_particle(truth: TruthJets) -> np.ndarray:
    return np.repeat(np.arange(len(truth)), np.diff(truth.offsets))


def assert_hadrons_match_pdg(truth: TruthJets, codes: tuple[int, ...], at_least: int) -> None:
    for code in codes:
        ctau = truth.hadron_ctau_mm[np.abs(truth.hadron_pdg) == code]
        assert len(ctau) >= at_least
        # the exponential's width is its mean: the error of the mean is known beforehand
        assert abs(ctau.mean() - PDG_CTAU_MM[code]) < 4.0 * PDG_CTAU_MM[code] / np.sqrt(len(ctau)), code


def test_b_hadrons_live_as_long_as_in_nature(top_truth: TruthJets) -> None:
    assert_hadrons_match_pdg(top_truth, (511, 521), 100)


def test_charm_hadrons_live_as_long_as_in_nature(charm_truth: TruthJets) -> None:
    assert_hadrons_match_pdg(charm_truth, (411, 421), 30)


@pytest.mark.long
def test_decay_lengths_to_three_per_cent() -> None:
    truth = generate_chunk("ttbar_emu", (), 23, 0, 12_000)
    assert_hadrons_match_pdg(truth, (511, 521), 2_000)


def test_flight_distance_is_beta_gamma_ctau(top_truth: TruthJets) -> None:
    heavy = np.abs(top_truth.hadron_pdg) == 511
    expected = top_truth.hadron_pt_gev / 5.2797 * top_truth.hadron_ctau_mm
    # the b hadron is made within microns of the primary vertex
    np.testing.assert_allclose(top_truth.hadron_lxy_mm[heavy], expected[heavy], rtol=1e-2, atol=2e-3)


def test_label_names_the_hadron(top_truth: TruthJets, charm_truth: TruthJets) -> None:
    for truth in (top_truth, charm_truth):
        code = np.abs(truth.hadron_pdg)
        np.testing.assert_array_equal(truth.label == 5, np.isin(code, WEAK_B))
        np.testing.assert_array_equal(truth.label == 4, np.isin(code, WEAK_C))
        np.testing.assert_array_equal(truth.label == 0, code == 0)
        assert (truth.hadron_pt_gev[code > 0] > 5.0).all()


def test_gluons_to_b_pairs_are_the_jets_with_two_b_hadrons(monkeypatch) -> None:
    """The jets are those of the same collisions without the choice, and hold two lifetimes."""
    pairs = generate_chunk("gluon_to_bb", (), 5, 0, 12)
    process = process_named("gluon_to_bb")
    monkeypatch.setitem(PROCESSES, "gluon_to_bb", replace(process, two_b_hadrons=False))
    everything = generate_chunk("gluon_to_bb", (), 5, 0, 1300)
    assert (pairs.label == 5).all()
    assert (everything.label == 5).mean() < 0.2
    key = everything.event * 1000 + everything.jet_rank
    here = pairs.event <= everything.event[-1] - 1
    place = np.searchsorted(key, (pairs.event * 1000 + pairs.jet_rank)[here])
    assert here.sum() >= 2
    np.testing.assert_array_equal(everything.pt_gev[place], pairs.pt_gev[here])
    assert (everything.label[place] == 5).all()

    def decays(truth: TruthJets) -> float:
        """Mean number of production vertices of particles from b hadrons in a b jet."""
        jet = jet_of_particle(truth)
        of_b = np.isin(truth.origin, [ORIGINS.index("from_b"), ORIGINS.index("from_bc")]) & (
            truth.charge != 0
        )
        vertices = np.unique(np.stack([jet[of_b], truth.vertex[of_b]]), axis=1)[0]
        return float(np.bincount(vertices, minlength=len(truth))[truth.label == 5].mean())

    assert decays(pairs) > 1.5 * decays(everything.select(np.setdiff1d(np.arange(len(everything)), place)))


def test_composition_of_the_regions(top_truth: TruthJets, charm_truth: TruthJets) -> None:
    assert 0.50 < (top_truth.label == 5).mean() < 0.62
    assert 0.34 < (charm_truth.label == 4).mean() < 0.50
    assert (charm_truth.label == 5).mean() < 0.03


def test_heavy_origins_lie_in_heavy_jets(top_truth: TruthJets, charm_truth: TruthJets) -> None:
    # a hadron 0.3 to 0.4 from the axis, or below 5 GeV, leaves a few tracks in jets of another label
    label = top_truth.label[jet_of_particle(top_truth)]
    from_b = np.isin(top_truth.origin, [ORIGINS.index("from_b"), ORIGINS.index("from_bc")])
    assert from_b.sum() > 1000
    assert (label[from_b] == 5).mean() > 0.97
    label = charm_truth.label[jet_of_particle(charm_truth)]
    from_c = charm_truth.origin == ORIGINS.index("from_c")
    assert from_c.sum() > 300
    assert (label[from_c] == 4).mean() > 0.95


def test_vertices_agree_with_origins(top_truth: TruthJets) -> None:
    truth = top_truth
    primary = truth.origin == ORIGINS.index("primary")
    np.testing.assert_array_equal(truth.vertex == 0, primary)
    # photons of neutral pions fly a few microns
    assert np.hypot(*truth.position[primary, :2].T).max() < 0.05
    key = jet_of_particle(truth) * 1000 + truth.vertex
    for number in np.unique(key[~primary])[:300]:
        spread = np.ptp(truth.position[key == number].astype(np.float64), axis=0)
        assert spread.max() < 2e-3
    assert (truth.origin >= ORIGINS.index("primary")).all()


def test_charges_of_the_particles_kept(top_truth: TruthJets) -> None:
    expected = {
        211: 1,
        -211: -1,
        321: 1,
        2212: 1,
        -2212: -1,
        11: -1,
        -11: 1,
        13: -1,
        22: 0,
        3112: -1,
        3222: 1,
    }
    for code, charge in expected.items():
        assert (top_truth.charge[top_truth.pdg == code] == charge).all(), code
    assert set(np.unique(top_truth.pdg[top_truth.pdg > 0])) <= {
        11,
        13,
        22,
        211,
        321,
        2212,
        3112,
        3222,
        3312,
        3334,
    }


def test_larger_quota_begins_with_the_same_jets() -> None:
    short, long = (generate_chunk("w_charm", (), 5, 0, quota) for quota in (30, 90))
    cut = up_to_quota(long, 30)
    for name in ("pt_gev", "label", "momentum", "position", "offsets", "event"):
        np.testing.assert_array_equal(getattr(short, name), getattr(cut, name), err_msg=name)
    assert int((short.pt_gev > 20).sum()) == 30
    assert short.pt_gev[-1] > 20


def test_bias_weights_give_back_the_unbiased_spectrum() -> None:
    """d ln N / d ln pT of the weighted biased sample and of an unbiased one agree above the cut-off."""
    biased = generate_chunk("dijet", (), 29, 0, 900)
    unbiased = generate_chunk("dijet", ("PhaseSpace:bias2Selection = off",), 31, 0, 400)
    edges = np.array([20.0, 24.0, 30.0, 40.0, 80.0])
    assert np.unique(unbiased.weight).size == 1
    assert np.percentile(biased.pt_gev, 75) > 2.0 * np.percentile(unbiased.pt_gev, 75)
    fractions, variances = [], []
    for truth in (biased, unbiased):
        counts = np.histogram(truth.pt_gev, edges, weights=truth.weight)[0]
        squares = np.histogram(truth.pt_gev, edges, weights=truth.weight**2)[0]
        fractions.append(counts / counts.sum())
        variances.append(squares / counts.sum() ** 2)
    pull = (fractions[0] - fractions[1]) / np.sqrt(variances[0] + variances[1])
    assert (np.abs(pull) < 4.0).all(), pull
    assert np.sqrt(variances[0] + variances[1])[-1] < 0.04


def test_nearest_in_event_against_loops() -> None:
    generator = np.random.default_rng(3)
    event = generator.integers(0, 5, 40)
    jet_event = np.sort(generator.integers(0, 5, 9))
    eta, phi = generator.uniform(-1, 1, 40), generator.uniform(-np.pi, np.pi, 40)
    jet_eta, jet_phi = generator.uniform(-1, 1, 9), generator.uniform(-np.pi, np.pi, 9)
    found = nearest_in_event(event, eta, phi, jet_event, jet_eta, jet_phi, 5, 1.5)
    for i in range(40):
        best, distance = -1, 1.5
        for j in np.flatnonzero(jet_event == event[i]):
            dphi = abs((phi[i] - jet_phi[j] + np.pi) % (2 * np.pi) - np.pi)
            if np.hypot(eta[i] - jet_eta[j], dphi) < distance:
                best, distance = j, np.hypot(eta[i] - jet_eta[j], dphi)
        assert found[i] == best


def test_tunes_are_read_before_what_they_would_reset() -> None:
    settings = ordered_settings(process_named("ttbar_emu"), ("StringZ:rFactB = 1.05", "Tune:pp = 14"))
    assert settings[0] == "Tune:pp = 14"
    assert settings[-1] == "StringZ:rFactB = 1.05"
    assert "Tune:pp = 21" not in settings


@pytest.mark.parametrize("setting", ["Random:seed = 4", "Beams:eCM = 8000", "Nonsense:mode = 1"])
def test_settings_that_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition(" ")[0]):
        generate_chunk("ttbar_emu", (setting,), 1, 0, 1)


def test_unknown_process_is_named() -> None:
    with pytest.raises(ConfigError, match="'higgs'"):
        process_named("higgs")
    assert {"ttbar_emu", "ttbar_ljets", "w_charm", "dijet", "z_tautau", "gluon_to_bb"} <= set(PROCESSES)
