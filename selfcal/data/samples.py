"""Which jets a run reads: the files of a card, within the kinematic range."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.folds import Fold, bootstrap_weights, event_hash, fold_of
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import Jets
from selfcal.data.reading import read_dataset
from selfcal.run.context import RunContext


@dataclass(frozen=True)
class Replacement:
    """Another simulation in place of the files of a card: ``jets`` gives that of every card."""

    jets: Callable[[DataCard], Iterable[Jets]]


Correction = Callable[[Jets], Jets] | Replacement
"""The simulation as another detector would have measured it: made of its jets, or made anew."""


def within_range(jets: Jets, config: DataConfig) -> NDArray[np.bool_]:
    """pt_gev_min <= pT < pt_gev_max and |eta| < abs_eta_max, (N,)."""
    pt_inside = (jets.pt_gev >= config.pt_gev_min) & (jets.pt_gev < config.pt_gev_max)
    inside: NDArray[np.bool_] = pt_inside & (jets.abs_eta < config.abs_eta_max)
    return inside


def wanted_of(context: RunContext, card: DataCard, *, tracks: bool = True) -> Wanted:
    """What the run's tagger needs of a card's files: tracks, or the scores that are there."""
    given = context.config.tagger.kind == "scores"
    return Wanted(tracks=tracks and not given, labels=card.role == "simulation", scores=given)


def in_use(jets: Jets, config: DataConfig) -> NDArray[np.bool_]:
    """The jets of the kinematic range that the tagger has looked at, (N,)."""
    inside = within_range(jets, config)
    return inside if jets.log_score is None else inside & np.isfinite(jets.log_score).all(axis=1)


def read_card(context: RunContext, card: DataCard, correction: Correction | None = None) -> Iterator[Jets]:
    """The jets of every file of ``card`` that are in use, chunk by chunk; with labels if it is simulation.

    ``correction`` acts on simulation that is to be corrected (``RunContext.corrected``), on nothing else.

    They have weight one unless the card asks for event weights. Weights that undo a biased
    generation (dijet, by pT^4) would leave an effective sample of a few per cent; such a spectrum
    is used as it is, in simulation and data alike, so that pseudo-data counts stay Poisson.
    """
    correction = correction if context.corrected(card) else None
    source: Iterable[Jets]
    if isinstance(correction, Replacement):
        source = correction.jets(card)
    else:
        source = read_dataset(card, context.dataset_path(card), wanted_of(context, card))
    for jets in source:
        chosen = jets.select(in_use(jets, context.config.data))
        if card.weights != "event":
            chosen = replace(chosen, weight=np.ones(len(chosen)))
        bootstrap = context.config.data.bootstrap
        if bootstrap and card.role == "data" and card.use != "truth":
            chosen = replace(chosen, weight=chosen.weight * bootstrap_weights(chosen, bootstrap))
        yield chosen if correction is None or isinstance(correction, Replacement) else correction(chosen)


def jets_in(
    context: RunContext, card: DataCard, folds: Sequence[Fold], correction: Correction | None = None
) -> list[Jets]:
    """The jets of a card in ``folds``, by chunk; with labels if it is simulation."""
    fractions = context.config.data.folds_for(card.role)
    return [
        jets.select(np.isin(fold_of(jets, fractions), folds)) for jets in read_card(context, card, correction)
    ]


def training_fold(context: RunContext) -> list[Jets]:
    """Labelled simulation of the control regions in the train fold, by chunk."""
    cards = context.cards_for(role="simulation", use="control")
    return [jets for card in cards for jets in jets_in(context, card, (Fold.TRAIN,))]


def for_validation(jets: Jets, fraction: float) -> NDArray[np.bool_]:
    """About ``fraction`` of the jets, whole events, (N,): a hash independent of the folds."""
    hashed = event_hash(f"{jets.dataset} validation", jets.run, jets.event)
    chosen: NDArray[np.bool_] = hashed.astype(np.float64) / 2.0**64 < fraction
    return chosen
