"""Flavour fractions of every region from the bulk of the scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfcal.config.calibration import CompositionConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.penalty.choice import DISTANCES
from selfcal.penalty.contract import Penalty, PenaltySample, null_distances
from selfcal.penalty.energy import LEADING_SHARE, mean_distance_within
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.averaged_descent import DistanceSchedule, averaged_descent
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.exact_fractions import exact_fractions, mixture_distance
from selfcal.transport.kinematics import kinematic_weights
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.pt_fractions import (
    PtShape,
    exact_spline,
    hat_functions,
    knots_of,
    spline_distance,
)
from selfcal.transport.sample import Sample, joined, simulated_fractions

CONDITION_LENGTH = 0.5
"""A unit of the condition features counts as half a standard deviation of the scores."""


NULL_DRAWS = 30
"""Pairs of halves of the data that say what a distance is for equal laws."""


@dataclass(frozen=True)
class CompositionPrior:
    """Gaussian prior of the fractions, each (R, F)."""

    fractions: Float[Tensor, "regions flavours"]
    uncertainty: Float[Tensor, "regions flavours"]


class Composition(nn.Module):
    """Fractions π_rf = softmax_f(ln π0_rf + a_rf) with free a, zero when new."""

    def __init__(self, start: Float[Tensor, "regions flavours"]) -> None:
        super().__init__()
        self.register_buffer("log_start", start.clamp_min(1e-6).log())
        self.offset = nn.Parameter(torch.zeros_like(start))

    def forward(self) -> Float[Tensor, "regions flavours"]:
        start: Tensor = self.get_buffer("log_start")
        return torch.softmax(start + self.offset, dim=1)


def prior_cost(fractions: Float[Tensor, "regions flavours"], prior: CompositionPrior) -> Float[Tensor, ""]:
    """½ Σ ((π - π0) / σ)²."""
    return 0.5 * ((fractions - prior.fractions) / prior.uncertainty).square().sum()


def distance_features(sample: Sample) -> Float[Tensor, "jets features"]:
    """Scores and conditions side by side: the space in which region and simulation are compared."""
    return torch.cat([sample.coordinates, CONDITION_LENGTH * sample.conditions], dim=1)


@dataclass(frozen=True)
class PtSpline:
    """How far fractions may vary with pT: the number of knots, and the width of a step between neighbours."""

    knots: int
    variation: float


@dataclass(frozen=True)
class CompositionFit:
    """Fitted fractions (R, F), the stiff maps fitted with them, and how the fractions vary with pT.

    The maps move scores and separators together.
    """

    fractions: Float[Tensor, "regions flavours"]
    maps: FlavourMaps
    pt_shape: PtShape | None = None

    def score_maps(self, coordinates: int) -> FlavourMaps:
        """The stiff maps of the scores alone, the first ``coordinates``, which depend on no separator."""
        own = []
        for index in range(len(FLAVOURS)):
            stiff = self.maps.of(index)
            assert isinstance(stiff, AffineMap)
            own.append(stiff.leading(coordinates))
        parts = iter(own)
        return FlavourMaps(lambda: next(parts)).requires_grad_(requires_grad=False)


def penalty_samples(
    simulation: Sample,
    data: Sample,
    maps: FlavourMaps,
    ratio: Float[Tensor, " flavours"],
) -> tuple[PenaltySample, PenaltySample]:
    """Transported simulation and data of one region as a penalty sees them.

    Simulated jets of flavour f count by their weight times ``ratio[f]`` = π_f / π_f(simulation).
    """
    moved = maps(simulation.coordinates, simulation.flavour, simulation.conditions)
    x = torch.cat([moved, CONDITION_LENGTH * simulation.conditions], dim=1)
    weight = simulation.weight * ratio[simulation.flavour]
    return PenaltySample(x, weight, simulation.flavour), PenaltySample(distance_features(data), data.weight)


def region_distance(
    simulation: Sample,
    data: Sample,
    maps: FlavourMaps,
    ratio: Float[Tensor, " flavours"],
    penalty: Penalty,
) -> Float[Tensor, ""]:
    """``penalty`` of one region between transported simulation and data; see :func:`penalty_samples`."""
    distance: Tensor = penalty(*penalty_samples(simulation, data, maps, ratio))
    return distance


def _minibatch(sample: Sample, size: int, generator: torch.Generator) -> Sample:
    if len(sample) <= size:
        return sample
    return sample.rows(torch.randperm(len(sample), generator=generator)[:size])


def _with_data_kinematics(simulation: Sample, data: Sample, regions: int) -> list[tuple[Sample, Sample]]:
    pairs = []
    for region in range(regions):
        sim, obs = simulation.in_region(region), data.in_region(region)
        factor = kinematic_weights(sim.conditions, obs.conditions, sim.weight, obs.weight)
        weighted = sim.weighted(factor)
        pairs.append((weighted.rows(weighted.weight != 0), obs.rows(obs.weight != 0)))
    return pairs


def fit_composition(
    simulation: Sample,
    data: Sample,
    prior: CompositionPrior,
    config: CompositionConfig,
    generator: torch.Generator,
    start: CompositionFit | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> CompositionFit:
    """Fractions and a stiff affine map per flavour by :func:`fit_by_distance`.

    The distance lives in the bulk, where a map cannot trade one flavour for another. Separators of the
    samples are coordinates of it like the scores.
    Raises FitError if the fractions of a region do not converge.
    """
    simulation, data = simulation.widened(), data.widened()
    maps = FlavourMaps(lambda: AffineMap(simulation.coordinates.shape[1], CONDITIONS, config.map_scale))
    if start is not None:
        maps.load_state_dict(start.maps.state_dict())
    schedule = DistanceSchedule(
        config.steps if steps is None else steps, config.batch_size, config.learning_rate
    )
    return fit_by_distance(
        simulation,
        data,
        prior,
        maps,
        None if start is None else start.fractions,
        schedule,
        generator,
        progress=progress,
        spline=None if config.pt_knots == 1 else PtSpline(config.pt_knots, config.pt_variation),
        shape=None if start is None else start.pt_shape,
    )


def fit_by_distance(
    simulation: Sample,
    data: Sample,
    prior: CompositionPrior,
    maps: FlavourMaps,
    start: Float[Tensor, "regions flavours"] | None,
    schedule: DistanceSchedule,
    generator: torch.Generator,
    displacement_price: float = 0.0,
    progress: Callable[[int], None] = lambda _: None,
    spline: PtSpline | None = None,
    shape: PtShape | None = None,
    distance: str = "energy",
) -> CompositionFit:
    """Fractions and ``maps``, changed in place, by the energy distance or, for the maps, another one.

    Minimises

        Σ_r n_r D_r / (2 s E_r) + ½ Σ ((π - π0)/σ)² + stiffness(T) + price Σ_f E_f |T_f u - u|²

    with D_r the energy distance of region r after kinematic reweighting, n_r = N M / (N + M) of the
    effective sample sizes, E_r = E|Y - Y'| the expectation of n_r D_r when both laws are equal, and
    s = ``LEADING_SHARE``; other distances are taken in units in which they cost as much for equal laws
    (:func:`cost_of_distance`). The maps are the average over the second half of the steps; with them the
    fractions are found without minibatches (:mod:`selfcal.transport.exact_fractions`). Without
    fractions to ``start`` from, they too are found so at first. With a ``spline`` the fractions vary with pT
    (:mod:`selfcal.transport.pt_fractions`): as ``shape`` says while the maps are fitted, or, without, as was
    found at first.

    Raises
    ------
    FitError
        If the fractions of a region do not converge.
    """
    regions = len(prior.fractions)
    pairs = _with_data_kinematics(simulation, data, regions)
    simulated = simulated_fractions(joined([sim for sim, _ in pairs]), regions)
    scales: list[float] = []
    sizes: list[float] = []
    for sim, obs in pairs:
        size = (
            _effective(sim.weight)
            * _effective(obs.weight)
            / (_effective(sim.weight) + _effective(obs.weight))
        )
        sizes.append(size)
        some = _minibatch(obs, 1000, generator)
        scales.append(
            0.5 * size / LEADING_SHARE / float(mean_distance_within(distance_features(some), some.weight))
        )
    # Maps that learn beside wrong fractions would make them up: both start at the fractions' minimum.
    if start is None:
        start, shape = _exact(pairs, maps, prior, scales, generator, spline)
    composition = Composition(start)
    shaped = pairs if shape is None else [(shape.weighted(sim), obs) for sim, obs in pairs]

    penalty = DISTANCES[distance](data.coordinates.shape[1] + data.conditions.shape[1])
    prices = scales
    if distance != "energy":
        prices = [
            cost_of_distance(penalty, obs, size, schedule.batch_size, generator)
            for (_, obs), size in zip(pairs, sizes, strict=True)
        ]

    def loss() -> Tensor:
        fractions = composition()
        total = prior_cost(fractions, prior) + maps.stiffness()
        for region, (sim, obs) in enumerate(shaped):
            ratio = fractions[region] / simulated[region].clamp_min(1e-9)
            batch = _minibatch(sim, schedule.batch_size, generator)
            other = _minibatch(obs, schedule.batch_size, generator)
            total = total + prices[region] * region_distance(batch, other, maps, ratio, penalty)
            if displacement_price > 0:
                total = total + displacement_price / regions * _mean_displacement(batch, maps)
        return total

    fitted = [p for p in maps.parameters() if p.requires_grad]
    averaged_descent([*composition.parameters(), *fitted], loss, schedule, progress)
    maps = maps.requires_grad_(requires_grad=False)
    fractions, shape = _exact(pairs, maps, prior, scales, generator, spline)
    return CompositionFit(fractions, maps, shape)


def cost_of_distance(
    penalty: Penalty, data: Sample, size: float, batch_size: int, generator: torch.Generator
) -> float:
    """n / (2 λ_1): a distance D times it costs like a log-likelihood.

    For equal laws n D is Σ_i λ_i (z_i² - 1) with z_i ~ N(0, 1) and a variance of 2 Σ λ²; the leading λ is
    taken from the spread between halves of the data, and so too large rather than too small.
    """
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    sample = PenaltySample(distance_features(data), data.weight)
    half = min(batch_size, len(data) // 2)
    draws = null_distances(penalty, sample, half, NULL_DRAWS, random)
    leading = float(draws.std()) * 0.5 * half / 2**0.5
    return 0.5 * size / leading


def _exact(
    pairs: list[tuple[Sample, Sample]],
    maps: FlavourMaps,
    prior: CompositionPrior,
    scales: list[float],
    generator: torch.Generator,
    spline: PtSpline | None,
) -> tuple[Float[Tensor, "regions flavours"], PtShape | None]:
    """The fractions of every region at fixed maps, and their pT dependence where there is one."""
    rows, shapes, knots = [], [], []
    for region, (sim, obs) in enumerate(pairs):
        with torch.no_grad():
            moved = maps(sim.coordinates, sim.flavour, sim.conditions)
        features = torch.cat([moved, CONDITION_LENGTH * sim.conditions], dim=1)
        centre, width = prior.fractions[region].numpy(), prior.uncertainty[region].numpy()
        if spline is not None:
            knots.append(knots_of(obs.conditions[:, 0], spline.knots))
            hats = hat_functions(sim.conditions[:, 0], knots[-1])
            of_spline = spline_distance(
                features, sim.flavour, sim.weight, hats, distance_features(obs), obs.weight, generator
            )
            parts = torch.zeros(len(FLAVOURS), spline.knots, dtype=torch.float64)
            parts = parts.index_add(0, sim.flavour, sim.weight[:, None] * hats)
            found, shape = exact_spline(of_spline, scales[region], centre, width, parts, spline.variation)
            rows.append(found)
            shapes.append(shape)
            continue
        form = mixture_distance(
            features, sim.flavour, sim.weight, distance_features(obs), obs.weight, generator
        )
        rows.append(exact_fractions(form, scales[region], centre, width))
    fractions = torch.from_numpy(np.stack(rows)).to(prior.fractions)
    return fractions, PtShape(torch.stack(knots), torch.from_numpy(np.stack(shapes))) if shapes else None


def _mean_displacement(sample: Sample, maps: FlavourMaps) -> Float[Tensor, ""]:
    """Σ_f E_f |T_f u - u|² over the flavours that the sample has."""
    moved = maps(sample.coordinates, sample.flavour, sample.conditions)
    squared = (moved - sample.coordinates).square().sum(1) * sample.weight
    zero = torch.zeros(len(FLAVOURS), dtype=torch.float64)
    total = zero.index_add(0, sample.flavour, squared)
    return (total / zero.index_add(0, sample.flavour, sample.weight).clamp_min(1e-3)).sum()


def _effective(weight: Tensor) -> float:
    """Effective sample size (Σw)² / Σw²."""
    return float(weight.sum().square() / weight.square().sum())
