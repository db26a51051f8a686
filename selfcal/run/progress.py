"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, silence with ``-q``."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TaskID as RichTask

PLAIN_INTERVAL_S = 10.0
"""Seconds between two plain lines about the same work."""


class Tracker(Protocol):
    """One piece of work under way."""

    def update(self, done: int) -> None:
        """Say that ``done`` of the total are finished; the last call has ``done == total``."""


class Reporter(Protocol):
    """Where a run says what it does."""

    def track(self, label: str, total: int) -> Tracker: ...

    def say(self, text: str) -> None:
        """One line of plain text."""

    def close(self) -> None:
        """Finish the bars on screen; a later ``track`` starts anew."""


class _Silence:
    def update(self, done: int) -> None:
        del done


def silent(label: str, total: int) -> Tracker:
    """A tracker that says nothing."""
    del label, total
    return _Silence()


class SilentReporter:
    """Says nothing (``-q`` and ``--json``)."""

    def track(self, label: str, total: int) -> Tracker:
        return silent(label, total)

    def say(self, text: str) -> None:
        del text

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class _PlainTracker:
    label: str
    total: int
    stream: TextIO
    interval_s: float
    last_line: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_line = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last_line < self.interval_s:
            return
        self.last_line = now
        print(f"{self.label}: {done}/{self.total}", file=self.stream, flush=True)


@dataclass
class PlainReporter:
    """Plain lines, at most one per :data:`PLAIN_INTERVAL_S` and piece of work, and one at its end."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    interval_s: float = PLAIN_INTERVAL_S

    def track(self, label: str, total: int) -> Tracker:
        return _PlainTracker(label, total, self.stream, self.interval_s)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing is open: every line is whole when printed."""


@dataclass
class _BarTracker:
    progress: Progress
    task: RichTask

    def update(self, done: int) -> None:
        self.progress.update(self.task, completed=done)


class TerminalReporter:
    """Rich progress bars."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def track(self, label: str, total: int) -> Tracker:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
        return _BarTracker(self._progress, self._progress.add_task(label, total=total))

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def reporter_for(quiet: bool, stream: TextIO | None = None) -> Reporter:
    """The reporter that suits ``stream`` (standard error): bars on a terminal, else plain lines."""
    target = stream or sys.stderr
    if quiet:
        return SilentReporter()
    if target.isatty():
        return TerminalReporter(Console(file=target))
    return PlainReporter(target)
