"""JSON files that carry the SHA-256 of their own content: a changed digit is noticed wherever they go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcal.errors import DataError
from selfcal.run.atomic import parse_json, plain, read_json, write_json

SEAL = "content_sha256"
"""Key of the digest of everything else in the file."""


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` and its digest as JSON."""
    whole = parse_json(json.dumps(dict(content), allow_nan=False, default=plain), str(path))
    write_json(path, {**whole, SEAL: _digest(whole)})


def read_sealed(path: Path) -> Any:
    """Read what :func:`write_sealed` wrote, without the digest.

    A file without digest passes: it is older than the digest.

    Raises
    ------
    DataError
        If the file is missing, no JSON, or not what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict) or SEAL not in content:
        return content
    found = content.pop(SEAL)
    if found != _digest(content):
        raise DataError(
            "damaged: its content is not what was written",
            where=str(path),
            expected=f"{SEAL} {found}",
            fix="copy the file again, or run the command that makes it",
        )
    return content


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
