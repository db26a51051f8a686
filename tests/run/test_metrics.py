"""Metrics survive a crash at any byte."""

from __future__ import annotations

import pytest

from selfcal.errors import DataError
from selfcal.run.metrics import append_metrics, read_metrics

ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_rows_come_back(tmp_path):
    path = tmp_path / "folder" / "metrics.jsonl"
    assert read_metrics(path) == []
    for row in ROWS:
        append_metrics(path, row)
    assert read_metrics(path) == ROWS


@pytest.mark.fault(2, "metrics torn at every byte")
def test_a_line_torn_at_any_byte_costs_that_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for row in ROWS:
        append_metrics(path, row)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert read_metrics(path) == ROWS[:1]
        append_metrics(path, ROWS[1])
        assert path.read_bytes() == whole
    for length in range(first):
        path.write_bytes(whole[:length])
        append_metrics(path, ROWS[0])
        assert read_metrics(path) == ROWS[:1]


def test_a_long_torn_line_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, ROWS[0])
    with path.open("ab") as handle:
        handle.write(b"x" * 20_000)
    append_metrics(path, ROWS[1])
    assert read_metrics(path) == ROWS


@pytest.mark.parametrize("line", ["not json", "[1, 2]"])
def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(DataError) as caught:
        read_metrics(path)
    assert caught.value.where == f"{path}, line 2"


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_metrics(tmp_path / "m.jsonl", {"loss": float("nan")})
