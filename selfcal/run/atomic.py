"""Files that are either complete or absent: write aside, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selfcal.errors import DataError

PART = ".part"
"""How the names of unfinished files and folders end; they begin with a dot."""

DIGEST_KEY = "selfcal_content_sha256"
"""Metadata of a safetensors file: the digest of all else in it. The format has no checksum of its own."""


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside ``final``; renamed onto it when the block succeeds.

    The temporary file is removed if the block fails, so that nothing half-written
    is ever left under the final name.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}{PART}")
    with _naming(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _naming(final: Path) -> Iterator[None]:
    """What fails while ``final`` is written is told as one error that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is what safetensors makes of a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"cannot write: {reason}",
            where=str(final),
            fix="check free space and permissions, then run the same command again",
        ) from error


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A temporary folder beside ``final`` that takes its place, with all it holds, when the block succeeds.

    What was in ``final`` before is gone then, so that no file of an earlier result stays among the new ones;
    if the block fails ``final`` is left as it was. A process killed between the two renames leaves no
    ``final``: never one with files of both.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}{PART}")
    before = final.with_name(f".{final.name}.{os.getpid()}.before{PART}")
    with _naming(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with open(path, "rb") as handle:
                        os.fsync(handle.fileno())
            if final.exists():
                os.replace(final, before)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(before, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete what processes that were killed while writing have left below ``folder``; returns the paths."""
    left = [path for path in folder.rglob(f".*{PART}") if not path.is_symlink()]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON; NaN and infinities are refused by the encoder."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=plain) + "\n")


def plain(value: object) -> Any:
    """The JSON form of arrays, tensors and paths.

    Raises
    ------
    TypeError
        If it has none.
    """
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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError("file not found", where=str(path)) from error
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not valid JSON: {error}", where=str(path)) from error
    return parse_json(text, str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON text as plain values.

    Raises
    ------
    DataError
        If it is no JSON, or holds NaN or infinities, which Python would take.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=where) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as one safetensors file (no pickle), with the SHA-256 of what it holds."""
    whole = {name: np.asarray(value, order="C") for name, value in arrays.items()}  # keeps () shapes
    described = dict(metadata or {})
    with atomic_path(path) as temporary:
        save_file(whole, temporary, {**described, DIGEST_KEY: content_sha256(whole, described)})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`write_arrays` wrote.

    Raises
    ------
    DataError
        If the file is missing or damaged, down to a single bit.
    """
    return read_arrays_and_metadata(path)[0]


def read_arrays_and_metadata(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """As :func:`read_arrays`, with the metadata that were written beside the arrays.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    if not path.exists():
        raise DataError("file not found", where=str(path))
    try:
        with safe_open(path, framework="np") as file:
            described = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise DataError(f"damaged safetensors file: {error}", where=str(path)) from error
    # A file without digest passes: it is another program's, or older than the digest.
    expected = described.pop(DIGEST_KEY, None)
    if expected is not None and content_sha256(arrays, described) != expected:
        raise DataError(
            "damaged safetensors file: its content is not what was written",
            where=str(path),
            expected=f"SHA-256 {expected}",
            fix="delete it and run the command that makes it again, or copy it again",
        )
    return arrays, described


def content_sha256(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types, shapes and bytes of arrays, and of metadata, in the order of the names."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(arrays):
        value = arrays[name]
        digest.update(json.dumps([name, value.dtype.str, list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def finished_arrays(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays in ``path`` if the file is there, whole and of this ``key``: a finished piece of work."""
    if not path.exists():
        return None
    try:
        arrays, metadata = read_arrays_and_metadata(path)
    except DataError:
        return None
    return arrays if metadata.get("key") == key else None
