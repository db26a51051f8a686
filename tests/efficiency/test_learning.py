"""What is learnt where the efficiencies are known: the network finds them, a two-dimensional map cannot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats

from selfcal.config.efficiency_map import EfficiencyMapConfig
from selfcal.efficiency.closure import chi2_rows, closure_rows, judge
from selfcal.efficiency.event_jets import EventJets, nearest_delta_r
from selfcal.efficiency.grid import Grid, GridMap, learn_grid, passing, projected
from selfcal.efficiency.learning import learn_bag, set_flavour_bias
from selfcal.efficiency.network import EfficiencyMap, EfficiencyNetwork, NetworkShape
from selfcal.efficiency.prediction import LearntEfficiencies, load_efficiencies, save_efficiencies
from selfcal.errors import DataError
from selfcal.run.atomic import read_json, write_json

CONFIG = EfficiencyMapConfig(width=16, layers=1, bags=5, epochs=10, batch_events=128)
SHAPE = NetworkShape(2, CONFIG.width, CONFIG.layers, CONFIG.delta_r_max)
POINTS = (0.85, 0.6)


@dataclass(frozen=True)
class Learnt:
    """Map and grid from one sample, and another sample with what the map says of it."""

    map: LearntEfficiencies
    grid: GridMap
    taught: EventJets
    jets: EventJets
    truth: np.ndarray
    by_bag: np.ndarray


@pytest.fixture(scope="module")
def learnt(make_world) -> Learnt:
    taught, judged = make_world(6000, 3).jets, make_world(3000, 4)
    found = EfficiencyMap(SHAPE, CONFIG.bags)
    for b in range(CONFIG.bags):
        found.bags[b] = learn_bag(taught, SHAPE, CONFIG, seed=b)
    efficiencies = LearntEfficiencies(found.eval(), "toy", "nominal", POINTS, (0.0, 1.0))
    grid = learn_grid(Grid(CONFIG.pt_gev_edges, CONFIG.abs_eta_edges), taught, 2)
    return Learnt(efficiencies, grid, taught, judged.jets, judged.truth, efficiencies.of_bags(judged.jets))


def test_the_network_recovers_the_dependence_on_the_nearest_jet_and_a_grid_does_not(learnt):
    mean = learnt.by_bag.mean(axis=0)
    of_grid = learnt.grid.efficiency[learnt.grid.grid.cell(learnt.jets)]
    distance = nearest_delta_r(learnt.jets)
    b_jets = learnt.jets.flavour == 0
    for low, high in ((0.2, 0.4), (0.4, 0.7), (0.7, 1.0), (1.0, 5.0)):
        own = b_jets & (distance >= low) & (distance < high)
        truth = learnt.truth[own, 0].mean()
        assert mean[own, 0].mean() == pytest.approx(truth, abs=0.05)
    close = b_jets & (distance < 0.4)
    assert of_grid[close, 0].mean() > learnt.truth[close, 0].mean() + 0.15

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(((found - learnt.truth) ** 2).mean()))

    assert error(mean) < 0.4 * error(of_grid)


def test_closure_in_the_distance_finds_the_grid_and_passes_the_network(learnt):
    judged = judge(learnt.jets, learnt.map, learnt.grid, CONFIG)
    rows = [{"region": "r", "held_out": False, **row} for row in closure_rows(judged, POINTS, learnt.grid)]
    verdicts = {(v["flavour"], v["working_point"], v["variable"]): v for v in chi2_rows(rows)}
    assert verdicts["b", 0.85, "delta_r"]["grid_p_value"] < 1e-8
    assert verdicts["b", 0.85, "delta_r"]["network_p_value"] > 1e-3
    # In the variables of the grid itself both close.
    for variable in ("pt_gev", "abs_eta"):
        assert verdicts["b", 0.85, variable]["grid_p_value"] > 1e-4
        assert verdicts["b", 0.85, variable]["network_p_value"] > 1e-4
    for row in rows:
        if row["variable"] == "delta_r" and row["flavour"] == "b" and row["low"] == 2.5:
            assert row["high"] is None
    counted = sum(r["passing"] for r in rows if r["variable"] == "delta_r" and r["working_point"] == 0.6)
    assert counted == passing(learnt.jets, 2)[:, 1].sum()


def test_the_bands_cover(learnt):
    """The spread of bags knows sampling and initialisation, not what all networks have in common."""
    mean, spread = learnt.by_bag.mean(axis=0), learnt.by_bag.std(axis=0, ddof=1)
    pull = np.abs(mean - learnt.truth) / spread
    # A standard deviation from few bags is uncertain itself: Student's quantiles, not the normal ones.
    one, two = stats.t.ppf([0.8413, 0.9772], CONFIG.bags - 1)
    assert 0.55 < (pull < one).mean() < 0.9
    assert (pull < two).mean() > 0.88
    # Nor are they wider than the differences between single bags and the truth.
    single = np.sqrt(((learnt.by_bag - learnt.truth) ** 2).mean())
    assert np.sqrt((spread**2).mean()) < single


def test_a_bag_is_its_seed_and_touches_no_other_random_number(make_world):
    jets = make_world(200, 1).jets
    config = replace_config(epochs=1)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one, again, other = (learn_bag(jets, SHAPE, config, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def replace_config(**changes: int) -> EfficiencyMapConfig:
    return CONFIG.model_copy(update=changes)


def test_a_network_that_has_learnt_nothing_gives_the_mean_efficiencies(make_world):
    jets = make_world(2000, 6).jets
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(jets))
    network = EfficiencyNetwork(SHAPE)
    set_flavour_bias(network, jets, weight)
    found = LearntEfficiencies(as_map(network), "t", "nominal", POINTS, (0.0, 1.0)).of_bags(jets)[0]
    for flavour in range(4):
        own = jets.flavour == flavour
        mean = (weight[own, None] * passing(jets, 2)[own]).sum(axis=0) / weight[own].sum()
        np.testing.assert_allclose(found[own], np.broadcast_to(mean, found[own].shape), atol=2e-3)


def as_map(network: EfficiencyNetwork) -> EfficiencyMap:
    found = EfficiencyMap(network.shape, 1)
    found.bags[0] = network
    return found.eval()


def test_efficiencies_of_jets_in_any_order_and_company(learnt):
    jets = learnt.jets.events(np.arange(learnt.jets.n_events) < 50)
    kinematics = (jets.pt_gev, jets.eta, jets.phi, jets.flavour)
    value, band = learnt.map.efficiencies(*kinematics, jets.event)
    np.testing.assert_allclose(value, learnt.by_bag[:, : len(jets)].mean(axis=0), atol=1e-6)
    order = np.random.default_rng(1).permutation(len(jets))
    # Numbers of events are names: any will do.
    shuffled = learnt.map.efficiencies(*(column[order] for column in kinematics), -7 * jets.event[order])
    np.testing.assert_allclose(shuffled[0], value[order], atol=1e-6)
    np.testing.assert_allclose(shuffled[1], band[order], atol=1e-6)
    assert (value[:, 1] <= value[:, 0]).all()
    with pytest.raises(DataError, match="without efficiency"):
        learnt.map.efficiencies(jets.pt_gev, jets.eta, jets.phi * np.nan, jets.flavour, jets.event)
    with pytest.raises(DataError, match="without efficiency"):
        learnt.map.efficiencies(*kinematics[:3], jets.flavour - 1, jets.event)


def test_files_give_the_same_map_and_damage_is_noticed(learnt, tmp_path):
    save_efficiencies(tmp_path, learnt.map)
    again = load_efficiencies(tmp_path)
    assert again.working_points == POINTS
    np.testing.assert_array_equal(again.of_bags(learnt.jets), learnt.by_bag)
    content = read_json(tmp_path / "network.json")
    content["shape"]["width"] = 8
    write_json(tmp_path / "network.json", content)
    with pytest.raises(DataError, match="damaged"):
        load_efficiencies(tmp_path)


def test_the_grid_is_a_ratio_of_sums_of_weights(make_world):
    jets = make_world(400, 8).jets
    jets = replace(jets, weight=np.random.default_rng(2).uniform(-0.2, 2.0, len(jets)))
    found = learn_grid(Grid((20.0, 50.0, 250.0), (0.0, 0.8, 2.5)), jets, 2)
    for cell in range(found.grid.size):
        flavour, pt_bin, eta_bin = found.grid.place(cell)
        own = (jets.flavour == flavour) & ((jets.pt_gev >= 50) == bool(pt_bin))
        own &= (np.abs(jets.eta) >= 0.8) == bool(eta_bin)
        assert found.jets[cell] == own.sum()
        assert (found.grid.cell(jets)[own] == cell).all()
        for k in range(2):
            weight = jets.weight[own]
            share = weight[jets.passed[own] > k].sum() / weight.sum()
            assert found.efficiency[cell, k] == pytest.approx(share)
            variance = max(share * (1 - share), 0) * (weight**2).sum() / weight.sum() ** 2
            assert found.variance[cell, k] == pytest.approx(variance)


def test_the_projection_of_what_passed_is_the_grid(make_world):
    jets = make_world(500, 9).jets
    grid = Grid((20.0, 60.0, 250.0), (0.0, 2.5))
    mean, spread = projected(grid, jets, np.stack([passing(jets, 2)] * 3).astype(np.float32))
    np.testing.assert_allclose(mean, learn_grid(grid, jets, 2).efficiency, atol=1e-6)
    np.testing.assert_allclose(spread, 0.0, atol=1e-12)
