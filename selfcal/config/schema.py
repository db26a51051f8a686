"""JSON Schemas of what a user writes: run configurations, data cards, studies."""

from __future__ import annotations

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
