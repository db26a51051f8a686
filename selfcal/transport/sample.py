"""Simulation and data of the control regions as tensors, ready for calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.transport.conditions import ScoreFrame, condition_features


@dataclass(frozen=True)
class Sample:
    """Jets of several regions.

    ``coordinates`` (N, D) and ``conditions`` (N, C) are float64, ``flavour`` is -1 in
    data, ``region`` indexes the regions of the calibration, ``event`` identifies the
    event over all regions and ``weight`` may carry bootstrap factors.
    """

    coordinates: Float[Tensor, "jets coordinates"]
    conditions: Float[Tensor, "jets conditions"]
    flavour: Int[Tensor, " jets"]
    region: Int[Tensor, " jets"]
    event: Int[Tensor, " jets"]
    weight: Float[Tensor, " jets"]

    def __len__(self) -> int:
        return len(self.weight)

    def rows(self, index: Tensor) -> Sample:
        """The jets of ``index`` (mask or positions)."""
        return Sample(
            self.coordinates[index],
            self.conditions[index],
            self.flavour[index],
            self.region[index],
            self.event[index],
            self.weight[index],
        )

    def in_region(self, region: int) -> Sample:
        """The jets of one region."""
        return self.rows(self.region == region)

    def resampled(self, generator: np.random.Generator) -> Sample:
        """A Poisson(1) bootstrap replica: all jets of an event share one factor (arXiv 1610.03262)."""
        events, inverse = np.unique(self.event.numpy(), return_inverse=True)
        factor = generator.poisson(1.0, len(events)).astype(np.float64)[inverse]
        return replace(self, weight=self.weight * torch.from_numpy(factor))


def build_sample(jets: Mapping[str, ScoredJets], regions: Sequence[str], frame: ScoreFrame) -> Sample:
    """Tensors of ``jets`` (one entry per region) in the order of ``regions``.

    Raises
    ------
    DataError
        If a region has no jets.
    """
    parts: list[Sample] = []
    first_event = 0
    for index, region in enumerate(regions):
        part = jets[region]
        if len(part) < 2:
            raise DataError(
                f"region '{region}' has {len(part)} jets in this fold",
                where=region,
                expected="at least two jets, and thousands for a useful calibration",
                fix="check the selection and the fold fractions, or remove the region's cards",
            )
        event = torch.from_numpy(part.event) + first_event
        first_event = int(event.max()) + 1
        parts.append(
            Sample(
                frame.enter(torch.from_numpy(part.log_probability)),
                condition_features(part.pt_gev, part.abs_eta),
                torch.from_numpy(part.flavour.astype(np.int64)),
                torch.full((len(part),), index),
                event,
                torch.from_numpy(part.weight),
            )
        )
    fields = ("coordinates", "conditions", "flavour", "region", "event", "weight")
    return Sample(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))


def simulated_fractions(simulation: Sample, regions: int) -> Float[Tensor, "regions flavours"]:
    """Flavour fractions of the simulation in each region, rows sum to one."""
    flavours = len(FLAVOURS)
    cell = simulation.region * flavours + simulation.flavour
    total = torch.zeros(regions * flavours, dtype=torch.float64).index_add(0, cell, simulation.weight)
    table = total.reshape(regions, flavours)
    return table / table.sum(1, keepdim=True)
