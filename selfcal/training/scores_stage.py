"""Scores of all datasets of a run, one safetensors file per card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.folds import fold_of
from selfcal.data.jets import Jets
from selfcal.data.score_files import save_scores
from selfcal.data.scored import ScoredJets
from selfcal.run.context import RunContext
from selfcal.tagger.bundle import TaggerBundle
from selfcal.training.samples import read_card
from selfcal.training.scoring import score_jets


def score_datasets(context: RunContext, bundle: TaggerBundle, output_folder: Path) -> list[Path]:
    """Score the jets of every card within the kinematic range; returns ``<folder>/<card>.safetensors``.

    Simulation keeps its labels; data, also the pseudo-data of truth datasets, are
    written with flavour -1.
    """
    written = []
    tracker = context.progress("scoring", len(context.cards))
    for done, card in enumerate(context.cards, start=1):
        path = output_folder / f"{card.name}.safetensors"
        save_scores(path, score_card(context, bundle, card))
        written.append(path)
        tracker.update(done)
    return written


def score_card(context: RunContext, bundle: TaggerBundle, card: DataCard) -> ScoredJets:
    """The scored jets of one card."""
    labelled = card.role == "simulation"
    parts = list(read_card(context, card, with_labels=labelled))
    fractions = context.config.data.folds_for(card.role)
    fold = np.concatenate([fold_of(jets, fractions) for jets in parts])
    return scored(bundle, parts, card.region, fold, labelled=labelled)


def scored(
    bundle: TaggerBundle, parts: Sequence[Jets], region: str, fold: NDArray[np.int8], *, labelled: bool
) -> ScoredJets:
    """Scores and kinematics of all ``parts`` of one dataset, whose jets have these folds."""
    run, event = (np.concatenate([getattr(jets, key) for jets in parts]) for key in ("run", "event"))
    return ScoredJets(
        region=region,
        log_probability=np.concatenate([score_jets(bundle, jets)[0] for jets in parts]),
        pt_gev=np.concatenate([jets.pt_gev for jets in parts]).astype(np.float64),
        abs_eta=np.concatenate([jets.abs_eta for jets in parts]).astype(np.float64),
        flavour=np.concatenate([jets.flavour if labelled else _unlabelled(jets) for jets in parts]),
        weight=np.concatenate([jets.weight for jets in parts]),
        fold=fold,
        event=event_index(run, event),
    )


def _unlabelled(jets: Jets) -> NDArray[np.int8]:
    return np.full(len(jets), -1, dtype=np.int8)


def event_index(run: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index 0, 1, 2, ... of each jet's distinct (run, event), in the order of these keys, (N,)."""
    order = np.lexsort((event, run))
    new = np.zeros(len(order), dtype=np.int64)
    new[1:] = (np.diff(run[order]) != 0) | (np.diff(event[order]) != 0)
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.cumsum(new)
    return index
