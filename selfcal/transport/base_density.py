"""The simulation's density of the scores, per flavour and region."""

from __future__ import annotations

from functools import partial

import torch
import zuko
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.config.calibration import BaseDensityConfig
from selfcal.data.flavours import FLAVOURS, SIMULATED_JETS_MIN
from selfcal.errors import FitError
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.early_stopping import StoppedSchedule, stopped_descent
from selfcal.transport.rational_quadratic import RationalQuadraticSpline, spline_parameters
from selfcal.transport.sample import Sample


class BaseDensities(nn.Module):
    """p_rf(u | c): one conditional neural spline flow (zuko) per flavour, the region as context.

    The region enters because jets of one flavour differ from region to region
    already in simulation; what regions share is the map, not the density. ``fitted_steps`` (F,) is after how
    many steps the jets that were set aside no longer gained, per flavour.
    """

    fitted_steps: Int[Tensor, " flavours"]

    def __init__(self, coordinates: int, regions: int, config: BaseDensityConfig) -> None:
        super().__init__()
        self.regions = regions
        self.flows = nn.ModuleList(
            zuko.flows.MAF(
                coordinates,
                CONDITIONS + regions,
                transforms=config.transforms,
                univariate=RationalQuadraticSpline,
                shapes=[(spline_parameters(config.spline_bins),)],
                hidden_features=(config.hidden_width,) * 2,
                activation=nn.SiLU,
            )
            for _ in FLAVOURS
        ).double()
        self.register_buffer("fitted_steps", torch.zeros(len(FLAVOURS), dtype=torch.int64))

    def log_prob(
        self,
        flavour: int,
        coordinates: Float[Tensor, "jets coordinates"],
        conditions: Float[Tensor, "jets conditions"],
        region: Int[Tensor, " jets"],
    ) -> Float[Tensor, " jets"]:
        """ln p_rf(u | c) of one flavour."""
        context = torch.cat([conditions, nn.functional.one_hot(region, self.regions).double()], dim=1)
        result: Tensor = self.flows[flavour](context).log_prob(coordinates)
        return result


SET_ASIDE = 0.2
"""Share of every flavour's jets that does not fit a new density, but says when its fit is done."""

SET_ASIDE_MAX = 4096
"""No more jets than this are set aside."""

SHARE_AGAIN = 0.5
"""Steps with all jets, at most, relative to those before."""

RATE_AGAIN = 0.3
"""Learning rate with all jets, relative to the rate before."""


def fit_base_densities(
    simulation: Sample, regions: int, config: BaseDensityConfig, generator: torch.Generator
) -> BaseDensities:
    """Weighted maximum likelihood on labelled simulation, each flavour by itself.

    A density is fitted until the jets that were set aside no longer gain: flavours have very different
    numbers of jets, and what suits the largest overfits the smallest. Minibatches are drawn uniformly, so
    weights (also signed ones) stay unbiased.

    Raises
    ------
    FitError
        If a flavour is absent from the simulation of all regions, or the loss is not finite.
    """
    densities = BaseDensities(simulation.coordinates.shape[1], regions, config)
    schedule = StoppedSchedule(config.steps, config.learning_rate)
    for index, sample in enumerate(_by_flavour(simulation)):
        order = torch.randperm(len(sample), generator=generator)
        number = min(int(SET_ASIDE * len(sample)), SET_ASIDE_MAX)
        fitted, aside = sample.rows(order[number:]), sample.rows(order[:number])
        steps = _fit_flow(densities, index, fitted, aside, config.batch_size, schedule, generator)
        densities.fitted_steps[index] = steps
    return densities.requires_grad_(requires_grad=False)


def continue_base_densities(
    start: BaseDensities,
    simulation: Sample,
    config: BaseDensityConfig,
    steps: int,
    generator: torch.Generator,
) -> BaseDensities:
    """Densities after ``steps`` more with all jets, at ``RATE_AGAIN`` of the rate; ``start`` stays as it is.

    But for no more than ``SHARE_AGAIN`` of the steps that a flavour has had: more would overfit it, which the
    jets set aside had stopped.

    Raises
    ------
    FitError
        As :func:`fit_base_densities`.
    """
    densities = BaseDensities(simulation.coordinates.shape[1], start.regions, config)
    densities.load_state_dict(start.state_dict())
    for index, sample in enumerate(_by_flavour(simulation)):
        again = min(steps, int(SHARE_AGAIN * start.fitted_steps[index]))
        schedule = StoppedSchedule(again, RATE_AGAIN * config.learning_rate)
        _fit_flow(densities, index, sample, None, config.batch_size, schedule, generator)
    return densities.requires_grad_(requires_grad=False)


def _by_flavour(simulation: Sample) -> list[Sample]:
    samples = [simulation.rows(simulation.flavour == index) for index in range(len(FLAVOURS))]
    for name, sample in zip(FLAVOURS, samples, strict=True):
        if len(sample) < SIMULATED_JETS_MIN:
            raise FitError(
                f"only {len(sample)} simulated {name} jets in all control regions of the derive fold",
                expected=f"at least {SIMULATED_JETS_MIN}",
                fix="add simulation and data of a region that contains this flavour",
            )
    return samples


def _fit_flow(
    densities: BaseDensities,
    index: int,
    sample: Sample,
    aside: Sample | None,
    batch_size: int,
    schedule: StoppedSchedule,
    generator: torch.Generator,
) -> int:
    size, mean_weight = min(batch_size, len(sample)), sample.weight.mean()

    def loss(step: int) -> Tensor:
        batch = sample.rows(torch.randint(len(sample), (size,), generator=generator))
        value = _minus_log_likelihood(densities, index, batch) / (size * mean_weight)
        if not torch.isfinite(value):
            raise FitError("the base density's loss is not finite", where=f"step {step}")
        return value

    parameters = list(densities.flows[index].parameters())
    loss_aside = None if aside is None else partial(_minus_log_likelihood, densities, index, aside)
    return stopped_descent(parameters, loss, schedule, loss_aside)


def _minus_log_likelihood(densities: BaseDensities, index: int, sample: Sample) -> Tensor:
    log_p = densities.log_prob(index, sample.coordinates, sample.conditions, sample.region)
    return -(sample.weight * log_p).sum()
