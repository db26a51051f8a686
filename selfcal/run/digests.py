"""SHA-256 of files and of what JSON can hold: the names of contents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from selfcal.errors import DataError
from selfcal.run.atomic import read_json, write_json

INPUT_DIGESTS = "inputs.json"
"""Name of the file that keeps the digests of input files."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from error


def canonical_digest(content: object) -> str:
    """SHA-256 of ``content`` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class InputDigests:
    """SHA-256 of input files, computed anew only when size or modification time changed."""

    def __init__(self, store: Path) -> None:
        self._store = store
        try:
            self._known: dict[str, dict[str, Any]] = read_json(store) if store.exists() else {}
        except DataError:
            self._known = {}
        self._changed = False

    def of(self, path: Path) -> str:
        """Digest of one file.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", where=str(path)) from error
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        entry = self._known.get(key)
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "sha256": file_sha256(path)}
            self._known[key] = entry
            self._changed = True
        return str(entry["sha256"])

    def save(self) -> None:
        """Keep what was computed for the next time."""
        if self._changed:
            write_json(self._store, self._known)
            self._changed = False
