"""Pseudo-data with their true flavours, for closure checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.closure_truth import holds_closure_truth, read_closure_truth
from selfcal.data.folds import UNTRAINED, Fold, fold_of
from selfcal.data.reading import read_dataset
from selfcal.data.samples import in_use, wanted_of
from selfcal.data.score_files import NOMINAL, join_datasets, load_scores, scores_of, within_abs_eta
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.context import RunContext


def has_truth(context: RunContext, card: DataCard) -> bool:
    """Whether every file of a dataset carries closure truth."""
    return card.role == "data" and all(holds_closure_truth(path) for path in context.dataset_path(card))


def true_flavours(context: RunContext, card: DataCard) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """True flavour and fold of the jets of a dataset that are in use, in the order of its files, (N,)."""
    flavour, fold = [], []
    for path in context.dataset_path(card):
        labels = read_closure_truth(path)
        for jets in read_dataset(card, [path], wanted_of(context, card, tracks=False)):
            chosen = jets.select(in_use(jets, context.config.data))
            assert chosen.row is not None
            flavour.append(labels[chosen.row])
            fold.append(fold_of(chosen, context.config.data.folds_for(card.role)))
    return np.concatenate(flavour), np.concatenate(fold)


def true_jets(context: RunContext, cards: Sequence[DataCard], folds: Sequence[Fold]) -> ScoredJets:
    """The scored jets of ``cards`` (one region) in ``folds`` with their true flavours.

    Raises
    ------
    DataError
        If the truth and the scores of a dataset do not belong to the same jets.
    """
    parts = []
    for card in cards:
        scored = load_scores(context.directory.scores / f"{card.name}.safetensors", card.region)
        truth, _ = true_flavours(context, card)
        if len(truth) != len(scored):
            raise DataError(
                f"{len(truth)} true flavours for {len(scored)} scored jets",
                where=f"dataset '{card.name}'",
                fix="run 'selfcal calibrate' again: the scores are of other files",
            )
        parts.append(
            replace(scored, flavour=truth).select(np.isin(scored.fold, [int(fold) for fold in folds]))
        )
    return within_abs_eta(join_datasets(parts), context.config.fit.abs_eta_edges)


def best_truth(
    context: RunContext, region: str, control_folds: Sequence[Fold] = (Fold.DERIVE, Fold.MEASURE)
) -> ScoredJets | None:
    """The largest sample from which the true efficiencies of a region's data can be taken.

    ``use: truth`` datasets where there are any; otherwise the data themselves, in control regions only
    ``control_folds``: jets of the train fold helped to shape the tagger, those of the derive fold the map.
    None where no truth exists: real data.
    """
    cards = [card for card in context.cards_for("data") if card.region == region and has_truth(context, card)]
    dedicated = [card for card in cards if card.use == "truth"]
    if dedicated:
        return true_jets(context, dedicated, tuple(Fold))
    if not cards:
        return None
    held_out = all(card.use == "validation" for card in cards)
    return true_jets(context, cards, tuple(Fold) if held_out else control_folds)


def nominal_efficiency_jets(context: RunContext, region: str) -> ScoredJets:
    """Simulation from which a region's nominal efficiencies are taken for the truth.

    ``use: truth`` simulation where there is any, otherwise all folds that did not train
    the tagger (all of it in held-out regions).
    """
    cards = context.cards_for("simulation")
    simulation = [card for card in cards if card.region == region and card.use != "alternative"]
    dedicated = [card for card in simulation if card.use == "truth"]
    held_out = all(card.use == "validation" for card in simulation)
    folds = tuple(Fold) if dedicated or held_out else UNTRAINED
    return within_abs_eta(
        scores_of(context, dedicated or simulation, folds, NOMINAL), context.config.fit.abs_eta_edges
    )
