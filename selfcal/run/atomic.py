"""Files that are either complete or absent: write aside, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from selfcal.errors import DataError


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside ``final``; renamed onto it when the block succeeds.

    The temporary file is removed if the block fails, so that nothing half-written
    is ever left under the final name.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror or error}",
            where=str(final),
            fix="check free space and permissions, then run the same command again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A temporary folder beside ``final`` that takes its place, with all it holds, when the block succeeds.

    What was in ``final`` before is gone then, so that no file of an earlier result stays among the new ones;
    if the block fails ``final`` is left as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror or error}",
            where=str(final),
            fix="check free space and permissions, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON; NaN and infinities are refused by the encoder."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=_plain) + "\n")


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    import torch  # slow to import, and rarely needed here

    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or damaged one is a :class:`DataError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("file not found", where=str(path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", where=str(path)) from error


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as one safetensors file (no pickle)."""
    with atomic_path(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in arrays.items()},
            temporary,
            dict(metadata or {}),
        )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`write_arrays` wrote."""
    if not path.exists():
        raise DataError("file not found", where=str(path))
    try:
        return load_file(path)
    except Exception as error:
        raise DataError(f"damaged safetensors file: {error}", where=str(path)) from error
