"""The penalty of every region, ready to be used: its unit, its noise floor, its own networks trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from selfcal.config.training import JointConfig
from selfcal.data.flavours import B
from selfcal.errors import ConfigError
from selfcal.penalty.choice import build_penalty
from selfcal.penalty.contract import LearntPenalty, Penalty, PenaltySample, null_distances
from selfcal.penalty.expected_variance import BinnedRegion
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.working_points import thresholds
from selfcal.training.constraints import AVERAGE_KEPT
from selfcal.transport.composition import (
    CompositionFit,
    CompositionPrior,
    distance_features,
    penalty_samples,
)
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.sample import Sample

NULL_DRAWS = 24
"""Distances between equal laws from which the noise floor ε_r is taken."""

SCALE_JETS = 2000
"""Jets from which the unit of a region's distance is taken."""

CRITIC_STEPS = 150
"""Steps by which a penalty's own networks are trained before the tagger sees them."""

BIN_EFFICIENCIES = (0.85, 0.77, 0.70, 0.60)
"""Efficiencies of b jets at the inner edges of the bins of the expected variance."""

BIN_SOFTNESS = 0.1
"""Bandwidth of these edges in standard deviations of the discriminant."""

PRIOR_WIDTH_MAX = 1.0
"""A fraction known less well than this relative width counts as known this well, to keep it above zero."""


@dataclass(frozen=True)
class RegionPenalty:
    """The penalty of one region.

    Attributes
    ----------
    unit : by which its values are divided
    floor : ε_r in that unit, as a tensor without gradient
    leading_share : λ_1 of the null distribution in that unit; n D / (2 λ_1) counts like a likelihood
    active : whether the tagger sees it
    """

    penalty: Penalty
    unit: float
    floor: Tensor
    leading_share: float
    active: bool


@dataclass(frozen=True)
class PenaltyInputs:
    """What the penalties are prepared from: the samples with the scores at the start of the stage.

    ``rows`` are positions of every region's jets in simulation and data, ``simulated`` (R, F) the fractions
    of the simulation and ``per_region`` the jets of a minibatch.
    """

    simulation: Sample
    data: Sample
    rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
    simulated: Float[Tensor, "regions flavours"]
    frame: ScoreFrame
    prior: CompositionPrior
    start: CompositionFit
    per_region: int


def prepare_penalties(
    name: str, inputs: PenaltyInputs, config: JointConfig, generator: np.random.Generator
) -> list[RegionPenalty]:
    """The penalty ``name`` in all regions.

    ε_r is the spread which the moving average has for equal laws, plus their mean where a minibatch is
    biased; both from halves of the region's data (of its simulation, where flavours are needed).

    Raises
    ------
    ConfigError
        If the penalty needs a pure region and there is none.
    DataError
        If the penalty cannot take the weights of a region.
    """
    purity = inputs.prior.fractions.max(1).values
    result = []
    for region in range(len(inputs.rows)):
        points = distance_features(inputs.data.rows(torch.from_numpy(inputs.rows[region][1][:1])))
        penalty = build_penalty(name, points.shape[1], _binned_region(inputs, region))
        active = not penalty.pure_regions_only or bool(purity[region] >= config.purity_min)
        if isinstance(penalty, LearntPenalty) and active:
            _train_critic(penalty, inputs, region, config, generator)
        result.append(_measured(penalty, inputs, region, active, generator))
    if not any(one.active for one in result):
        raise ConfigError(
            f"penalty '{name}' needs a region with one flavour of fraction {config.purity_min:g} or more; "
            f"the purest has {float(purity.max()):.2f}",
            where="calibration.joint.purity_min",
            fix="lower it, or choose another penalty",
        )
    return result


def region_pair(
    inputs: PenaltyInputs, region: int, generator: np.random.Generator
) -> tuple[PenaltySample, PenaltySample]:
    """A random minibatch of one region with the scores, maps and fractions of the start."""
    sim, obs = (
        torch.from_numpy(generator.choice(rows, min(inputs.per_region, len(rows)), replace=False))
        for rows in inputs.rows[region]
    )
    ratio = inputs.start.fractions[region] / inputs.simulated[region].clamp_min(1e-9)
    with torch.no_grad():
        return penalty_samples(inputs.simulation.rows(sim), inputs.data.rows(obs), inputs.start.maps, ratio)


def _train_critic(
    penalty: LearntPenalty,
    inputs: PenaltyInputs,
    region: int,
    config: JointConfig,
    generator: np.random.Generator,
) -> None:
    optimiser = torch.optim.Adam(penalty.parameters(), lr=config.critic_learning_rate)
    for _ in range(CRITIC_STEPS):
        optimiser.zero_grad()
        loss = penalty.critic_loss(*region_pair(inputs, region, generator))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(penalty.parameters(), 5.0)
        optimiser.step()


def _measured(
    penalty: Penalty, inputs: PenaltyInputs, region: int, active: bool, generator: np.random.Generator
) -> RegionPenalty:
    simulated, observed = (torch.from_numpy(rows) for rows in inputs.rows[region])
    data = inputs.data.rows(observed)
    sample = PenaltySample(distance_features(data), data.weight)
    if penalty.needs_flavours:
        labelled = inputs.simulation.rows(simulated)
        equal = PenaltySample(distance_features(labelled), labelled.weight, labelled.flavour)
    else:
        equal = sample
    draws = null_distances(penalty, equal, inputs.per_region, NULL_DRAWS, generator)
    some = torch.from_numpy(
        generator.choice(len(sample.weight), min(SCALE_JETS, len(sample.weight)), replace=False)
    )
    unit = penalty.scale(sample.rows(some))
    floor = draws.std() * ((1 - AVERAGE_KEPT) / (1 + AVERAGE_KEPT)) ** 0.5 / unit
    if not penalty.unbiased:
        floor = floor + draws.mean() / unit
    if not penalty.has_floor:
        floor = torch.zeros_like(floor)
    share = penalty.leading_share
    if share is None:
        # Var(n D) = 2 Σλ² for halves of n = size/2: at least the leading λ, so nothing counts too much.
        half = min(inputs.per_region, len(equal.weight) // 2)
        share = float(draws.std()) * 0.5 * half / 2**0.5 / unit
    return RegionPenalty(penalty, unit, floor, share, active)


def _binned_region(inputs: PenaltyInputs, region: int) -> BinnedRegion:
    """Bins of D_b at fixed efficiencies of all simulated b jets, with the scores at the start."""
    coordinates = inputs.simulation.coordinates.shape[1]

    def axis(points: Tensor) -> Tensor:
        return discriminant_b(inputs.frame.leave(points[:, :coordinates]))

    d_b = axis(inputs.simulation.coordinates)
    b = inputs.simulation.flavour == B
    edges = thresholds(d_b[b].numpy(), inputs.simulation.weight[b].numpy(), BIN_EFFICIENCIES)
    data = inputs.data.weight[torch.from_numpy(inputs.rows[region][1])]
    return BinnedRegion(
        axis=axis,
        edges=torch.from_numpy(edges),
        bandwidth=BIN_SOFTNESS * float(d_b.std()),
        prior_width=(inputs.prior.uncertainty[region] / inputs.prior.fractions[region]).clamp_max(
            PRIOR_WIDTH_MAX
        ),
        expected_jets=float(data.sum()),
    )
