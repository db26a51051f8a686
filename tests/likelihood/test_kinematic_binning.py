"""pT and |eta| bins chosen by the uncertainty they give: closed forms and toys."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.export.rows import Place, ScaleFactorRows
from selfcal.likelihood.build import MeasureFold, with_target_uncertainty
from selfcal.likelihood.identifiability import describe
from selfcal.likelihood.kinematic_binning import expected_uncertainty, merged_edges
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Binning

EDGES = (20.0, 30.0, 40.0, 60.0, 100.0, 250.0)
ETA = (0.0, 2.5)


def in_one_eta_bin(jets, passing, target) -> tuple[float, ...]:
    grids = [{name: counts[:, None] for name, counts in part.items()} for part in (jets, passing)]
    found, eta = merged_edges(EDGES, ETA, *grids, target)
    assert eta == ETA
    return found


def test_the_expected_uncertainty_is_that_of_binomial_toys() -> None:
    random = np.random.default_rng(1)
    shares = random.binomial(900, 0.36, size=20000) / 900
    expected = float(expected_uncertainty(np.asarray(900.0), np.asarray(324.0)))
    assert shares.std() / 0.36 == pytest.approx(expected, rel=0.02)
    assert np.isinf(expected_uncertainty(np.array([10.0]), np.array([0.0]))).all()


def test_equal_bins_merge_to_the_number_of_jets_that_is_needed() -> None:
    """ε = ½ and 1 %: N = 10⁴ jets, two bins of 5,000; what is left joins the last bin."""
    jets = {"b": np.full(5, 5000.0)}
    passing = {"b": np.full(5, 2500.0)}
    assert in_one_eta_bin(jets, passing, {"b": 0.01}) == (20.0, 40.0, 250.0)
    assert in_one_eta_bin(jets, passing, {"b": 0.0145}) == EDGES


def test_every_flavour_must_reach_its_target() -> None:
    jets = {"b": np.full(5, 5000.0), "c": np.array([100.0, 100.0, 5000.0, 5000.0, 5000.0])}
    passing = {name: 0.5 * count for name, count in jets.items()}
    found = in_one_eta_bin(jets, passing, {"b": 0.0145, "c": 0.02})
    assert found == (20.0, 60.0, 100.0, 250.0)


def test_a_target_out_of_reach_is_refused_with_what_can_be_had() -> None:
    jets, passing = {"b": np.full(5, 20.0)}, {"b": np.full(5, 10.0)}
    with pytest.raises(ConfigError, match="no binning reaches") as caught:
        in_one_eta_bin(jets, passing, {"b": 0.01})
    assert "0.1" in str(caught.value.expected)


def test_bins_of_abs_eta_are_merged_where_the_jets_do_not_suffice() -> None:
    """ε = ½ and 2.6 %: 1,500 jets per bin. Of 8 × 1,000 jets that is four bins: in pT if that can be had."""
    pt, eta = (20.0, 30.0, 50.0, 80.0, 250.0), (0.0, 1.2, 2.5)
    jets = {"b": np.full((4, 2), 1000.0)}
    passing = {"b": 0.5 * jets["b"]}
    assert merged_edges(pt, eta, jets, passing, {"b": 0.026}) == (pt, (0.0, 2.5))
    assert merged_edges(pt, eta, jets, passing, {"b": 0.033}) == (pt, eta)
    # 4,000 jets at low pT, 100 at high pT: only a division in |eta| gives two bins of 1,500.
    jets["b"] = np.array([[2000.0, 2000.0], [50.0, 50.0], [50.0, 50.0], [50.0, 50.0]])
    passing["b"] = 0.5 * jets["b"]
    assert merged_edges(pt, eta, jets, passing, {"b": 0.026}) == ((20.0, 250.0), eta)


def test_left_over_jets_that_do_not_pass_never_spoil_the_last_bin() -> None:
    jets = {"b": np.array([[1000.0], [1000.0], [5000.0]])}
    passing = {"b": np.array([[500.0], [500.0], [0.0]])}
    limit = float(expected_uncertainty(np.asarray(1000.0), np.asarray(500.0)))
    edges = (20.0, 30.0, 40.0, 250.0)
    assert merged_edges(edges, ETA, jets, passing, {"b": limit}) == ((20.0, 250.0), ETA)


def b_jets(count: int, role: str) -> ScoredJets:
    random = np.random.default_rng(5)
    logits = np.zeros((count, 4))
    logits[:, 0] = random.normal(1.0, 2.0, count)
    return ScoredJets(
        "ttbar_emu",
        logits - np.log(np.exp(logits).sum(1, keepdims=True)),
        20 + random.exponential(50, count) % 230,
        np.zeros(count),
        np.full(count, 0 if role == "simulation" else -1, dtype=np.int8),
        np.ones(count),
        np.zeros(count, dtype=np.int8),
        np.arange(count),
    )


def test_more_data_give_more_bins_and_each_reaches_the_target() -> None:
    fine = Binning(tuple(float(edge) for edge in range(20, 251, 10)), (0.0, 2.0), (0.7, 0.4))
    simulation = b_jets(20000, "simulation")
    config = FitConfig(target_uncertainty={"b": 0.04})
    numbers = []
    for count in (4000, 12000):
        data = b_jets(count, "data")
        fold = MeasureFold({"ttbar_emu": simulation}, {"ttbar_emu": data}, fine, TaggerConfig())
        binning = with_target_uncertainty(fold, config).binning
        assert set(binning.pt_gev_edges) <= set(fine.pt_gev_edges)
        discriminant = fold.discriminant(simulation)
        counts = binning.count(simulation.pt_gev, simulation.abs_eta, discriminant, simulation.weight)
        counts *= count / 20000
        assert (expected_uncertainty(counts.sum(1), counts[:, -1]) <= 0.04).all()
        numbers.append(binning.n_pt)
    assert 1 < numbers[0] < numbers[1]


def test_jets_are_counted_in_both_and_every_bin_is_a_scale_factor_of_its_own(one_flavour) -> None:
    """A free shape of b jets alone: each scale factor is the data's share over the simulation's."""
    binning = Binning((20.0, 60.0, 250.0), (0.0, 1.0, 2.0, 3.0), (0.8, 0.6, 0.4, 0.2), (0.0, 1.0, 2.5))
    random = np.random.default_rng(3)
    pt, eta, d_b = random.uniform(10, 300, 20000), random.uniform(0, 3, 20000), random.normal(1, 2, 20000)
    counts = binning.count(pt, eta, d_b, np.ones(20000))
    axes = [binning.pt_gev_edges, binning.abs_eta_edges, (-np.inf, *binning.discriminant_edges, np.inf)]
    direct, _ = np.histogramdd(np.stack([pt, eta, d_b], axis=1), axes)
    np.testing.assert_array_equal(counts, direct.reshape(4, 5))
    shape = np.full(5, 0.2)
    one = one_flavour(counts[0], shape)
    grid = np.zeros((1, 4, 4, 5))
    grid[0, 0] = 1e9 * shape
    templates = replace(
        one,
        binning=binning,
        data=counts[None],
        replicas=np.stack([grid, grid]),
        **dict.fromkeys(("nominal", "nominal_variance", "calibrated", "calibrated_variance"), grid),
    )
    config = FitConfig(free_flavours=("b",), pt_shape_width=3.0)
    measured = measure(templates, config)
    rows = ScaleFactorRows(as_json(measured.factors, measured.layout, "SelfCal"))
    for p, row in itertools.product(range(4), range(5)):
        place = Place("b", p // 2, p % 2, bin=row)
        expected = counts[p, row] / counts[p].sum() / shape[row]
        assert rows.at(place)["value"] == pytest.approx(expected, rel=1e-5)
    assert measured.layout.channel(0, 3) == "ttbar_emu_pt1_eta1"
    assert describe("shape_b_3[0]", binning) == "b shape in pT 60–250 GeV, |η| 1–2.5"


def test_a_flavour_without_region_cannot_have_a_target() -> None:
    jets = b_jets(100, "simulation")
    fold = MeasureFold(
        {"ttbar_emu": jets}, {"ttbar_emu": jets}, Binning(EDGES, (0.0,), (0.7,)), TaggerConfig()
    )
    with pytest.raises(ConfigError, match="no reference region for flavour 'c'"):
        with_target_uncertainty(fold, FitConfig(target_uncertainty={"c": 0.1}))


def test_less_than_one_expected_jet_has_a_finite_uncertainty() -> None:
    found = expected_uncertainty(np.array([2.0]), np.array([0.5]))
    assert found[0] == pytest.approx(np.sqrt(1.5 / (2.0 * 0.5)))
