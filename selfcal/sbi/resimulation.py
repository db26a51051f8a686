"""The generator as the simulator of the inference: the same collisions through another detector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.config.detector_parameters import DetectorParameters
from selfcal.config.smearing_parameters import GENERATOR
from selfcal.data.folds import Fold, event_hash, fold_of_events
from selfcal.data.jets import Jets
from selfcal.data.samples import within_range
from selfcal.errors import ConfigError
from selfcal.generate.dataset import GenerateRequest, chunk_plan, chunk_seed, simulated_dataset
from selfcal.generate.detector import simulate
from selfcal.generate.pileup import MinimumBiasPool
from selfcal.generate.records import TruthJets
from selfcal.generate.stage import collision_cache, generate_request
from selfcal.generate.workers import ensure_chunks, load_chunk, minimum_bias_pool
from selfcal.run.context import RunContext
from selfcal.sbi.inference import stacked_rates
from selfcal.transport.control_regions import cards_of

Floats = NDArray[np.float64]


def detector_of(theta: Floats) -> DetectorParameters:
    """The detector of ``theta`` (D,) in the order of the generator's priors; kept within the ranges."""
    values = GENERATOR.within(theta).tolist()
    return DetectorParameters(**dict(zip(GENERATOR.names, values, strict=True)))


def request_of(context: RunContext, card: DataCard) -> GenerateRequest:
    """What a card asks to be generated.

    Raises
    ------
    ConfigError
        If its jets came as files: nobody can pass them through the detector again.
    """
    if card.generate is None:
        raise ConfigError(
            "its files cannot be simulated again",
            where=f"data card '{card.name}'",
            expected="a 'generate' block in every card of the simulation",
            fix="set 'inference.model: smearing'",
        )
    return generate_request(card, context.config)


def resimulated(context: RunContext, card: DataCard, theta: Floats) -> Iterator[Jets]:
    """The jets of ``card`` as the generator would have written them with a detector of ``theta``."""
    request = request_of(context, card)
    changed = replace(request, detector=detector_of(theta))
    workers = context.config.generate.workers or 1
    yield simulated_dataset(changed, collision_cache(context), workers)


class ResimulatedRates:
    """θ -> rates per jet of all regions, flavours and bins, (R F B,): the train fold simulated again.

    The random numbers stay where they can, so that rates move little when θ does.
    """

    def __init__(self, context: RunContext, regions: Sequence[str]) -> None:
        cache = collision_cache(context)
        self.pool: MinimumBiasPool = minimum_bias_pool(cache)
        self.data = context.config.data
        self.samples = [
            [
                (request, truth, seed)
                for card in cards_of(context, "simulation", region)
                for request in [request_of(context, card)]
                for truth, seed in _train_truth(context, card, request)
            ]
            for region in regions
        ]

    def __call__(self, theta: Floats) -> Floats:
        return stacked_rates(self, len(self.samples), theta)

    def jets(self, region: int, theta: Floats) -> list[Jets]:
        """The samples of one region, simulated again."""
        return [self._jets(request, truth, seed, theta) for request, truth, seed in self.samples[region]]

    def _jets(self, request: GenerateRequest, truth: TruthJets, seed: int, theta: Floats) -> Jets:
        jets = simulate(truth, detector_of(theta), self.pool, dataset=request.name, seed=seed).jets
        chosen = jets.select(within_range(jets, self.data))
        return replace(chosen, weight=np.ones(len(chosen)))


def _train_truth(
    context: RunContext, card: DataCard, request: GenerateRequest
) -> Iterator[tuple[TruthJets, int]]:
    """Particle-level jets of the train fold, about ``inference.jets_per_region`` of a card at most."""
    cache, plan = collision_cache(context), chunk_plan(request)
    fractions = context.config.data.folds_for(card.role)
    share = min(1.0, context.config.inference.jets_per_region / max(fractions[0] * request.n_jets, 1.0))
    ensure_chunks(plan, cache, context.config.generate.workers or 1)
    for task in plan:
        truth = load_chunk(task, cache)
        if truth is None:
            continue
        run = np.zeros(len(truth), dtype=np.int64)
        fold = fold_of_events(card.name, run, truth.event, fractions)
        hashed = event_hash(f"{card.name} inference", run, truth.event).astype(np.float64) / 2.0**64
        yield (
            truth.select(np.flatnonzero((fold == Fold.TRAIN) & (hashed < share))),
            chunk_seed(request, task.chunk),
        )
