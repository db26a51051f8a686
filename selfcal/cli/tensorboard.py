"""``selfcal tensorboard``: the metrics of a run as TensorBoard event files."""

from __future__ import annotations

import time
from pathlib import Path

from selfcal.cli.execution import print_json
from selfcal.errors import DataError
from selfcal.report.tensorboard import EventWriter, write_events
from selfcal.run.metrics import read_metrics

PAUSE_S = 5.0


def write_tensorboard(run: Path, *, out: Path | None, follow: bool, as_json: bool) -> None:
    """Write the events once, or go on as metrics arrive until interrupted.

    Raises
    ------
    DataError
        If the run has no metrics.
    """
    metrics, folder = run / "metrics.jsonl", out or run / "tensorboard"
    if not metrics.exists():
        raise DataError("no metrics there", where=str(metrics), expected="a run whose training has begun")
    rows = write_events(metrics, folder)
    if as_json:
        print_json({"folder": str(folder), "rows": rows})
    else:
        print(f"{rows} rows of metrics.jsonl in {folder}; look at them with: tensorboard --logdir {folder}")
    if follow:
        _follow(metrics, folder, rows)


def _follow(metrics: Path, folder: Path, rows: int) -> None:
    writer = EventWriter(folder, skip=rows)
    try:
        while True:
            time.sleep(PAUSE_S)
            writer.add_new(read_metrics(metrics))
    finally:
        writer.close()
