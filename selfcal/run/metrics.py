"""``metrics.jsonl``: one JSON object per line, appended while the run goes on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcal.errors import DataError
from selfcal.run.atomic import write_text


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row; a line torn by an earlier crash is cut off first.

    The row goes out in one ``write``, so that a crash can tear the last line only.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    line = (json.dumps(dict(row), allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            whole = _whole_length(descriptor)
            os.ftruncate(descriptor, whole)
            os.lseek(descriptor, 0, os.SEEK_END)
            if os.write(descriptor, line) < len(line):  # a disk that fills up takes a part and says nothing
                os.ftruncate(descriptor, whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror}",
            where=str(path),
            fix="check free space and permissions, then run the same command again",
        ) from error


def _whole_length(descriptor: int) -> int:
    """Bytes up to and including the last newline."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows; an unfinished last line is left out.

    Raises
    ------
    DataError
        If a line before the last is no JSON object.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"damaged line: {error}", where=f"{path}, line {number}") from error
        if not isinstance(row, dict):
            raise DataError("not a JSON object", where=f"{path}, line {number}")
        rows.append(row)
    return rows


def drop_metrics(path: Path, stage: str) -> None:
    """Take out the rows of one stage: what is run again must not stand there twice."""
    if path.exists():
        kept = [row for row in read_metrics(path) if row.get("stage") != stage]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
