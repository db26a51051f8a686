"""Names of jet fields that are not those of the format: which field is which, by its words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfcal.data.hdf5_reader import JET_FIELDS

_LAST_WORDS: dict[str, frozenset[str]] = {
    "pt": frozenset({"pt"}),
    "eta": frozenset({"eta"}),
    "phi": frozenset({"phi"}),
    "label": frozenset({"label", "flavour", "flavor"}),
    "run": frozenset({"run"}),
    "event": frozenset({"event", "evt"}),
    "jet_index": frozenset({"rank", "index"}),
}
"""What the name of a field ends in, by the quantity that it holds (but for ``number`` and ``id``)."""

_NOT_RECONSTRUCTED = frozenset({"truth", "true", "gen", "mc", "parton", "hadron"})
_COUNTS = frozenset({"number", "id"})


def guessed_jet_fields(names: Sequence[str]) -> dict[str, str]:
    """The fields that hold quantities of which ``names`` has none under the format's own names.

    A quantity is left out where no name or more than one ends in its word: a wrong guess is worse than none.

    >>> guessed_jet_fields(["jet_pt", "truth_pt", "jetEta", "event_number", "truth_label"])
    {'pt': 'jet_pt', 'eta': 'jetEta', 'label': 'truth_label', 'event': 'event_number'}
    """
    guessed = {}
    for quantity, endings in _LAST_WORDS.items():
        if any(name in names for name in JET_FIELDS[quantity]):
            continue
        fitting = [name for name in names if _ends_in(name, endings, generated=quantity == "label")]
        if len(fitting) == 1:
            guessed[quantity] = fitting[0]
    return guessed


def _ends_in(name: str, endings: frozenset[str], *, generated: bool) -> bool:
    """Whether the last word of ``name`` is one of ``endings``; only labels may be of the generator."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if len(words) > 1 and words[-1] in _COUNTS:
        words.pop()
    return bool(words) and words[-1] in endings and (generated or _NOT_RECONSTRUCTED.isdisjoint(words))
