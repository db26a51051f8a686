"""pT bins chosen by the uncertainty they give: closed forms and toys."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.run import FitConfig, TaggerConfig
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.likelihood.build import MeasureFold, with_target_uncertainty
from selfcal.likelihood.pt_binning import expected_uncertainty, merged_pt_edges
from selfcal.likelihood.templates import Binning

EDGES = (20.0, 30.0, 40.0, 60.0, 100.0, 250.0)


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
    assert merged_pt_edges(EDGES, jets, passing, {"b": 0.01}) == (20.0, 40.0, 250.0)
    assert merged_pt_edges(EDGES, jets, passing, {"b": 0.0145}) == EDGES


def test_every_flavour_must_reach_its_target() -> None:
    jets = {"b": np.full(5, 5000.0), "c": np.array([100.0, 100.0, 5000.0, 5000.0, 5000.0])}
    passing = {name: 0.5 * count for name, count in jets.items()}
    found = merged_pt_edges(EDGES, jets, passing, {"b": 0.0145, "c": 0.02})
    assert found == (20.0, 60.0, 100.0, 250.0)


def test_a_target_out_of_reach_is_refused_with_what_can_be_had() -> None:
    jets, passing = {"b": np.full(5, 20.0)}, {"b": np.full(5, 10.0)}
    with pytest.raises(ConfigError, match="no pT binning reaches") as caught:
        merged_pt_edges(EDGES, jets, passing, {"b": 0.01})
    assert "0.1" in str(caught.value.expected)


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
        counts = binning.count(simulation.pt_gev, discriminant, simulation.weight) * count / 20000
        assert (expected_uncertainty(counts.sum(1), counts[:, -1]) <= 0.04).all()
        numbers.append(binning.n_pt)
    assert 1 < numbers[0] < numbers[1]


def test_a_flavour_without_region_cannot_have_a_target() -> None:
    jets = b_jets(100, "simulation")
    fold = MeasureFold(
        {"ttbar_emu": jets}, {"ttbar_emu": jets}, Binning(EDGES, (0.0,), (0.7,)), TaggerConfig()
    )
    with pytest.raises(ConfigError, match="no reference region for flavour 'c'"):
        with_target_uncertainty(fold, FitConfig(target_uncertainty={"c": 0.1}))
