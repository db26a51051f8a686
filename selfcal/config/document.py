"""YAML files whose every value remembers where it stands.

Reading is stricter than YAML: duplicate keys, unknown tags, merge keys, aliases that contain
themselves and keys that are no text are refused, each with file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from selfcal.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root of a document to a value."""

MAX_NODES = 200_000
"""Values in one document after aliases are expanded: a bound against files made to exhaust memory."""


@dataclass(frozen=True)
class Position:
    """Where a value was written: a file with line, or a command-line option."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.source
        return f"{self.source}, line {self.line}"


@dataclass
class Document:
    """Plain values with the position of every key and list item."""

    values: dict[str, Any]
    positions: dict[KeyPath, Position] = field(default_factory=dict)

    def position(self, path: KeyPath) -> Position:
        """Position of ``path``, or of its nearest ancestor that was written somewhere."""
        for length in range(len(path), -1, -1):
            found = self.positions.get(path[:length])
            if found is not None:
                return found
        return Position("configuration")


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 1e-3 as a number and leaves dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the text that :class:`_Loader` would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def dotted(path: Sequence[str | int]) -> str:
    """``("a", "b", 0)`` as ``a.b[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def read_document(path: Path) -> Document:
    """Read one YAML file whose root is a mapping.

    Raises
    ------
    ConfigError
        If the file is missing, unreadable, no valid YAML, or not a mapping; with its line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError("file not found", where=str(path), expected="a YAML file") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read: {error.strerror}", where=str(path), expected="a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8 text", where=f"{path}, line {line}", expected="a YAML file") from error
    return parse_document(text, str(path))


def parse_document(text: str, source: str) -> Document:
    """Parse YAML text; ``source`` names it in messages.

    Raises
    ------
    ConfigError
        If the text is empty, no YAML, or no mapping.
    """
    node = _compose(text, source)
    if node is None:
        raise ConfigError("the file is empty", where=source, expected="a YAML mapping of keys to values")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"found {_kind(node)} at the root",
            where=str(_position(node, source)),
            expected="a mapping of keys to values",
        )
    document = Document({})
    document.values = _Builder(source, document.positions).build(node, ())
    return document


def parse_value(text: str, source: str) -> Any:
    """One YAML value, such as the right-hand side of ``--set``."""
    node = _compose(text, source)
    return None if node is None else _Builder(source, {}).build(node, ())


def dump_yaml(values: object) -> str:
    """Plain values as YAML that :func:`parse_document` reads back as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1 if isinstance(error.position, int) else 1
        raise ConfigError(
            f"character that YAML does not allow: {error.reason}", where=f"{source}, line {line}"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"not valid YAML: {reason}", where=place) from error
    except RecursionError as error:
        raise ConfigError("nested too deeply", where=source) from error


def _position(node: yaml.Node, source: str) -> Position:
    return Position(source, node.start_mark.line + 1, node.start_mark.column + 1)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"the value {node.value!r}"


class _Builder:
    """Turns nodes into values and fills ``positions``."""

    def __init__(self, source: str, positions: dict[KeyPath, Position]) -> None:
        self._source = source
        self._positions = positions
        self._open: set[int] = set()
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise ConfigError(f"more than {MAX_NODES} values", where=self._source)
        self._positions.setdefault(path, _position(node, self._source))
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(
                f"unknown tag '{node.tag.replace('tag:yaml.org,2002:', '!!')}'",
                where=self._where(node, path),
                expected="plain YAML: text, numbers, true/false, lists and mappings",
                fix="remove the tag",
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise ConfigError("an alias contains itself", where=self._where(node, path))
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(
                    f"{_kind(key_node)} cannot be a key",
                    where=self._where(key_node, path),
                    expected="text",
                    fix="write the keys out; merge keys ('<<') are not supported",
                )
            key = key_node.value
            if key in values:
                raise ConfigError(
                    f"duplicate key '{key}'",
                    where=f"{self._source}, line {line}, key '{dotted((*path, key))}'",
                    expected=f"each key once (first on line {first_line[key]})",
                    fix="remove one of the two",
                )
            first_line[key] = line
            self._positions[(*path, key)] = _position(key_node, self._source)
            values[key] = self.build(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(
                f"cannot read {node.value!r} as {node.tag.rpartition(':')[2]}", where=self._where(node, path)
            ) from error

    def _where(self, node: yaml.Node, path: KeyPath) -> str:
        key = f", key '{dotted(path)}'" if path else ""
        return f"{_position(node, self._source)}{key}"


def merge_documents(earlier: Document, later: Document) -> Document:
    """``later`` wins: mappings are merged key by key, everything else is replaced."""
    values = _merge(earlier.values, later.values)
    positions = {
        path: position for path, position in earlier.positions.items() if not _replaced(path, later, values)
    }
    return Document(values, positions | later.positions)


def _merge(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(earlier)
    for key, value in later.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _replaced(path: KeyPath, later: Document, values: Mapping[str, Any]) -> bool:
    """Whether ``path`` of the earlier document no longer exists in the merged values."""
    here: Any = values
    over: Any = later.values
    for part in path:
        over = over.get(part) if isinstance(over, dict) and isinstance(part, str) else None
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            return True
        if isinstance(over, list):
            return True
    return False


def set_value(document: Document, assignment: str) -> Document:
    """``document`` with one ``a.b=c`` applied; ``c`` is YAML, and a number may address a list item.

    Raises
    ------
    ConfigError
        If the assignment cannot be read, or addresses an item that a list does not have.
    """
    source = f"--set {assignment}"
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError("cannot read the assignment", where=source, expected="--set KEY.KEY=VALUE")
    value = parse_value(text, source)
    path: KeyPath = ()
    content = _copied(document.values)
    here: Any = content
    added: dict[KeyPath, Position] = {}
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise ConfigError(
                    f"'{part}' is no item of '{dotted(path)}'",
                    where=source,
                    expected=f"a number below {len(here)}",
                )
            step: str | int = int(part)
            exists = True
        else:
            step, exists = part, part in here
        path = (*path, step)
        if last:
            here[step] = value
        else:
            if not exists or not isinstance(here[step], dict | list):
                here[step] = {}
                added[path] = Position(source)
            here = here[step]
    kept = {p: q for p, q in document.positions.items() if p[: len(path)] != path}
    return Document(content, kept | added | {path: Position(source)})


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
