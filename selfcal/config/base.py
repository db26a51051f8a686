"""The base of everything configured: immutable, unknown keys are errors; and kinds of numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class Configured(BaseModel):
    """A frozen pydantic model that refuses unknown keys and NaN or infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def with_tuples(value: Any) -> Any:
    """``value`` with tuples for lists, also inside.

    What a model's own code has touched is no longer JSON to strict pydantic, which then wants tuples.
    """
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value
