"""What the outputs of a stage are made from, and in what two such origins differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from selfcal.run.digests import canonical_digest

VALUE_LENGTH_MAX = 40
"""Characters of a configured value that are shown: a sentence stays a sentence."""
_ABSENT = object()


@dataclass(frozen=True)
class Origin:
    """Everything that decides the outputs of one stage.

    Attributes
    ----------
    stage, version : name of the stage and version of selfcal
    configuration : the part of the configuration that the stage depends on
    upstream : fingerprints of the stages before it, by name
    inputs : SHA-256 of its input files, by path
    """

    stage: str
    version: str
    configuration: Any
    upstream: Mapping[str, str]
    inputs: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of it as canonical JSON; where the input files lie does not count."""
        return canonical_digest({**asdict(self), "inputs": sorted(self.inputs.values())})

    def as_record(self) -> dict[str, Any]:
        """What :meth:`difference` needs to know later."""
        return {key: value for key, value in asdict(self).items() if key != "stage"}

    def difference(self, before: Any) -> str:
        """What is another than in the record ``before``, such as ``calibration.bootstraps: 20, was 10``.

        The first difference in the order version, configuration, input files, stages before, and how
        many more keys or files of its kind there are.
        """
        if not isinstance(before, dict):
            return "configuration, inputs or version changed"
        if before.get("version") != self.version:
            return f"selfcal {self.version}, was {before.get('version')}"
        old, new = _leaves(before.get("configuration")), _leaves(self.configuration)
        keys = [key for key in {**new, **old} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
        if keys:
            now, then = (_shown(values.get(keys[0], _ABSENT)) for values in (new, old))
            return f"{keys[0] or 'configuration'}: {now}, was {then}{_and_more(keys)}"
        files = sorted(self._changed_files(before.get("inputs")))
        if files:
            return f"input file {files[0]} changed{_and_more(files)}"
        stages = before.get("upstream")
        known = stages if isinstance(stages, dict) else {}
        changed = [name for name, digest in self.upstream.items() if known.get(name) != digest]
        return (
            f"'{changed[0]}' was made from something else"
            if changed
            else "inputs or the order of values changed"
        )

    def _changed_files(self, before: Any) -> Iterator[str]:
        """Names of input files with a content that no file had before."""
        known = list(before.values()) if isinstance(before, dict) else []
        return (PurePath(path).name for path, digest in self.inputs.items() if digest not in known)


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Single values of nested JSON by dotted path; entries of a list by their name, where they have one."""
    entries: dict[str, Any] = {}
    if isinstance(value, dict):
        entries = value
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        entries = {str(one["name"]): one for one in value}
    if not entries:
        return {path: value}
    found: dict[str, Any] = {}
    for key, one in entries.items():
        found |= _leaves(one, f"{path}.{key}" if path else str(key))
    return found


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= VALUE_LENGTH_MAX else text[: VALUE_LENGTH_MAX - 1] + "…"


def _and_more(found: list[str]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""
