"""The metrics of a run as TensorBoard event files.

``metrics.jsonl`` is what counts; this copies its numbers, a scalar each under ``<stage>/<name>``, for those
who like to look at a training in TensorBoard (which nflows brings along).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcal.errors import ConfigError
from selfcal.run.metrics import read_metrics

STEPS = ("step", "epoch")
"""Fields that say when, the first one present."""


class EventWriter:
    """Appends rows of ``metrics.jsonl`` beyond the first ``skip`` to event files in ``folder``."""

    def __init__(self, folder: Path, skip: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(folder))
        self._written = skip

    def add_new(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Add what follows the rows that were added before; returns how many."""
        new = rows[self._written :]
        for row in new:
            at = next((int(row[name]) for name in STEPS if name in row), 0)
            for name, value in scalars(row):
                self._writer.add_scalar(f"{row.get('stage', 'run')}/{name}", value, at)
        self._written += len(new)
        self._writer.flush()
        return len(new)

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row with their names; those of nested objects and lists as ``name/key``."""
    for name, value in row.items():
        if name == "stage" or name in STEPS or isinstance(value, bool):
            continue
        if isinstance(value, (int, float)):
            yield name, float(value)
        elif isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in scalars(value))
        elif isinstance(value, list):
            yield from scalars({f"{name}/{i}": entry for i, entry in enumerate(value)})


def write_events(metrics: Path, folder: Path) -> int:
    """Event files of all rows of ``metrics`` in ``folder``; returns the number of rows.

    Raises
    ------
    ConfigError
        If ``folder`` holds files already: the numbers would be there twice.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            "the folder is not empty", where=str(folder), fix="remove it or choose another --out"
        )
    writer = EventWriter(folder)
    try:
        return writer.add_new(read_metrics(metrics))
    finally:
        writer.close()
