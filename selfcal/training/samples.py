"""Which jets a run reads: the files of a card, within the kinematic range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.folds import Fold, event_hash, fold_of
from selfcal.data.hdf5 import read_jets
from selfcal.data.jets import Jets
from selfcal.run.context import RunContext


def within_range(jets: Jets, config: DataConfig) -> NDArray[np.bool_]:
    """pt_gev_min <= pT < pt_gev_max and |eta| < abs_eta_max, (N,)."""
    pt_inside = (jets.pt_gev >= config.pt_gev_min) & (jets.pt_gev < config.pt_gev_max)
    inside: NDArray[np.bool_] = pt_inside & (jets.abs_eta < config.abs_eta_max)
    return inside


def read_card(context: RunContext, card: DataCard, *, with_labels: bool) -> Iterator[Jets]:
    """The jets of every file of ``card`` within the kinematic range, one file at a time.

    They have weight one unless the card asks for event weights. Weights that undo a biased
    generation (dijet, by pT^4) would leave an effective sample of a few per cent; such a spectrum
    is used as it is, in simulation and data alike, so that pseudo-data counts stay Poisson.
    """
    for path in context.dataset_path(card):
        jets = read_jets(path, dataset=card.name, with_tracks=True, with_labels=with_labels)
        chosen = jets.select(within_range(jets, context.config.data))
        yield chosen if card.weights == "event" else replace(chosen, weight=np.ones(len(chosen)))


def jets_in_fold(context: RunContext, card: DataCard, fold: Fold) -> list[Jets]:
    """The jets of one fold of a card, by file; with labels if it is simulation."""
    fractions = context.config.data.folds_for(card.role)
    return [
        jets.select(fold_of(jets, fractions) == fold)
        for jets in read_card(context, card, with_labels=card.role == "simulation")
    ]


def training_fold(context: RunContext) -> list[Jets]:
    """Labelled simulation of the control regions in the train fold, by file."""
    cards = context.cards_for(role="simulation", use="control")
    return [jets for card in cards for jets in jets_in_fold(context, card, Fold.TRAIN)]


def for_validation(jets: Jets, fraction: float) -> NDArray[np.bool_]:
    """About ``fraction`` of the jets, whole events, (N,): a hash independent of the folds."""
    hashed = event_hash(f"{jets.dataset} validation", jets.run, jets.event)
    chosen: NDArray[np.bool_] = hashed.astype(np.float64) / 2.0**64 < fraction
    return chosen
