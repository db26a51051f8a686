"""Studies: run every point, put the collected numbers side by side, survive points that fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcal.config.document import read_document
from selfcal.config.loading import load_model
from selfcal.config.shipped import shipped_names, shipped_path
from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError, DataError, Interrupted, SelfcalError
from selfcal.run.atomic import read_json, write_json
from selfcal.run.stages import canonical_digest

RunPoint = Callable[[tuple[str, ...], Path], None]
"""Runs the base configuration with these ``KEY=VALUE`` assignments in this directory."""


@dataclass(frozen=True)
class Study:
    """A study file that has been read: its configuration and where it stands."""

    config: StudyConfig
    path: Path

    @property
    def base(self) -> str:
        """The base configuration: relative to the study file, or the name of a shipped one."""
        beside = self.path.parent / self.config.base
        return str(beside) if beside.exists() else self.config.base


@dataclass(frozen=True)
class Point:
    """One point: the values that differ from the base configuration."""

    values: Mapping[str, Any]

    @property
    def label(self) -> str:
        """A folder name made of the values; a digest keeps long or strange ones apart."""
        text = ",".join(
            f"{name.rpartition('.')[2]}={json.dumps(value)}" for name, value in self.values.items()
        )
        plain = re.sub(r"[^A-Za-z0-9_.,=+-]", "", text)
        if plain == text and len(plain) <= 80 and len(self._short_names()) == len(self.values):
            return plain
        return f"{plain[:60]}-{canonical_digest(dict(self.values))[:10]}"

    def _short_names(self) -> set[str]:
        return {name.rpartition(".")[2] for name in self.values}

    @property
    def assignments(self) -> tuple[str, ...]:
        """The values as ``KEY=VALUE``, in YAML (of which JSON is a part)."""
        return tuple(f"{name}={json.dumps(value)}" for name, value in self.values.items())


def load_study(name: str) -> Study:
    """Read a study file, or a shipped study by its name.

    Raises
    ------
    ConfigError
        If there is none, or it is wrong; with file, line and key.
    """
    path = Path(name)
    if not path.exists() and not path.suffix and "/" not in name:
        if name not in shipped_names("studies"):
            raise ConfigError(
                "no such study",
                where=name,
                expected=f"a YAML file, or one of {', '.join(shipped_names('studies'))}",
            )
        path = shipped_path("studies") / f"{name}.yaml"
    return Study(load_model(read_document(path), StudyConfig), path)


def study_points(study: Study) -> list[Point]:
    """All points of the study, in order."""
    return [Point(values) for values in study.config.points()]


def collected(results: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The numbers named ``file.key.key`` from the JSON files in ``results``.

    Raises
    ------
    DataError
        If a file or a key is missing.
    """
    found: dict[str, Any] = {}
    for key in keys:
        stem, *inner = key.split(".")
        value = read_json(results / f"{stem}.json")
        for part in inner:
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, dict) and part in value:
                value = value[part]
            else:
                raise DataError(f"no '{part}' on the way to '{key}'", where=str(results / f"{stem}.json"))
        found[key] = value
    return found


def run_study(study: Study, folder: Path, run_point: RunPoint, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all points one after the other; a point that fails is noted and the rest go on.

    Each point has its own run directory, whose finished stages are kept: called again, only what is
    missing is done. ``summary.json`` is written anew after every point.

    Raises
    ------
    Interrupted
        When the user stops it; the points done so far are in ``summary.json``.
    """
    points = study_points(study)
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(points, start=1):
        say(f"== {study.config.name} {number}/{len(points)}: {point.label}")
        rows.append(_row(study, point, folder / point.label, run_point))
        if rows[-1]["error"] is not None:
            say(f"   failed: {rows[-1]['error']}")
        write_json(folder / "summary.json", _summary(study, rows, len(points)))
    return _summary(study, rows, len(points))


def _row(study: Study, point: Point, directory: Path, run_point: RunPoint) -> dict[str, Any]:
    row: dict[str, Any] = {"point": dict(point.values), "run": directory.name, "values": None, "error": None}
    try:
        run_point(point.assignments, directory)
        if study.config.coverage is not None:
            from selfcal.study.coverage import run_coverage  # PyTorch, which listing studies does not need

            run_coverage(directory, study.config.coverage)
        row["values"] = collected(directory / "results", study.config.collect)
    except Interrupted:
        raise
    except SelfcalError as error:
        row["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - one point must not take the others with it
        row["error"] = f"unexpected {type(error).__name__}: {error}"
    return row


def _summary(study: Study, rows: list[dict[str, Any]], total: int) -> dict[str, Any]:
    return {
        "study": study.config.name,
        "expected": study.config.expected,
        "points": total,
        "done": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "rows": rows,
    }


def render_summary(summary: Mapping[str, Any]) -> str:
    """The collected numbers as a table for people."""
    collected_keys = list(dict.fromkeys(key for row in summary["rows"] for key in row["values"] or ()))
    keys = [
        key
        for key in collected_keys
        if key.removesuffix("_error") not in collected_keys or not key.endswith("_error")
    ]
    width = max([len(row["run"]) for row in summary["rows"]] + [len("point")]) + 2
    header = [key.rpartition(".")[2] for key in keys]
    lines = []
    cells = [
        [_cell(row["values"], key) for key in keys] if row["error"] is None else None
        for row in summary["rows"]
    ]
    columns = [
        max([len(name), 10, *(len(found[place]) for found in cells if found is not None)]) + 2
        for place, name in enumerate(header)
    ]
    lines.append("point".ljust(width) + "".join(n.rjust(c) for n, c in zip(header, columns, strict=True)))
    for row, found in zip(summary["rows"], cells, strict=True):
        if found is None:
            lines.append(row["run"].ljust(width) + "  failed: " + str(row["error"]).splitlines()[0])
        else:
            lines.append(
                row["run"].ljust(width) + "".join(x.rjust(c) for x, c in zip(found, columns, strict=True))
            )
    return "\n".join([*lines, f"expected: {summary['expected'].strip()}"])


def _cell(values: Mapping[str, Any], key: str) -> str:
    """One number; with its uncertainty where that was collected too."""
    value, error = values.get(key), values.get(f"{key}_error")
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if error is None else f"{text} ± {error:.3g}"
