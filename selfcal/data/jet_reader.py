"""What every reader of a file format can be asked, and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfcal.config.card import DataCard, FormatName
from selfcal.data.jets import Jets

CHUNK_JETS = 100_000
"""Jets read at a time: a file larger than memory passes through in pieces of this size."""


@dataclass(frozen=True)
class Wanted:
    """What a caller needs of a dataset; the rest of the file is not read.

    ``scores`` are those that the card names. Labels of data are never wanted.
    """

    tracks: bool = True
    labels: bool = True
    scores: bool = False


@dataclass(frozen=True)
class Contents:
    """What a file holds, as far as a reader can tell without reading all of it.

    Attributes
    ----------
    format : name of the reader
    n_jets : number of jets, before any selection
    jet_fields, track_fields : the file's own names
    taggers : those whose scores are there, by the name that ``scores.tagger`` of a card takes
    labelled : whether there are truth labels
    datasets : what else stands beside the jets, where the format has more than one table
    collections : jet collections to choose from; empty where the format has one only
    """

    format: FormatName
    n_jets: int
    jet_fields: tuple[str, ...]
    track_fields: tuple[str, ...]
    taggers: tuple[str, ...]
    labelled: bool
    datasets: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()


class JetReader(Protocol):
    """A file format; a file that is missing, damaged or of another kind is a ``DataError``.

    Attributes
    ----------
    dropped : what this reader has left out of tracks so far, by reason, with counts
    """

    dropped: Counter[str]

    def recognises(self, path: Path) -> bool:
        """Whether the file is of this format, by its content."""

    def count(self, path: Path, card: DataCard) -> int:
        """Number of jets before any selection, without reading them."""

    def contents(self, path: Path, collection: str | None = None) -> Contents:
        """What the file holds."""

    def chunks(self, path: Path, card: DataCard, wanted: Wanted, chunk_jets: int) -> Iterator[Jets]:
        """The jets that pass the card's ``selection``, in file order, about ``chunk_jets`` at a time.

        Values are in GeV, mm and rad except the columns of ``tracks``, which follow the native
        layout (``qOverP`` in 1/MeV). ``jet_index`` and, without event numbers, ``event`` count over the
        whole file, so that a jet's key does not depend on the size of the chunks.
        """
