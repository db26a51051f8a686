"""HDF5 files opened so that nothing goes unnoticed: full disks, damage, content that lies in other files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from selfcal.data.field_names import missing_fields
from selfcal.errors import DataError
from selfcal.run.atomic import atomic_path


class _KeptFailure(io.RawIOBase):
    """The file that HDF5 writes into; a write that fails is kept for later, and HDF5 goes on.

    The library cannot bear that its last writes fail, which happen while a file is closed: h5py then ends
    the process with a segmentation fault. From the first failure on nothing more is written.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by close()
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.failure is None:
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        if self.failure is None:
            try:
                return self._file.truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def new_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new file to write into; it is at ``path``, whole, after the block, or not at all.

    Raises
    ------
    DataError
        If it cannot be written, naming ``path``.
    """
    with atomic_path(path) as temporary, _KeptFailure(temporary) as target:
        try:
            # Since version 1.10 of the format, all that describes the content has a checksum too.
            with h5py.File(target, "w", libver=("v110", "v110")) as file:
                yield file
        except (OSError, RuntimeError):
            if target.failure is None:
                raise
        if target.failure is not None:
            raise target.failure


@contextmanager
def open_native(path: Path) -> Iterator[h5py.File]:
    """Open a native file for reading; a missing, truncated or damaged one is a :class:`DataError`."""
    if not path.exists():
        raise DataError("file not found", where=str(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"not a readable HDF5 file: {error}",
            where=str(path),
            expected="a complete file in the ATLAS flavour-tagging layout",
            fix="copy or write it again; it may have been cut short",
        ) from error
    with file:
        try:
            yield file
        except (OSError, RuntimeError) as error:
            raise DataError(f"damaged HDF5 file: {error}", where=str(path)) from error


def require_dataset(file: h5py.File, name: str, path: Path, fields: tuple[str, ...] = ()) -> h5py.Dataset:
    """The structured dataset of that name with at least ``fields``.

    Raises
    ------
    DataError
        If there is none, if a field is missing, or if the dataset lies in another file: a file that came
        from elsewhere must not make this program read what its user may read.
    """
    refuse_links(file, (name,), path)
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.names is None:
        raise DataError(
            f"no structured dataset '{name}'",
            where=str(path),
            expected=f"datasets jets and tracks; found {', '.join(file)}",
        )
    if dataset.is_virtual or dataset.external:
        raise _elsewhere(name, path)
    absent = [field for field in fields if field not in dataset.dtype.names]
    if absent:
        raise missing_fields(absent, dataset.dtype.names, f"{path}, dataset {name}", "fields")
    return dataset


def require_numbers(table: np.dtype[Any], fields: Iterable[str], where: str) -> None:
    """Raise a :class:`DataError` where a field of a table holds anything but one real number per row."""
    for name in fields:
        kind = table[name]
        if kind.kind not in "biuf" or kind.shape:
            raise DataError(
                f"the field '{name}' holds {kind}",
                where=where,
                expected="one real number for each of its rows",
                fix="write it anew as float or integer, or name another field in the data card",
            )


def refuse_links(file: h5py.File, names: Iterable[str], path: Path) -> None:
    """Raise a :class:`DataError` where a name is a link: a soft one may lead to another file too."""
    for name in names:
        if isinstance(file.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
            raise _elsewhere(name, path)


def _elsewhere(name: str, path: Path) -> DataError:
    return DataError(
        f"the dataset '{name}' is a link, or its content lies in other files",
        where=str(path),
        expected="datasets that the file itself holds",
        fix="copy the content into one file (h5repack, or h5py)",
    )
