"""The population of pseudo-experiments: simulated jets that trained no tagger, under any detector.

Every sample of a pseudo-experiment, simulation and pseudo-data alike, is drawn from it with replacement. The
samples are then independent, their fluctuations are those that a finite sample claims, and the truth of any
efficiency is known exactly: it is the efficiency of the population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import SmearingParameters
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import UNTRAINED, Fold, fold_of
from selfcal.data.jets import Jets
from selfcal.data.samples import read_card
from selfcal.data.score_files import control_scores
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.likelihood.templates import Binning, count_by_flavour
from selfcal.run.context import RunContext
from selfcal.sbi.donors import Donors
from selfcal.sbi.noise import draw_noise
from selfcal.sbi.smearing import smear
from selfcal.sbi.stage import thinned
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.scoring import score_jets
from selfcal.transport.control_regions import cards_of

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class RegionPopulation:
    """N jets of one region with their tracks, and how another detector would have scored them.

    The same random numbers serve all detectors, so that scores are a function of the parameters alone.
    """

    def __init__(self, region: str, chunks: Sequence[Jets], donors: Donors, seed: int) -> None:
        self.region, self.chunks, self.donors, self.seed = region, tuple(chunks), donors, seed
        self.noise = tuple(draw_noise(jets, seed) for jets in self.chunks)
        self.flavour = np.concatenate([jets.flavour for jets in self.chunks]).astype(np.int64)
        self.weight = np.concatenate([jets.weight for jets in self.chunks]).astype(np.float64)
        self.pt_gev = np.concatenate([jets.pt_gev for jets in self.chunks]).astype(np.float64)
        self.abs_eta = np.concatenate([jets.abs_eta for jets in self.chunks]).astype(np.float64)
        if (self.weight < 0).any():
            raise DataError(
                "jets of negative weight cannot be drawn",
                where=f"simulation of region '{region}'",
                expected="weights of zero or more",
                fix="leave out the event weights of its cards ('weights')",
            )

    def __len__(self) -> int:
        return len(self.flavour)

    @property
    def shares(self) -> Floats:
        """Flavour fractions, (F,)."""
        total = np.bincount(self.flavour, self.weight, len(FLAVOURS))
        return np.asarray(total / total.sum(), np.float64)

    def smeared(self, parameters: SmearingParameters) -> list[Jets]:
        """All jets, chunk by chunk, as a detector of ``parameters`` measures them."""
        pairs = zip(self.chunks, self.noise, strict=True)
        return [smear(jets, parameters, self.donors, self.seed, noise) for jets, noise in pairs]

    def log_probability(
        self, bundle: TaggerBundle, parameters: SmearingParameters, rows: Rows | None = None
    ) -> Floats:
        """Scores under ``parameters``, (N, K); NaN outside of ``rows``, if these are given."""
        result = np.full((len(self), len(FLAVOURS)), np.nan)
        wanted = np.zeros(len(self), dtype=bool)
        wanted[slice(None) if rows is None else rows] = True
        first = 0
        for jets in self.chunks:
            inside = np.flatnonzero(wanted[first : first + len(jets)])
            chosen = smear(jets.select(inside), parameters, self.donors, self.seed)
            result[first + inside] = score_jets(bundle, chosen).log_probability
            first += len(jets)
        return result

    def rows_drawn(
        self, generator: np.random.Generator, expected: float, fractions: Floats | None = None
    ) -> Rows:
        """A Poisson number of jets, with replacement; ``fractions`` (F,) of the flavours if not its own."""
        number = int(generator.poisson(expected))
        if fractions is None:
            return self._of(generator, np.arange(len(self)), number)
        counts = generator.multinomial(number, fractions)
        drawn = [
            self._of(generator, np.flatnonzero(self.flavour == flavour), int(count))
            for flavour, count in enumerate(counts)
            if count
        ]
        return np.concatenate(drawn)

    def _of(self, generator: np.random.Generator, rows: Rows, number: int) -> Rows:
        weight = self.weight[rows]
        return np.asarray(generator.choice(rows, number, p=weight / weight.sum()), np.int64)

    def jets(self, log_probability: Floats, rows: Rows, fold: Fold, *, labelled: bool) -> ScoredJets:
        """The jets of ``rows`` as a sample of weight one, each an event of its own."""
        flavour = self.flavour[rows] if labelled else np.full(len(rows), -1)
        return ScoredJets(
            region=self.region,
            log_probability=log_probability[rows],
            pt_gev=self.pt_gev[rows],
            abs_eta=self.abs_eta[rows],
            flavour=flavour.astype(np.int8),
            weight=np.ones(len(rows)),
            fold=np.full(len(rows), int(fold), np.int8),
            event=np.arange(len(rows)),
        )

    def counts(self, log_probability: Floats, binning: Binning, charm: float, tau: float) -> Floats:
        """Weighted jets per flavour and bin, (F, P, K); ``charm`` and ``tau`` as in ``discriminant_b``."""
        every = self.jets(log_probability, np.arange(len(self)), Fold.MEASURE, labelled=True)
        whole = ScoredJets(**{**vars(every), "weight": self.weight})
        return count_by_flavour(whole, discriminant_b(log_probability, charm, tau), binning)[0]


@dataclass(frozen=True)
class SampleSizes:
    """Expected numbers of jets of a region: of data in each fold, of simulation in derive and measure."""

    data: dict[Fold, float]
    simulation: dict[Fold, float]


def read_population(
    context: RunContext, region: str, donors: Donors, seed: int, limit: int
) -> RegionPopulation:
    """The simulation of a control region outside of the train fold, about ``limit`` jets of it at most.

    Raises
    ------
    DataError
        If there is none.
    """
    chunks = []
    for card in cards_of(context, "simulation", region):
        fractions = context.config.data.folds_for(card.role)
        for jets in read_card(context, card):
            held_out = jets.select(fold_of(jets, fractions) != Fold.TRAIN)
            if len(held_out):
                chunks.append(held_out)
    if not chunks:
        raise DataError(f"region '{region}' has no simulation outside of the train fold")
    return RegionPopulation(region, thinned(chunks, limit), donors, seed)


def sample_sizes(context: RunContext, region: str) -> SampleSizes:
    """As many jets as the run itself has."""
    every = control_scores(context, "data", region, tuple(Fold))
    simulated = control_scores(context, "simulation", region, UNTRAINED)

    def expected(jets: ScoredJets, *folds: Fold) -> dict[Fold, float]:
        return {fold: float((jets.fold == fold).sum()) for fold in folds}

    return SampleSizes(expected(every, *Fold), expected(simulated, *UNTRAINED))
