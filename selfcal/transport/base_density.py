"""The simulation's density of the scores, per flavour and region."""

from __future__ import annotations

from collections.abc import Callable

import torch
import zuko
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.config.calibration import BaseDensityConfig
from selfcal.data.flavours import FLAVOURS, SIMULATED_JETS_MIN
from selfcal.errors import FitError
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.sample import Sample


class BaseDensities(nn.Module):
    """p_rf(u | c): one conditional neural spline flow (zuko) per flavour, the region as context.

    The region enters because jets of one flavour differ from region to region
    already in simulation; what regions share is the map, not the density.
    """

    def __init__(self, coordinates: int, regions: int, config: BaseDensityConfig) -> None:
        super().__init__()
        self.regions = regions
        self.flows = nn.ModuleList(
            zuko.flows.NSF(
                coordinates,
                CONDITIONS + regions,
                bins=config.spline_bins,
                transforms=config.transforms,
                hidden_features=(config.hidden_width,) * 2,
                activation=nn.SiLU,
            )
            for _ in FLAVOURS
        ).double()

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


def fit_base_densities(
    simulation: Sample,
    regions: int,
    config: BaseDensityConfig,
    generator: torch.Generator,
    start: BaseDensities | None = None,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> BaseDensities:
    """Weighted maximum likelihood on labelled simulation, all flavours in step.

    Minibatches are drawn uniformly, so weights (also signed ones, and bootstrap
    factors) stay unbiased.

    Raises
    ------
    FitError
        If a flavour is absent from the simulation of all regions, or the loss is not finite.
    """
    steps = config.steps if steps is None else steps
    densities = BaseDensities(simulation.coordinates.shape[1], regions, config)
    if start is not None:
        densities.load_state_dict(start.state_dict())
    samples = [simulation.rows(simulation.flavour == index) for index in range(len(FLAVOURS))]
    for name, sample in zip(FLAVOURS, samples, strict=True):
        if len(sample) < SIMULATED_JETS_MIN:
            raise FitError(
                f"only {len(sample)} simulated {name} jets in all control regions of the derive fold",
                expected=f"at least {SIMULATED_JETS_MIN}",
                fix="add simulation and data of a region that contains this flavour",
            )
    learning_rate = config.learning_rate * (0.3 if start is not None else 1.0)
    optimiser = torch.optim.Adam(densities.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    for step in range(steps):
        losses = []
        for index, sample in enumerate(samples):
            size = min(config.batch_size, len(sample))
            rows = torch.randint(len(sample), (size,), generator=generator)
            log_p = densities.log_prob(
                index, sample.coordinates[rows], sample.conditions[rows], sample.region[rows]
            )
            losses.append(-(sample.weight[rows] * log_p).sum() / (size * sample.weight.mean()))
        loss = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise FitError("the base density's loss is not finite", where=f"step {step}")
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(densities.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        progress(step + 1)
    return densities.requires_grad_(requires_grad=False)
