"""The reference of what a user writes, from the models: every key with type, default and meaning."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from selfcal.config.schema import MODELS, SchemaKind, json_schema

TITLES: dict[SchemaKind, str] = {"run": "Run configurations", "card": "Data cards", "study": "Studies"}


def write_configuration_reference(folder: Path) -> list[Path]:
    """Write one Markdown page per kind of file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in MODELS:
        paths.append(folder / f"{kind}.md")
        paths[-1].write_text(configuration_page(kind), encoding="utf-8")
    return paths


def configuration_page(kind: SchemaKind) -> str:
    """The Markdown page of one kind: a section per model, with its docstring and a table of its keys."""
    schema = json_schema(kind)
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    parts = [
        f"# {TITLES[kind]}",
        f"As `selfcal schema {kind}` knows them. A key without default must be given.",
    ]
    for model in models_of(MODELS[kind]):
        part = schema if model is MODELS[kind] else definitions.get(model.__name__)
        if part is None or not part.get("properties"):
            continue
        parts.append(f"## {model.__name__}")
        parts.append(_markdown(inspect.getdoc(model) or ""))
        rows = [
            f"| `{name}` | {_type(value)} | {_default(name, value, part)} |"
            for name, value in part["properties"].items()
        ]
        parts.append("\n".join(["| key | type | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def models_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models inside it, each once, outer ones first."""
    found: list[type[BaseModel]] = []
    queue: list[type[BaseModel]] = [model]
    while queue:
        here = queue.pop(0)
        if here in found:
            continue
        found.append(here)
        for field in here.model_fields.values():
            queue += _inside(field.annotation)
    return found


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def _type(value: Mapping[str, Any]) -> str:
    """A JSON Schema type in words."""
    if "$ref" in value:
        name = str(value["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value:
        return " or ".join(_type(item) for item in value["anyOf"])
    kind = str(value.get("type", "anything"))
    if kind == "array":
        items: Mapping[str, Any] = value.get("items") or next(iter(value.get("prefixItems", [])), {})
        return f"list of {_type(items)}"
    if kind == "object" and isinstance(value.get("additionalProperties"), Mapping):
        return f"mapping to {_type(value['additionalProperties'])}"
    bounds = [
        f"{sign} {value[name]:g}"
        for name, sign in (
            ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")
        )
        if name in value
    ]  # fmt: skip
    return " ".join([kind, *([", ".join(bounds)] if bounds else [])])


def _default(name: str, value: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    if name in part.get("required", ()):
        return ""
    if "default" not in value:
        return "see there" if "$ref" in value else ""
    if isinstance(value["default"], dict) and "$ref" in value:
        return "see there"
    return "`" + json.dumps(value["default"], ensure_ascii=False).replace("|", "\\|") + "`"


def _markdown(docstring: str) -> str:
    """A docstring in reStructuredText's way of marking code, as Markdown."""
    text = re.sub(r":(?:mod|func|class|data):`~?([^`]+)`", r"`\1`", docstring)
    return text.replace("``", "`")
