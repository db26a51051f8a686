"""One interface to every file format: which reader a data card asks for, and what it is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never, get_args

from selfcal.config.card import DataCard, FormatName
from selfcal.data.jets import Jets
from selfcal.errors import DataError

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


def reader_of(format_name: FormatName) -> JetReader:
    """The reader of a format."""
    if format_name == "ftag_hdf5":
        from selfcal.data.hdf5_reader import FtagHdf5Reader

        return FtagHdf5Reader()
    if format_name == "physlite":
        from selfcal.data.physlite_reader import PhysliteReader

        return PhysliteReader()
    if format_name == "nanoaod":
        from selfcal.data.nanoaod_reader import NanoAodReader

        return NanoAodReader()
    if format_name == "pfnano":
        from selfcal.data.pfnano_reader import PfNanoReader

        return PfNanoReader()
    assert_never(format_name)


def format_of(path: Path) -> FormatName:
    """The format of a file, by its content.

    Raises
    ------
    DataError
        If the file is missing, damaged, or of no format that can be read.
    """
    from selfcal.data.root_files import holds_histograms

    if not path.is_file():
        raise DataError("file not found", where=str(path))
    formats: tuple[FormatName, ...] = get_args(FormatName)
    for name in formats:
        if reader_of(name).recognises(path):
            return name
    if holds_histograms(path):
        raise DataError(
            "holds histograms and no jets",
            where=str(path),
            expected="a file of jets",
            fix="histograms are no input of the calibration",
        )
    raise DataError(
        "not a file with jets that can be read",
        where=str(path),
        expected=f"one of the formats {', '.join(formats)}",
        fix="name the format in a data card if its layout is unusual",
    )


def read_dataset(
    card: DataCard, paths: Sequence[Path], wanted: Wanted, *, chunk_jets: int = CHUNK_JETS
) -> Iterator[Jets]:
    """The jets of all files of a dataset, in order, chunk by chunk.

    Raises
    ------
    DataError
        Missing or damaged file; missing field (with the nearest names); unknown labels; NaN or
        infinity in a field that is used (with the count of each).
    """
    reader = reader_of(card.format)
    for path in paths:
        yield from reader.chunks(path, card, wanted, chunk_jets)


def count_jets(card: DataCard, path: Path) -> int:
    """Number of jets in a file, before any selection, without reading them."""
    return reader_of(card.format).count(path, card)
