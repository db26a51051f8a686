"""Events of a ROOT file (TTree or RNTuple): opened, named and read in ranges, damage reported as such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from selfcal.data.field_names import missing_fields
from selfcal.errors import DataError, SelfcalError

_MAGIC = b"root"
_EVENTS_LOOKED_AT = 1000
"""Events from which the mean number of jets per event is taken."""


def lengths(array: Any) -> NDArray[np.int64]:
    """Number of entries in each row of a jagged array, (rows,)."""
    return np.asarray(ak.to_numpy(ak.num(array))).astype(np.int64)


def flat_int(array: Any) -> NDArray[np.int64]:
    """The entries of a jagged array, row after row."""
    return np.asarray(ak.to_numpy(ak.flatten(array))).astype(np.int64)


def flat_float(array: Any) -> NDArray[np.float64]:
    """The entries of a jagged array, row after row."""
    return np.asarray(ak.to_numpy(ak.flatten(array))).astype(np.float64)


@contextmanager
def _reporting_damage(path: Path, what: str) -> Iterator[None]:
    """Turn whatever uproot meets in a damaged file into a ``DataError``.

    Bytes that were cut off or changed surface as errors of nearly every kind (ValueError, OSError,
    struct.error, zlib.error, IndexError, AttributeError and uproot's own), hence the wide net; only calls
    into uproot stand inside it.
    """
    try:
        yield
    except SelfcalError:
        raise
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0][:160]
        raise DataError(
            f"cannot read {what}: {type(error).__name__} {first_line}".rstrip(),
            where=str(path),
            expected="a complete ROOT file",
            fix="copy or write it again; it may have been cut short or damaged",
        ) from error


class EventTable:
    """One row per event: the columns of a TTree or RNTuple, flat or jagged.

    Attributes
    ----------
    path : the file
    name : of the tree
    columns : names of all columns, in the file's order
    kind : ``TTree`` or ``RNTuple``
    """

    def __init__(self, tree: Any, path: Path) -> None:
        self._tree = tree
        self.path = path
        with _reporting_damage(path, "the names of the columns"):
            self.name: str = tree.name
            self.kind = "TTree" if tree.classname == "TTree" else "RNTuple"
            # Parts of records are no columns of their own in an RNTuple, and listing them is slow.
            recursive = self.kind == "TTree"
            names = tree.keys(recursive=recursive, full_paths=False)
            self.columns: tuple[str, ...] = tuple(dict.fromkeys(names))
            self._known = frozenset(self.columns)
            self._n_events = int(tree.num_entries)

    def __len__(self) -> int:
        """Number of events."""
        return self._n_events

    def __contains__(self, column: object) -> bool:
        return column in self._known

    def read(self, column: str, start: int = 0, stop: int | None = None) -> Any:
        """A column of events ``start`` to ``stop`` as an awkward array.

        Raises
        ------
        DataError
            If there is no such column, or its bytes are damaged.
        """
        if column not in self._known:
            raise missing_fields([column], self.columns, f"{self.path}, {self.name}", "fields")
        stop = len(self) if stop is None else stop
        with _reporting_damage(self.path, f"column {column}"):
            array = self._tree[column].array(entry_start=start, entry_stop=stop, library="ak")
            if len(array) != stop - start:
                raise ValueError(f"{len(array)} of {stop - start} events")
            if problem := ak.validity_error(array):  # offsets are not covered by every checksum
                raise ValueError(problem)
            return array

    def ranges(self, jets_column: str, chunk_jets: int) -> Iterator[tuple[int, int]]:
        """Ranges of events with about ``chunk_jets`` jets each; one empty range if there are no events."""
        looked_at = min(len(self), _EVENTS_LOOKED_AT)
        n_jets = int(ak.count(self.read(jets_column, 0, looked_at), axis=None)) if looked_at else 0
        step = max(1, chunk_jets * looked_at // max(1, n_jets))
        for start in range(0, max(1, len(self)), step):
            yield start, min(start + step, len(self))

    def count_jets(self, jets_column: str, events_at_a_time: int = 200_000) -> int:
        """Number of entries of a jagged column, or sum of a column of counts."""
        total = 0
        for start in range(0, len(self), events_at_a_time):
            array = self.read(jets_column, start, min(start + events_at_a_time, len(self)))
            total += int(ak.sum(array)) if array.ndim == 1 else int(ak.sum(ak.num(array)))
        return total


class EventBlock:
    """A range of events, whose jets are laid out flat: N jets of E events.

    Attributes
    ----------
    counts : (E,) jets per event
    event_of_jet : (N,) index of each jet's event within the block
    """

    def __init__(self, table: EventTable, start: int, stop: int, jets_column: str) -> None:
        self.table = table
        self.start, self.stop = start, stop
        self._arrays: dict[str, Any] = {}
        self.counts = lengths(self.read(jets_column))
        self.event_of_jet = np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def n_jets(self) -> int:
        return int(self.counts.sum())

    @property
    def index_in_event(self) -> NDArray[np.int32]:
        """Position of each jet within its event, (N,)."""
        first = np.cumsum(self.counts) - self.counts
        return (np.arange(self.n_jets) - np.repeat(first, self.counts)).astype(np.int32)

    def read(self, column: str) -> Any:
        """A column of these events; read once."""
        if column not in self._arrays:
            self._arrays[column] = self.table.read(column, self.start, self.stop)
        return self._arrays[column]

    def per_event(self, column: str) -> NDArray[Any]:
        """One number per event, (E,): the first where there are several (as in ``mcEventWeights``).

        Raises
        ------
        DataError
            If an event has none.
        """
        array = self.read(column)
        if array.ndim == 1:
            return np.asarray(ak.to_numpy(array))
        if int(ak.min(ak.num(array), initial=1)) == 0:
            raise DataError(f"'{column}' is empty for some events", where=str(self.table.path))
        return np.asarray(ak.to_numpy(array[:, 0]))

    def per_jet(self, column: str) -> NDArray[Any]:
        """One number per jet, (N,); a column with one number per event is repeated for its jets."""
        array = self.read(column)
        if array.ndim == 1:
            return np.asarray(ak.to_numpy(array))[self.event_of_jet]
        return np.asarray(ak.to_numpy(ak.flatten(self.jagged(column))))

    def flat(self, column: str, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The entries of a jagged column, event after event; ``counts`` (E,) is how many there must be.

        Raises
        ------
        DataError
            If an event has another number of entries.
        """
        array = self.read(column)
        if array.ndim < 2 or not np.array_equal(lengths(array), counts):
            raise DataError(
                f"'{column}' does not have as many entries as the columns beside it",
                where=str(self.table.path),
                expected=f"{int(counts.sum())} entries in events {self.start} to {self.stop}",
                fix="the file is damaged or was skimmed inconsistently",
            )
        return flat_float(array)

    def jagged(self, column: str) -> Any:
        """A column of jets, (E, var, ...), whose numbers of jets are checked.

        Raises
        ------
        DataError
            If an event has another number of entries than of jets.
        """
        array = self.read(column)
        if not np.array_equal(lengths(array), self.counts):
            raise DataError(
                f"'{column}' does not have one entry per jet",
                where=str(self.table.path),
                expected=f"{self.n_jets} entries in events {self.start} to {self.stop}",
                fix="name a field of the jet collection, or check the collection of the data card",
            )
        return array


@contextmanager
def open_events(path: Path, trees: Sequence[str]) -> Iterator[EventTable]:
    """The first of ``trees`` that the file has; its arrays are not kept in memory.

    Raises
    ------
    DataError
        If the file is missing, no ROOT file, damaged, or has none of these trees; a file that holds
        only histograms is said to be one.
    """
    with _open(path) as (file, classes):
        table = _table(path, file, classes, trees)
        if table is None:
            raise _without_events(path, trees, classes)
        yield table


@contextmanager
def events_if_any(path: Path, trees: Sequence[str]) -> Iterator[EventTable | None]:
    """As :func:`open_events`, but None for a file of another format or without these trees."""
    if path.is_file():
        with path.open("rb") as start:
            if start.read(len(_MAGIC)) != _MAGIC:
                yield None
                return
    with _open(path) as (file, classes):
        yield _table(path, file, classes, trees)


def holds_histograms(path: Path) -> bool:
    """Whether it is a ROOT file with histograms and without any tree.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    with path.open("rb") as start:
        if start.read(len(_MAGIC)) != _MAGIC:
            return False
    with _open(path) as (_, classes):
        return bool(_only_histograms(classes))


def read_histograms(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Contents (B,) and edges (B + 1,) of every one-dimensional histogram of a ROOT file, by name.

    Raises
    ------
    DataError
        If the file is missing or damaged, or holds none.
    """
    with _open(path) as (file, classes):
        found = {}
        for name in (name for name, kind in classes.items() if kind.startswith("TH1")):
            with _reporting_damage(path, name):
                contents, edges = file[name].to_numpy()
            found[name] = (contents.astype(np.float64), edges.astype(np.float64))
    if not found:
        raise DataError("holds no one-dimensional histogram", where=str(path), expected="TH1 objects")
    return found


def _only_histograms(classes: dict[str, str]) -> list[str]:
    """Names of the histograms of a file that has no tree; empty if it has one."""
    if any(kind.endswith(("TTree", "RNTuple")) for kind in classes.values()):
        return []
    return [name for name, kind in classes.items() if kind.startswith(("TH", "TProfile", "TGraph"))]


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and the class of each of its objects."""
    if not path.exists():
        raise DataError("file not found", where=str(path))
    with _reporting_damage(path, "the file as ROOT"):
        file = uproot.open(path, array_cache=None)
    with file:
        with _reporting_damage(path, "the list of contents"):
            classes: dict[str, str] = file.classnames(cycle=False)
            end = int(file.file.fEND)
        size = path.stat().st_size
        if size < end:
            raise DataError(
                f"is cut short: {size} of {end} bytes",
                where=str(path),
                expected="a complete ROOT file",
                fix="copy or write it again",
            )
        yield file, classes


def _table(path: Path, file: Any, classes: dict[str, str], trees: Sequence[str]) -> EventTable | None:
    name = next((tree for tree in trees if classes.get(tree, "").endswith(("TTree", "RNTuple"))), None)
    if name is None:
        return None
    with _reporting_damage(path, f"the header of {name}"):
        tree = file[name]
    return EventTable(tree, path)


def _without_events(path: Path, trees: Sequence[str], classes: dict[str, str]) -> DataError:
    if histograms := _only_histograms(classes):
        return DataError(
            f"holds {len(histograms)} histograms and no jets ({', '.join(histograms[:3])} ...)",
            where=str(path),
            expected=f"events in {' or '.join(trees)}",
            fix="a data card describes files of jets; histograms are no input of the calibration",
        )
    return DataError(
        f"has no {' or '.join(trees)}",
        where=str(path),
        expected=f"events in {' or '.join(trees)}",
        fix=f"it holds {', '.join(f'{n} ({k})' for n, k in list(classes.items())[:12]) or 'nothing'}; "
        "check the format of the data card",
    )
