"""Scores of all datasets of a run, one safetensors file per card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.calibration import Separator
from selfcal.config.card import DataCard
from selfcal.data.folds import UNTRAINED, Fold, fold_of
from selfcal.data.jets import Jets
from selfcal.data.samples import Correction, read_card
from selfcal.data.score_files import DETECTOR, NOMINAL, save_scores, scores_path
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.context import RunContext
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.scoring import JetScores, regressed_pt_gev, score_jets
from selfcal.training.separators import separator_columns

Scorer = Callable[[Jets], JetScores]
"""What is known of N jets from their tagger."""


def scorer_of(bundle: TaggerBundle) -> Scorer:
    """The scores that a tagger of ours gives."""
    return lambda jets: score_jets(bundle, jets)


def given_scores(jets: Jets) -> JetScores:
    """The scores that came with the jets.

    Raises
    ------
    DataError
        If they came without.
    """
    if jets.log_score is None:
        raise DataError(f"the jets of '{jets.dataset}' were read without scores")
    return JetScores(jets.log_score)


def score_datasets(
    context: RunContext,
    scorer: Scorer,
    correction: Correction | None = None,
    directions: Sequence[Correction] = (),
) -> list[Path]:
    """Score the jets of every card that are in use; returns ``scores/<card>.safetensors``.

    Simulation keeps its labels; data, also the pseudo-data of truth datasets, are
    written with flavour -1. Where a dataset is corrected, it is also scored as it is
    (``scores/nominal``) and, in the folds that did not train the tagger, under each of the ``directions``
    (``scores/detector_<j>``).
    """
    jobs: list[tuple[DataCard, str | None, Correction | None]] = []
    for card in context.cards:
        jobs.append((card, None, correction))
        if context.corrected(card):
            jobs.append((card, NOMINAL, None))
            jobs += [(card, f"{DETECTOR}{j}", direction) for j, direction in enumerate(directions)]
    written = []
    tracker = context.progress("scoring", len(jobs))
    for done, (card, variant, changed) in enumerate(jobs, start=1):
        path = scores_path(context, card, variant)
        folds = tuple(Fold) if variant in (None, NOMINAL) else UNTRAINED
        save_scores(path, score_card(context, scorer, card, changed, folds))
        written.append(path)
        tracker.update(done)
    return written


def score_card(
    context: RunContext,
    scorer: Scorer,
    card: DataCard,
    correction: Correction | None = None,
    folds: Sequence[Fold] = tuple(Fold),
) -> ScoredJets:
    """The scored jets of one card in ``folds``. Tracks stay in memory one chunk at a time."""
    fractions = context.config.data.folds_for(card.role)
    parts = read_card(context, card, correction)
    separators = context.config.calibration.composition.separators
    if set(folds) != set(Fold):
        parts = (jets.select(np.isin(fold_of(jets, fractions), folds)) for jets in parts)
    return scored(scorer, parts, card.region, fractions, separators, labelled=card.role == "simulation")


def scored(
    scorer: Scorer,
    parts: Iterable[Jets],
    region: str,
    fold_fractions: tuple[float, float, float],
    separators: Sequence[Separator] = (),
    *,
    labelled: bool,
) -> ScoredJets:
    """Scores, kinematics, folds and the named ``separators`` of all ``parts`` of one dataset."""
    columns: dict[str, list[NDArray[Any]]] = {}
    for jets in parts:
        scores = scorer(jets)
        chunk: dict[str, NDArray[Any]] = {
            "log_probability": scores.log_probability,
            "pt_gev": jets.pt_gev.astype(np.float64),
            "abs_eta": jets.abs_eta.astype(np.float64),
            "flavour": jets.flavour if labelled else np.full(len(jets), -1, dtype=np.int8),
            "weight": jets.weight,
            "fold": fold_of(jets, fold_fractions),
            "run": jets.run,
            "event": jets.event,
        }
        if scores.log_response is not None:
            chunk["regressed_pt_gev"] = regressed_pt_gev(jets, scores)
        if separators:
            chunk["separators"] = separator_columns(jets, separators)
        for name, values in chunk.items():
            columns.setdefault(name, []).append(values)
    whole: dict[str, NDArray[Any]] = {}
    for name in list(columns):
        whole[name] = np.concatenate(columns.pop(name))
    event = event_index(whole.pop("run"), whole.pop("event"))
    return ScoredJets(region=region, event=event, **whole)


def event_index(run: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index 0, 1, 2, ... of each jet's distinct (run, event), in the order of these keys, (N,)."""
    order = np.lexsort((event, run))
    new = np.zeros(len(order), dtype=np.int64)
    new[1:] = (np.diff(run[order]) != 0) | (np.diff(event[order]) != 0)
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.cumsum(new)
    return index
