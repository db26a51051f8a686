"""The ``fit`` stage: the measurement, then, where there is truth, the closure check."""

from __future__ import annotations

from pathlib import Path

from selfcal.likelihood.stage import run_fit
from selfcal.run.context import RunContext
from selfcal.study.closure import run_closure


def run_fit_and_closure(context: RunContext) -> list[Path]:
    """Fit without any access to truth; only then compare with it."""
    written = run_fit(context)
    return written + run_closure(context)
