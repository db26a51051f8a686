"""Scored jets on disk, one safetensors file per card, and the parts of them that a stage needs.

Where the detector is inferred, ``<card>.safetensors`` holds the corrected simulation, and other variants
of it lie in folders beside it: ``nominal`` (not corrected) and ``detector_<j>`` (one standard deviation along
a direction of the posterior; only of the folds that did not train the tagger).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from selfcal.config.card import DataCard
from selfcal.data.folds import Fold
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.context import RunContext

NOMINAL, DETECTOR = "nominal", "detector_"
_FIELDS = ("log_probability", "pt_gev", "abs_eta", "flavour", "weight", "fold", "event")
_OPTIONAL = ("regressed_pt_gev", "separators")


def save_scores(path: Path, scored: ScoredJets) -> None:
    """Write all but the region, which the data card knows; of the optional columns those that are there."""
    arrays = {name: getattr(scored, name) for name in _FIELDS}
    arrays |= {name: value for name in _OPTIONAL if (value := getattr(scored, name)) is not None}
    write_arrays(path, arrays)


def load_scores(path: Path, region: str) -> ScoredJets:
    """Read what :func:`save_scores` wrote.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds other arrays.
    """
    arrays = read_arrays(path)
    if set(arrays) - set(_OPTIONAL) != set(_FIELDS):
        raise DataError(
            "the file does not hold scored jets",
            where=str(path),
            expected=", ".join(_FIELDS),
            fix="score the dataset again",
        )
    return ScoredJets(region=region, **arrays)


def join_datasets(parts: Sequence[ScoredJets]) -> ScoredJets:
    """Several datasets of one region as one, with event indices that stay distinct."""
    shifted, first = [], 0
    for part in parts:
        shifted.append(replace(part, event=part.event + first))
        first += int(part.event.max()) + 1 if len(part) else 0
    return concatenate(shifted)


def scores_path(context: RunContext, card: DataCard, variant: str | None = None) -> Path:
    """The file of a dataset's scores; a ``variant`` is another one only where the dataset is corrected."""
    folder = context.directory.scores
    if variant is not None and context.corrected(card):
        folder = folder / variant
    return folder / f"{card.name}.safetensors"


def detector_variants(context: RunContext) -> tuple[str, ...]:
    """Names of the variants along the directions of the detector's posterior; none without inference."""
    if not context.config.inference.enabled:
        return ()
    found = [path.name for path in context.directory.scores.glob(f"{DETECTOR}*") if path.is_dir()]
    return tuple(sorted(found, key=lambda name: int(name.removeprefix(DETECTOR))))


def scores_of(
    context: RunContext, cards: Sequence[DataCard], folds: Sequence[Fold], variant: str | None = None
) -> ScoredJets:
    """The scored jets of ``cards`` (of one region) in ``folds``."""
    parts = []
    for card in cards:
        part = load_scores(scores_path(context, card, variant), card.region)
        parts.append(part.select(np.isin(part.fold, [int(fold) for fold in folds])))
    return join_datasets(parts)


def within_abs_eta(jets: ScoredJets, edges: Sequence[float]) -> ScoredJets:
    """The jets between the first and the last of ``edges``."""
    return jets.select((jets.abs_eta >= edges[0]) & (jets.abs_eta < edges[-1]))


def control_scores(
    context: RunContext, role: str, region: str, folds: Sequence[Fold], variant: str | None = None
) -> ScoredJets:
    """The scored jets of a control region's simulation or data in ``folds``."""
    cards = [card for card in context.cards_for(role, "control") if card.region == region]
    return scores_of(context, cards, folds, variant)
