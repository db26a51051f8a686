"""Which reader a data card asks for, and the jets of a dataset through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_never, get_args

from selfcal.config.card import DataCard, FormatName
from selfcal.data.jet_reader import CHUNK_JETS, JetReader, Wanted
from selfcal.data.jets import Jets
from selfcal.errors import DataError


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
