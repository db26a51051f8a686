"""Study files and their points."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from selfcal.config.document import read_document
from selfcal.config.loading import load_model
from selfcal.config.shipped import shipped_names, shipped_path
from selfcal.config.study import BOOTSTRAP, CASE, SEED, Case, StudyConfig
from selfcal.errors import ConfigError
from selfcal.run.digests import canonical_digest


@dataclass(frozen=True)
class Study:
    """A study file that has been read: its configuration and where it stands."""

    config: StudyConfig
    path: Path

    @property
    def base(self) -> tuple[str, ...]:
        """The base configurations: relative to the study file, or names of shipped ones."""
        names = (self.config.base,) if isinstance(self.config.base, str) else self.config.base
        beside = [(name, self.path.parent / name) for name in names]
        return tuple(str(path) if path.exists() else name for name, path in beside)


@dataclass(frozen=True)
class Point:
    """One point: the values that differ from the base configuration, and the case it belongs to."""

    values: Mapping[str, Any]
    case: Case | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the point from the others of its study: axis values, seed, name of the case."""
        return {CASE: self.case.name, **self.values} if self.case else dict(self.values)

    @property
    def label(self) -> str:
        """A folder name made of the values; a digest keeps long or strange ones apart."""
        text = ",".join(
            value if name == CASE else f"{name.rpartition('.')[2]}={_plain(value)}"
            for name, value in self.identity.items()
        )
        plain = re.sub(r"[^A-Za-z0-9_.,=+-]", "", text)
        if plain == text and len(plain) <= 80 and len(self._short_names()) == len(self.values):
            return plain
        return f"{plain[:60]}-{canonical_digest(self.identity)[:10]}"

    def _short_names(self) -> set[str]:
        return {name.rpartition(".")[2] for name in self.values}

    @property
    def assignments(self) -> tuple[str, ...]:
        """The values as ``KEY=VALUE``, in YAML (of which JSON is a part)."""
        assigned = {**(self.case.set if self.case else {}), **self.values}
        return tuple(f"{name}={json.dumps(value)}" for name, value in assigned.items())


def _plain(value: Any) -> str:
    """A word as it is, anything else as JSON."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


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


def study_points(config: StudyConfig) -> list[Point]:
    """Every combination of cases, axis values, bootstraps and seeds, in order; the seed varies fastest."""
    axes: dict[str, tuple[Any, ...]] = dict(config.axes)
    if config.bootstraps:
        axes[BOOTSTRAP] = tuple(range(config.bootstraps + 1))
    axes[SEED] = config.seeds
    return [
        Point(dict(zip(axes, values, strict=True)), case)
        for case in config.cases or (None,)
        for values in product(*axes.values())
    ]
