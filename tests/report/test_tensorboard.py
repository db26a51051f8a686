from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfcal.errors import ConfigError
from selfcal.report.tensorboard import EventWriter, scalars, write_events
from selfcal.run.metrics import append_metrics, read_metrics

ROWS = [
    {"stage": "train", "epoch": 0, "step": 125, "loss": 2.5, "finished": True, "note": "text"},
    {"stage": "train", "epoch": 1, "step": 250, "loss": 1.5},
    {"stage": "joint", "epoch": 1, "averages": {"dijet": [0.25, 0.5]}},
]


def test_numbers_of_nested_objects_and_lists_are_named_by_their_path() -> None:
    assert dict(scalars(ROWS[0])) == {"loss": 2.5}
    assert dict(scalars(ROWS[2])) == {"averages/dijet/0": 0.25, "averages/dijet/1": 0.5}


def _read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_numbers_of_metrics(tmp_path: Path) -> None:
    metrics, folder = tmp_path / "metrics.jsonl", tmp_path / "events"
    for row in ROWS[:2]:
        append_metrics(metrics, row)
    assert write_events(metrics, folder) == 2
    assert _read(folder) == {"train/loss": [(125, 2.5), (250, 1.5)]}
    append_metrics(metrics, ROWS[2])
    writer = EventWriter(folder, skip=2)
    assert writer.add_new(read_metrics(metrics)) == 1
    assert writer.add_new(read_metrics(metrics)) == 0
    writer.close()
    found = _read(folder)
    assert found["train/loss"] == [(125, 2.5), (250, 1.5)]
    assert found["joint/averages/dijet/1"] == [(1, 0.5)]
    with pytest.raises(ConfigError, match="not empty"):
        write_events(metrics, folder)
