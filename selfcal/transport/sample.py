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
    event over all regions and ``weight`` may carry bootstrap factors. ``separators`` (N, A) are further
    numbers of every jet that the fractions alone are fitted with, or None.
    """

    coordinates: Float[Tensor, "jets coordinates"]
    conditions: Float[Tensor, "jets conditions"]
    flavour: Int[Tensor, " jets"]
    region: Int[Tensor, " jets"]
    event: Int[Tensor, " jets"]
    weight: Float[Tensor, " jets"]
    separators: Float[Tensor, "jets separators"] | None = None

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
            None if self.separators is None else self.separators[index],
        )

    def in_region(self, region: int) -> Sample:
        """The jets of one region."""
        return self.rows(self.region == region)

    def weighted(self, factor: Float[Tensor, " jets"]) -> Sample:
        """The same jets with their weights times ``factor``."""
        return replace(self, weight=self.weight * factor)

    def widened(self) -> Sample:
        """The same jets with their separators, if there are any, as further coordinates."""
        if self.separators is None:
            return self
        return replace(self, coordinates=torch.cat([self.coordinates, self.separators], 1), separators=None)

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
                None if part.separators is None else torch.from_numpy(part.separators),
            )
        )
    return joined(parts)


def joined(samples: Sequence[Sample]) -> Sample:
    """All jets of ``samples`` in order; separators are kept where every one has them."""
    columns = {
        name: [part for sample in samples if (part := getattr(sample, name)) is not None]
        for name in Sample.__dataclass_fields__
    }
    return Sample(**{name: torch.cat(parts) for name, parts in columns.items() if len(parts) == len(samples)})


def simulated_fractions(simulation: Sample, regions: int) -> Float[Tensor, "regions flavours"]:
    """Flavour fractions of the simulation in each region, rows sum to one."""
    flavours = len(FLAVOURS)
    cell = simulation.region * flavours + simulation.flavour
    total = torch.zeros(regions * flavours, dtype=torch.float64).index_add(0, cell, simulation.weight)
    table = total.reshape(regions, flavours)
    return table / table.sum(1, keepdim=True)
