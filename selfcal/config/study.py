"""Studies: the same run at many points, and which numbers to put side by side."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured

DottedKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$")]


class CoverageConfig(Configured):
    """Likelihood toys of the fit of every finished run: ``results/coverage.json`` in its directory."""

    toys: Annotated[int, Field(ge=2)] = 1000
    seed: Annotated[int, Field(ge=0)] = 1


class StudyConfig(Configured):
    """One study: the product of ``axes`` and ``seeds`` on top of a base configuration.

    ``collect`` names numbers as ``file.key.key``: the file ``results/<file>.json`` of each run, then the
    keys inside it; a number and its ``..._error`` are shown together. ``until`` is the last stage of each
    run, if not all of them are needed. ``expected`` says in words what the numbers should show. ``coverage``
    adds toy experiments to every run; a finished run in the study's folder is not run again.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str
    base: str
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1,)
    until: str | None = None
    collect: Annotated[tuple[DottedKey, ...], Field(min_length=1)]
    expected: str
    coverage: CoverageConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "seed" in self.axes:
            raise ValueError("'seed' is no axis; list the seeds under 'seeds'")
        for name, values in (*self.axes.items(), ("seeds", self.seeds)):
            if any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"'{name}' holds a value twice")
        return self

    def points(self) -> list[dict[str, Any]]:
        """Every combination of axis values and seeds; the seed varies fastest."""
        names = [*self.axes, "seed"]
        return [dict(zip(names, values, strict=True)) for values in product(*self.axes.values(), self.seeds)]
