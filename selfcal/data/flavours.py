"""The four jet flavours and the integer labels by which experiments name them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfcal.errors import DataError

FLAVOURS: tuple[str, ...] = ("b", "c", "light", "tau")
"""Class order everywhere: the columns of probabilities, templates and compositions."""

B, C, LIGHT, TAU = range(4)
UNLABELLED = -1

SIMULATED_JETS_MIN = 50
"""Jets of every flavour in the derive fold, over all control regions, that its density needs."""

SCORE_SUFFIXES: tuple[str, ...] = ("pb", "pc", "pu", "ptau")
"""Suffixes of score fields, ``<tagger>_pb`` and so on, in class order."""

CONE_LABELS: dict[int, int] = {5: B, 4: C, 0: LIGHT, 15: TAU, 55: B, 54: B, 44: C}
"""``HadronConeExcl(Extended)TruthLabelID`` to class (55, 54: two heavy hadrons, the heaviest wins)."""

FLAVOUR_TO_CONE_LABEL: dict[int, int] = {B: 5, C: 4, LIGHT: 0, TAU: 15}


def flavour_from_cone_label(labels: NDArray[np.integer], where: str) -> NDArray[np.int8]:
    """Class index (N,) (see :data:`FLAVOURS`) of each ``HadronConeExclTruthLabelID``.

    Raises
    ------
    DataError
        If a label is not one of :data:`CONE_LABELS`.
    """
    flavour = np.full(len(labels), UNLABELLED, dtype=np.int8)
    for label, index in CONE_LABELS.items():
        flavour[labels == label] = index
    unknown = np.unique(labels[flavour == UNLABELLED])
    if len(unknown):
        raise DataError(
            f"unknown truth label(s) {[int(u) for u in unknown]}",
            where=where,
            expected=f"one of {sorted(CONE_LABELS)}",
            fix="drop these jets with a selection in the data card, or map the label field",
        )
    return flavour
