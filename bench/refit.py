"""What other options of the fit would have said: finished runs of pseudo-data, fitted anew beside the truth.

    python -m bench.refit RUN ... [--set fit.residual_slide={}] [--set fit.residual_of_map=1]

Nothing is written. Maps and fractions are those of the run, templates are counted anew, and one line for each
run says how well the scale factors agree with the truth (χ², p, largest pull and the share within one
standard deviation, of the rows that ``selfcal fit`` compares) and how precise they are: the median relative
uncertainty over kinematic bins, and its systematic part, of b and c at 77 % and of light jets at 85 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.command_line import run_script
from bench.precision import measured_by_all, precision
from selfcal.config.loading import load_run
from selfcal.likelihood.build import build_templates, measure_fold
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.stage import measure
from selfcal.run.progress import SilentReporter
from selfcal.study.closure import compare_with_truth, fill_truth
from selfcal.study.execution import context_of
from selfcal.transport.calibration import load_calibration

QUOTED = (("b", 0.77), ("c", 0.77), ("light", 0.85))


@dataclass(frozen=True)
class Refit:
    """One run fitted anew.

    ``comparison`` is what ``scale_factors_against_truth.json`` holds, ``precision`` the median relative
    uncertainty of each of ``QUOTED`` and that of its systematic part.
    """

    comparison: dict[str, Any]
    precision: tuple[tuple[float, float], ...]

    @property
    def covered(self) -> float:
        """Share of the compared scale factors within one standard deviation of the truth."""
        return float(np.mean([abs(row["pull"]) < 1 for row in self.comparison["pulls"]]))

    def __str__(self) -> str:
        found = self.comparison
        agreement = f"{found['chi2']:.1f}/{found['ndf']} | {found['p_value']:.4f} | {found['max_pull']:.1f}"
        precision = (f"{total:.4f} ({systematic:.4f})" for total, systematic in self.precision)
        return " | ".join([agreement, f"{self.covered:.2f}", *precision])


def refit(path: Path, assignments: Sequence[str] = ()) -> Refit:
    """Fit the run in ``path`` anew with other values of its configuration.

    Raises
    ------
    SelfcalError
        If it has no calibration or no truth, or if the fit is refused.
    """
    loaded = load_run([path / "config.resolved.yaml"], assignments)
    context = context_of(loaded, path, SilentReporter())
    calibration = load_calibration(context.directory.results / "map")
    fold = measure_fold(context, calibration.regions)
    measured = measure(build_templates(fold, calibration), context.config.fit, context.config.seed)
    factors = as_json(
        measured.factors, measured.layout, context.config.tagger.name, blinded=False, forced=False
    )
    truth = fill_truth(context, factors, fold.binning)
    return Refit(compare_with_truth(factors, truth), _precisions(factors))


def _precisions(factors: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    (rows,) = measured_by_all([factors["rows"]])
    measured = {(row["flavour"], row["working_point"]) for row in rows}
    found = (
        precision(rows, flavour, (point,), relative=True) if (flavour, point) in measured else None
        for flavour, point in QUOTED
    )
    unknown = (float("nan"), float("nan"))
    return tuple(unknown if one is None else (one.total, one.systematic) for one in found)


def main() -> None:
    """Read the command line, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = (f"σ of {flavour} at {100 * point:.0f} % (syst.)" for flavour, point in QUOTED)
    print("run | χ²/ndf | p | largest pull | within 1 σ", *columns, sep=" | ")
    for path in arguments.runs:
        print(path.name, refit(path, arguments.set), sep=" | ", flush=True)


if __name__ == "__main__":
    run_script(main)
