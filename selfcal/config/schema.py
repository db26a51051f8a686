"""JSON Schemas of what a user writes: run configurations, data cards, studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

import selfcal
from selfcal.config.card import DataCard
from selfcal.config.run import RunConfig
from selfcal.config.study import StudyConfig

SchemaKind = Literal["run", "card", "study"]

MODELS: dict[SchemaKind, type[BaseModel]] = {"run": RunConfig, "card": DataCard, "study": StudyConfig}


def json_schema(kind: SchemaKind) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one kind of file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:selfcal:{selfcal.__version__}:{kind}",
        **MODELS[kind].model_json_schema(),
    }


def write_schemas(folder: Path) -> list[Path]:
    """Write ``<kind>.json`` for every kind of file: what the first line of the shipped files refers to."""
    paths = [folder / f"{kind}.json" for kind in MODELS]
    for path, kind in zip(paths, MODELS, strict=True):
        path.write_text(json.dumps(json_schema(kind), indent=1) + "\n", encoding="utf-8")
    return paths


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
