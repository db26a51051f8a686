"""The ``fit`` stage: the measurement, then, where there is truth, the closure check."""

from __future__ import annotations

from pathlib import Path

from selfcal.likelihood.stage import run_fit
from selfcal.run.context import RunContext
from selfcal.study.closure import has_closure, run_closure


def run_fit_and_closure(context: RunContext) -> list[Path]:
    """Fit without any access to truth; only then compare with it.

    The results of data are shown where ``fit.unblind`` is true, and where all of them are pseudo-data.
    """
    written = run_fit(context, blind=not (context.config.fit.unblind or has_closure(context)))
    return written + run_closure(context)
