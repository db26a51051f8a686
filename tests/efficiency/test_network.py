"""The graph network: exact symmetries, order of the working points, and what it does not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.efficiency import event_jets
from selfcal.efficiency.event_jets import batches, nearest_delta_r, padded
from selfcal.efficiency.learning import negative_log_likelihood
from selfcal.efficiency.network import EfficiencyMap, EfficiencyNetwork, NetworkShape

SHAPE = NetworkShape(working_points=3, width=8, layers=2, delta_r_max=1.5)


@pytest.fixture
def network() -> EfficiencyNetwork:
    """Random weights everywhere: nothing is zero by initialisation."""
    torch.manual_seed(5)
    found = EfficiencyNetwork(SHAPE)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return found.double()


@pytest.fixture
def event() -> tuple[torch.Tensor, ...]:
    """Four jets, the third and fourth across φ = ±π; (1, 4) each."""
    columns = ([35.0, 80.0, 50.0, 120.0], [0.1, 0.7, -0.4, -0.2], [0.2, -0.3, 3.1, -3.0])
    kinematics = [torch.tensor([column], dtype=torch.float64) for column in columns]
    return (*kinematics, torch.tensor([[0, 2, 1, 3]]))


def test_jets_in_another_order_have_the_same_efficiencies(network, event):
    order = [2, 0, 3, 1]
    straight = network(*event)[:, order]
    torch.testing.assert_close(network(*(column[:, order] for column in event)), straight, rtol=1e-12, atol=0)


def test_empty_slots_change_nothing(network, event):
    wide = [torch.cat([column, torch.full((1, 3), 9.0 * i)], dim=1) for i, column in enumerate(event[:3])]
    flavour = torch.cat([event[3], torch.full((1, 3), -1)], dim=1)
    torch.testing.assert_close(network(*wide, flavour)[:, :4], network(*event), rtol=1e-12, atol=0)


def test_other_events_of_a_batch_change_nothing(network, event):
    both = [torch.cat([column, column.flip(1)]) for column in event]
    torch.testing.assert_close(network(*both)[:1], network(*event), rtol=1e-12, atol=0)


def test_a_turn_of_the_whole_event_keeps_its_edges(network, event):
    """With φ itself taken out of the jets' features, only differences of φ are left."""
    with torch.no_grad():
        network.embedding.weight[:, 3:5] = 0.0
    pt_gev, eta, phi, flavour = event
    turned = network(pt_gev, eta, phi + 2.9, flavour)
    torch.testing.assert_close(turned, network(*event), rtol=1e-10, atol=0)


def test_jets_beyond_reach_are_not_seen_and_jets_within_are(network, event):
    pt_gev, eta, phi, flavour = event
    reference = network(*event)[0, 0]
    hard = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    # The third jet is 2.9 away from the first and second: no path of two edges reaches them either.
    torch.testing.assert_close(network(pt_gev * hard, eta, phi, flavour)[0, 0], reference, rtol=0, atol=0)
    near = network(pt_gev * hard.roll(-1, 1), eta, phi, flavour)[0, 0]
    assert (near - reference).abs().max() > 1e-3


def test_nothing_jumps_where_a_neighbour_comes_into_reach(network):
    def first(distance: float) -> torch.Tensor:
        eta = torch.tensor([[0.0, distance]], dtype=torch.float64)
        pt_gev = torch.tensor([[40.0, 60.0]], dtype=torch.float64)
        return network(pt_gev, eta, torch.zeros_like(eta), torch.tensor([[0, 2]]))[0, 0]

    torch.testing.assert_close(first(1.5 - 1e-6), first(1.5 + 1e-6), rtol=0, atol=1e-9)
    assert (first(0.5) - first(1.6)).abs().max() > 1e-3


def test_tighter_is_never_more_efficient_for_any_weights(event):
    for seed in range(20):
        torch.manual_seed(seed)
        network = EfficiencyNetwork(SHAPE)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=2.0)
        found = network(*(c.float() for c in event[:3]), event[3])
        assert (found[..., 1:] <= found[..., :-1]).all()
        assert (found >= 0).all()
        assert (found <= 1).all()


def test_the_loss_is_the_likelihood_of_the_tightest_point_passed(network, event):
    """Σ over the outcomes of exp(−loss) is one, and each is the difference of two efficiencies."""
    logits, passing = network.logits(*event), network(*event)
    edges = torch.nn.functional.pad(torch.nn.functional.pad(passing, (1, 0), value=1.0), (0, 1))
    for n in range(4):
        outcome = torch.full(logits.shape[:-1], n)
        likelihood = torch.exp(-negative_log_likelihood(logits, outcome))
        torch.testing.assert_close(likelihood, edges[..., n] - edges[..., n + 1], rtol=1e-9, atol=1e-12)


def test_mean_and_spread_of_bags_and_nothing_for_empty_slots(event):
    torch.manual_seed(2)
    found = EfficiencyMap(SHAPE, 3)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    single = [column.float() for column in event[:3]]
    flavour = event[3].clone()
    flavour[0, 3] = -1
    mean, spread = found(*single, flavour)
    by_bag = torch.stack([bag(*single, flavour) for bag in found.bags])
    torch.testing.assert_close(mean[0, :3], by_bag.mean(0)[0, :3])
    torch.testing.assert_close(spread[0, :3], by_bag.std(0)[0, :3])
    assert mean[0, 3].isnan().all()
    assert spread[0, 3].isnan().all()


def test_padding_brings_every_jet_to_its_slot_and_batches_cover_all_events(make_world):
    jets = make_world(300, 1).jets
    seen = np.concatenate(list(batches(jets, 64, np.random.default_rng(1))))
    assert sorted(seen.tolist()) == list(range(300))
    rows = []
    for events in batches(jets, 64):
        block = padded(jets, events)
        present = block.row >= 0
        rows += block.row[present].tolist()
        np.testing.assert_array_equal(block.pt_gev[present].numpy(), jets.pt_gev[block.row[present]])
        np.testing.assert_array_equal((block.flavour >= 0).numpy(), present.numpy())
        assert (jets.event[block.row[present]] == np.repeat(events, jets.multiplicity[events])).all()
    assert sorted(rows) == list(range(len(jets)))


def test_batches_of_crowded_events_are_cut(monkeypatch, make_world):
    monkeypatch.setattr(event_jets, "PAIRS_MAX", 100)
    jets = make_world(50, 1).jets
    found = list(batches(jets, 30))
    assert all(len(events) * jets.multiplicity[events].max() ** 2 <= 100 for events in found)
    assert sorted(np.concatenate(found).tolist()) == list(range(50))


def test_the_nearest_jet_is_that_of_a_plain_loop(make_world):
    jets = make_world(60, 2).jets
    plain = np.full(len(jets), np.inf)
    for i in range(len(jets)):
        for j in range(len(jets)):
            if i != j and jets.event[i] == jets.event[j]:
                turn = abs(float(jets.phi[i]) - float(jets.phi[j]))
                plain[i] = min(plain[i], np.hypot(jets.eta[i] - jets.eta[j], min(turn, 2 * np.pi - turn)))
    np.testing.assert_allclose(nearest_delta_r(jets), plain, rtol=1e-5)
