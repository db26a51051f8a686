"""Data against the generator where the detector was not inferred from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.data.jets import Jets
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.generator_check import ERROR_MAX, Comparison, Sample, check_generator, fit_spectrum
from selfcal.sbi.inference import RegionTracks
from selfcal.sbi.jet_quantities import BINS, EDGES, QUANTITIES, quantity_bins
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.smearing import smear
from selfcal.sbi.track_columns import track_columns, track_pt_gev

FRACTIONS = np.full(4, 0.25)
FIXED = np.zeros(4)
WIDTHS = prior_widths({})


class Smeared:
    """Given jets, smeared."""

    def __init__(self, jets: Jets) -> None:
        self.given, self.donors = jets, collect_donors([jets], 1)

    def jets(self, region: int, theta: np.ndarray) -> list[Jets]:
        del region
        return [smear(self.given, SmearingParameters.from_vector(theta), self.donors, 1)]


class Unchanged(Smeared):
    """Given jets under whatever detector: nothing but statistics differs from data of the same law."""

    def jets(self, region: int, theta: np.ndarray) -> list[Jets]:
        del region, theta
        return [self.given]


def known(theta: np.ndarray, relative_width: float) -> Posterior:
    """A posterior around ``theta`` with a part of the prior's width."""
    return Posterior(theta, np.diag((relative_width * WIDTHS) ** 2), WIDTHS)


EXACT = known(NOMINAL.vector(), 1e-6)


def checked(simulator, data, posterior=EXACT, relative_width=FIXED):
    region = RegionTracks("only", [simulator.given], [data], FRACTIONS, relative_width)
    return check_generator([region], posterior, simulator)


@pytest.fixture(scope="module")
def simulation(make_toy_jets):
    return make_toy_jets(12_000, seed=1, dataset="sim")


def test_every_jet_falls_into_the_bin_of_its_own_tracks(make_toy_jets):
    """The same quantities jet by jet, written out."""
    jets = make_toy_jets(200, seed=5)
    columns, share = track_columns(jets), track_pt_gev(jets)
    found = quantity_bins(jets)
    for i in range(len(jets)):
        mine = columns.jet == i
        d0, z0, part = columns.d0_significance[mine], columns.z0_significance[mine], share[mine]
        part = part / float(jets.pt_gev[i])
        near, displaced = np.abs(z0) < 4, (d0 > 2.5) & (np.abs(z0) < 10)
        expected = {
            "tracks": near.sum(),
            "displaced_tracks": displaced.sum(),
            "second_d0": np.sort(d0[near])[-2] if near.sum() > 1 else -np.inf,
            "momentum": part[near].sum(),
            "displaced_momentum": part[displaced].sum(),
            "leading_momentum": part[near].max(initial=0.0),
        }
        for q, name in enumerate(QUANTITIES):
            assert found[i, q] == (EDGES[name] <= expected[name]).sum(), (i, name)
    assert found.max(axis=0).tolist() <= [bins - 1 for bins in BINS]


