"""Numbers of a run by their path: ``closure.rows[flavour=b,working_point=0.77].ratio_calibrated``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcal.config.document import parse_value
from selfcal.errors import DataError
from selfcal.run.atomic import read_json

_STEP = re.compile(r"([A-Za-z0-9_-]+)(?:\[([^\]]+)\])?(?:\.|$)")


def collected(results: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """The value of each of ``columns`` (name to path) from the JSON files in ``results``.

    The path ``a.b.c`` is the key ``c`` in the key ``b`` of ``a.json``; a number addresses an item of a list.
    ``b[x=1,y.0=2]`` keeps the items of the list ``b`` whose ``x`` is 1 and whose first ``y`` is 2; what
    follows is taken of each. If exactly one item is left the value is a single one, else a list; None if
    none is left, as where a small sample gives no row, or where the file has null on the way.

    Raises
    ------
    DataError
        If a file or a key is missing.
    """
    contents: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name, path in columns.items():
        steps = _STEP.findall(path)
        stem = steps[0][0]
        where = results / f"{stem}.json"
        if stem not in contents:
            contents[stem] = read_json(where)
        values = [contents[stem]]
        for key, condition in steps[1:]:
            values = [_inside(value, key, path, where) for value in values]
            if condition:
                values = _selected(values, condition, path, where)
        found[name] = values[0] if len(values) == 1 else values or None
    return found


def _inside(value: Any, key: str, path: str, where: Path) -> Any:
    if value is None:  # what a run says it has not: no detector was inferred, for instance
        return None
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    if isinstance(value, dict) and key in value:
        return value[key]
    raise DataError(f"no '{key}' on the way to '{path}'", where=str(where))


def _selected(values: list[Any], condition: str, path: str, where: Path) -> list[Any]:
    """The items, of all lists in ``values`` together, that fulfil ``key=value,key=value``."""
    wanted = [part.partition("=") for part in condition.split(",")]
    kept: list[Any] = []
    for value in values:
        if not isinstance(value, list):
            raise DataError(f"'[{condition}]' in '{path}' selects from what is no list", where=str(where))
        kept += [
            item
            for item in value
            if all(_reached(item, key.strip()) == parse_value(text, path) for key, _, text in wanted)
        ]
    return kept


def _reached(item: Any, key: str) -> Any:
    """``a.0`` in an item; None where there is no such thing."""
    for part in key.split("."):
        if isinstance(item, list) and part.isdigit() and int(part) < len(item):
            item = item[int(part)]
        elif isinstance(item, dict):
            item = item.get(part)
        else:
            return None
    return item
