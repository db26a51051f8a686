"""How the network of one bag learns: maximum likelihood on resampled events, stopped by those left out.

A jet that passes n of K working points has

    −ln L = −Σ_{l < n} ln σ(a_l) − [n < K] ln(1 − σ(a_n)),

the exact likelihood of the tightest working point it passes. A bag counts every event as often as a Poisson
law of mean one says; about 37 % of the events count zero times, and the epoch with the lowest loss on them
is kept.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selfcal.config.efficiency_map import EfficiencyMapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.efficiency.event_jets import EventJets, batches, padded
from selfcal.efficiency.network import EfficiencyNetwork, NetworkShape

WEIGHT_DECAY = 1e-4


def negative_log_likelihood(
    logits: Float[Tensor, "*jets points"], passed: Int64[Tensor, "*jets"]
) -> Float[Tensor, "*jets"]:
    """−ln L of each jet, by the formula above."""
    place = torch.arange(logits.shape[-1])
    beyond = passed[..., None]
    passes = torch.where(place < beyond, torch.nn.functional.softplus(-logits), 0.0)
    fails = torch.where(place == beyond, torch.nn.functional.softplus(logits), 0.0)
    return (passes + fails).sum(dim=-1)


def learn_bag(
    jets: EventJets, shape: NetworkShape, config: EfficiencyMapConfig, seed: int
) -> EfficiencyNetwork:
    """The network of the bag that ``seed`` draws, in evaluation mode."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(1.0, jets.n_events)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = EfficiencyNetwork(shape)
    taught, left_out = jets.events(count > 0), jets.events(count == 0)
    weight = taught.weight * count[count > 0][taught.event]
    set_flavour_bias(network, taught, weight)
    steps = config.epochs * -(-taught.n_events // config.batch_events)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps + 1)
    mean_weight = float(np.abs(weight).mean())
    best, best_state = mean_loss(network, left_out), copy.deepcopy(network.state_dict())
    for _ in range(config.epochs):
        for events in batches(taught, config.batch_events, rng):
            optimiser.zero_grad()
            loss, _ = summed_loss(network, taught, weight, events)
            (loss / (mean_weight * len(events))).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        reached = mean_loss(network, left_out)
        if reached < best:
            best, best_state = reached, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    return network.eval()


def summed_loss(
    network: EfficiencyNetwork, jets: EventJets, weight: np.ndarray, events: np.ndarray
) -> tuple[Tensor, float]:
    """Weighted −ln L of the events, and the sum of weights."""
    block = padded(jets, events)
    present = block.row >= 0
    rows = block.row[present]
    own = torch.from_numpy(weight)[rows]
    found = negative_log_likelihood(
        network.logits(*block.inputs)[present], torch.from_numpy(jets.passed)[rows]
    )
    return (found * own.to(found.dtype)).sum(), float(own.sum())


@torch.no_grad()
def mean_loss(network: EfficiencyNetwork, jets: EventJets, batch_events: int = 2048) -> float:
    """−ln L per weight; infinite without jets of positive weight, so that nothing is chosen by it."""
    total, weight = 0.0, 0.0
    for events in batches(jets, batch_events):
        loss, own = summed_loss(network, jets, jets.weight, events)
        total, weight = total + float(loss), weight + own
    return total / weight if weight > 0 else float("inf")


def set_flavour_bias(network: EfficiencyNetwork, jets: EventJets, weight: np.ndarray) -> None:
    """g_flavour from the mean efficiencies: a network that has learnt nothing gives these."""
    points = network.shape.working_points
    bias = np.zeros((len(FLAVOURS), points))
    for flavour in range(len(FLAVOURS)):
        own = jets.flavour == flavour
        reached = np.array([weight[own & (jets.passed >= k)].sum() for k in range(points + 1)]).clip(min=0.0)
        # Half a jet on both sides keeps the logarithm finite.
        bias[flavour] = np.log((reached[1:] + 0.5) / ((reached[:-1] - reached[1:]).clip(min=0.0) + 0.5))
    with torch.no_grad():
        network.flavour_bias.copy_(torch.from_numpy(bias))