def test_the_p_values_of_the_same_generator_are_even(make_toy_jets):
    """25 data samples, each with a simulation of its own: the statistics of both count."""
    p_values = [
        checked(
            Unchanged(make_toy_jets(3000, seed=200 + s, dataset="sim")),
            make_toy_jets(1000, seed=100 + s, dataset="data"),
        ).comparison.rows()[0]["p_value"]
        for s in range(25)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_more_displaced_tracks_are_noticed_and_named(simulation, make_toy_jets):
    """Every tenth track of b jets comes from further away: lifetimes, which no detector makes."""
    data = make_toy_jets(3000, seed=2, dataset="data")
    simulator = Unchanged(simulation)
    same = checked(simulator, data)
    assert not same.noticed
    assert same.content()["flagged"] == []
    tracks = data.tracks.copy()
    column = data.track_fields.index("lifetimeSignedD0Significance")
    chosen = (np.repeat(data.flavour, data.n_tracks) == 0) & (np.arange(len(tracks)) % 10 == 0)
    tracks[chosen, column] = np.abs(tracks[chosen, column]) + 4.0
    changed = checked(simulator, replace(data, tracks=tracks)).content()
    assert changed["noticed"]
    assert changed["rows"][0]["p_value"] < 1e-3
    assert "only displaced_tracks" in changed["flagged"]
    assert "only tracks" not in changed["flagged"]
    assert 0.01 < changed["error"] < ERROR_MAX


def test_what_the_posterior_allows_is_no_fault_of_the_generator(simulation, make_toy_jets):
    """A detector one standard deviation off is allowed; nobody who is sure of another one allows it."""
    off = NOMINAL.vector()
    off[PARAMETERS.index("efficiency_shift")] -= 0.05
    nominal = make_toy_jets(4000, seed=2, dataset="data")
    data = smear(nominal, SmearingParameters.from_vector(off), collect_donors([nominal], 1), seed=9)
    simulator = Smeared(simulation)
    scale = 0.05 / WIDTHS[PARAMETERS.index("efficiency_shift")]
    sure = checked(simulator, data, known(NOMINAL.vector(), 1e-6)).comparison.rows()[0]["p_value"]
    unsure = checked(simulator, data, known(NOMINAL.vector(), scale)).comparison.rows()[0]["p_value"]
    assert sure < 0.005
    assert unsure > 0.01


def test_what_the_prior_of_the_composition_allows_is_no_fault_either(simulation, make_toy_jets):
    more_b = make_toy_jets(4000, seed=3, dataset="data")
    kept = (more_b.flavour != 0) | (np.arange(len(more_b)) % 10 < 4)
    simulator, data = Unchanged(simulation), more_b.select(kept)
    sure = checked(simulator, data).comparison.rows()[0]["p_value"]
    unsure = checked(simulator, data, relative_width=np.full(4, 0.3)).comparison.rows()[0]["p_value"]
    assert sure < 0.01
    assert unsure > 0.05


def test_the_simulation_of_any_composition_is_given_the_spectrum_of_data(simulation, make_toy_jets):
    data = make_toy_jets(6000, seed=4, dataset="data")
    softer = data.select(np.random.default_rng(1).uniform(size=len(data)) < (220 - data.pt_gev) / 200)
    centre, wanted = Sample.of([simulation]), Sample.of([softer])
    share = np.array([0.1, 0.2, 0.3, 0.4])
    of_flavour = np.bincount(centre.flavour, minlength=4) / len(simulation)
    weight = fit_spectrum(centre, wanted, share)(centre) * (share / of_flavour)[centre.flavour]
    weight /= weight.sum()
    target = wanted.conditions.numpy().mean(axis=0)
    assert weight @ centre.conditions.numpy() == pytest.approx(target, abs=0.01)
    assert abs(centre.conditions.numpy().mean(axis=0) - target)[0] > 0.3


def test_the_error_has_its_closed_form():
    """n equal bins off by ±ε with variance σ²: μ² = ε² - σ²/ν²."""
    nu, epsilon, sigma = 0.2, 0.1, 0.01
    difference = epsilon * nu * np.array([1, -1, 1, -1.0])
    place = np.zeros(4, dtype=np.int64)
    found = Comparison(difference, np.full(4, nu), sigma**2 * np.eye(4), place, place)
    assert found.error == pytest.approx(np.sqrt(epsilon**2 - (sigma / nu) ** 2), rel=1e-9)
    assert found.chi2(found.error) == pytest.approx(4.0)
    assert replace(found, difference=0.4 * difference).error == 0.0
    assert replace(found, difference=100 * difference).error == ERROR_MAX


def test_few_or_no_jets_say_nothing_against_the_generator(simulation, make_toy_jets):
    data = make_toy_jets(1000, seed=2, dataset="data")
    simulator = Unchanged(simulation)
    alone = checked(simulator, data).comparison
    for few in (10, 0):
        nearly_none = checked(simulator, data.select(np.arange(few)))
        assert nearly_none.content() == {
            "rows": [{"region": "all", "quantity": "all", "chi2": 0.0, "ndf": 0, "p_value": 1.0}],
            "noticed": False,
            "error": 0.0,
            "flagged": [],
        }
        # A region that says nothing leaves the others as they are.
        regions = [
            RegionTracks(name, [simulation], [sample], FRACTIONS, FIXED)
            for name, sample in (("few", data.select(np.arange(few))), ("many", data))
        ]
        beside = check_generator(regions, EXACT, simulator)
        assert beside.comparison.chi2() == pytest.approx(alone.chi2(), rel=1e-9)
        assert {row["region"] for row in beside.content()["rows"]} == {"all", "many"}


def test_files_without_momenta_are_compared_in_the_rest(simulation, make_toy_jets):
    def without(jets: Jets) -> Jets:
        kept = [i for i, name in enumerate(jets.track_fields) if name != "qOverP"]
        return replace(
            jets, tracks=jets.tracks[:, kept], track_fields=tuple(jets.track_fields[i] for i in kept)
        )

    data = make_toy_jets(2000, seed=6, dataset="data")
    rows = checked(Unchanged(without(simulation)), without(data)).comparison.rows()
    assert {row["quantity"] for row in rows} == {"all", "tracks", "displaced_tracks", "second_d0"}


def test_every_number_of_tracks_has_a_bin_of_its_own():
    for name, most in (("tracks", 15), ("displaced_tracks", 7)):
        places = np.digitize(np.arange(most + 2), EDGES[name])
        assert places.tolist() == list(range(most + 2))


def test_a_flavour_that_the_simulation_lacks_has_no_share(simulation, make_toy_jets):
    """The composition of the others is that of the region without it: the same p-values."""
    without = simulation.select(simulation.flavour != 3)
    data = make_toy_jets(1500, seed=61, dataset="data")
    data = data.select(data.flavour != 3)
    found = []
    for absent in (0.0, 0.3):
        fractions = np.append((1 - absent) * FRACTIONS[:3] / FRACTIONS[:3].sum(), absent)
        region = RegionTracks("only", [without], [data], fractions, FIXED)
        rows = check_generator([region], EXACT, Unchanged(without)).comparison.rows()
        found.append([row["p_value"] for row in rows])
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert 0 < min(found[0]) <= max(found[0]) < 1
