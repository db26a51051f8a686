"""A run whose stages only write text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from selfcal.config.card import DataCard
from selfcal.config.run import RunConfig
from selfcal.run.atomic import write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.stages import Stage


@dataclass
class Recorder:
    """Keeps what a run says."""

    lines: list[str] = field(default_factory=list)

    def track(self, label: str, total: int) -> Any:
        raise AssertionError(f"no progress expected, got {label} {total}")

    def say(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Chain:
    """Three stages, a -> b -> c, in a run directory; ``ran`` counts what was done."""

    context: RunContext
    recorder: Recorder
    settings: dict[str, Any] = field(default_factory=lambda: {"a": 1, "b": 1, "c": 1})
    text: dict[str, str] = field(default_factory=lambda: {"a": "A", "b": "B", "c": "C"})
    inputs: list[Path] = field(default_factory=list)
    before: Callable[[str], None] = lambda name: None
    ran: list[str] = field(default_factory=list)

    def stages(self) -> list[Stage]:
        names = ["a", "b", "c"]
        return [
            Stage(
                name,
                self._work(name),
                lambda context, name=name: self.settings[name],
                tuple(names[:index]),
                lambda context, name=name: self.inputs if name == "a" else [],
            )
            for index, name in enumerate(names)
        ]

    def _work(self, name: str) -> Callable[[RunContext], list[Path]]:
        def work(context: RunContext) -> list[Path]:
            self.before(name)
            self.ran.append(name)
            path = context.directory.results / f"{name}.txt"
            write_text(path, self.text[name])
            return [path]

        return work


@pytest.fixture
def chain(tmp_path) -> Chain:
    card = DataCard(name="x", role="simulation", region="r", files=("x.h5",))
    config = RunConfig.model_validate({"name": "test", "data": {"cards": ["x.yaml"]}})
    recorder = Recorder()
    return Chain(RunContext(config, (card,), RunDirectory(tmp_path / "run"), recorder), recorder)
