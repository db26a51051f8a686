"""pyhf workspaces as files: JSON, or JSON compressed with gzip (``.gz``)."""

from __future__ import annotations

import copy
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from selfcal.errors import DataError
from selfcal.likelihood.compiler import find_measurement
from selfcal.likelihood.histfactory import HistFactory
from selfcal.run.atomic import atomic_path, parse_json

MAX_BYTES = 512 << 20
"""Largest workspace that is unpacked; those of whole experiments have some tens of MiB."""


def read_workspace(path: Path) -> dict[str, Any]:
    """A workspace that satisfies pyhf's schema 1.0.0.

    Raises
    ------
    DataError
        If the file is missing, damaged, or not a workspace; the place of the first violation is named.
    """
    import pyhf

    try:
        content = path.read_bytes()
        text = _unpacked(content, path) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise DataError("file not found", where=str(path)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(path)) from error
    workspace: dict[str, Any] = parse_json(text, str(path))
    with warnings.catch_warnings():
        # pyhf 0.7 validates with an interface that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            pyhf.schema.validate(workspace, "workspace.json")
        except pyhf.exceptions.InvalidSpecification as error:
            raise DataError(
                "not a pyhf workspace: " + str(error).splitlines()[0],
                where=str(path),
                expected="a workspace of pyhf's schema 1.0.0",
            ) from error
    return workspace


def _unpacked(content: bytes, path: Path) -> bytes:
    """What a gzip file holds, unless that is more than any workspace: a few bytes can ask for all memory."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        text = packed.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise DataError(
            f"unpacks to more than {MAX_BYTES >> 20} MiB", where=str(path), expected="a pyhf workspace"
        )
    return text


def write_workspace(path: Path, workspace: Mapping[str, Any]) -> None:
    """Write a workspace, compressed where the name ends in ``.gz``; the same content gives the same bytes."""
    content = (json.dumps(workspace, indent=1, allow_nan=False) + "\n").encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def with_data(
    workspace: Mapping[str, Any],
    model: HistFactory,
    counts: Float[Tensor, " B"],
    centre: Float[Tensor, " D"] | None = None,
) -> dict[str, Any]:
    """The workspace with other data: counts, and auxiliary measurements of the model's measurement.

    A toy experiment, for instance, in the form in which pyhf opens it.
    """
    result: dict[str, Any] = copy.deepcopy(dict(workspace))
    for observation in result["observations"]:
        observation["data"] = counts[model.channels[observation["name"]]].tolist()
    if centre is None:
        return result
    measurement = find_measurement(result, model.measurement)
    entries = {entry["name"]: entry for entry in measurement["config"]["parameters"]}
    auxiliary: dict[str, list[float]] = {}
    for parameter, value in zip(model.parameters, centre.tolist(), strict=True):
        if parameter.width is not None:
            family = parameter.name.split("[")[0]
            count = value / parameter.width**2 if parameter.constraint == "poisson" else value
            auxiliary.setdefault(family, []).append(count)
    for name, values in auxiliary.items():
        entries.setdefault(name, {"name": name})["auxdata"] = values
    measurement["config"]["parameters"][:] = entries.values()
    return result
