"""Coverage of the scale factors of a finished run: its fit repeated on likelihood toys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from selfcal.config.fit import FitConfig
from selfcal.config.study import CoverageConfig
from selfcal.errors import DataError
from selfcal.likelihood.coverage import coverage_table, toy_scale_factors
from selfcal.likelihood.stage import measurement_of
from selfcal.run.atomic import read_json, write_json
from selfcal.run.digests import canonical_digest, file_sha256
from selfcal.run.directory import RunDirectory

COVERAGE = "coverage.json"


def run_coverage(
    directory: Path, config: CoverageConfig, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Write ``results/coverage.json`` of the run in ``directory``, unless it is there for the same fit.

    The toys are drawn around the best fit of the run's own templates (blinded ones, if the run is).

    Raises
    ------
    DataError
        If the run has no finished fit.
    FitError
        If the fit cannot be repeated.
    """
    run = RunDirectory(directory)
    templates, target = run.results / "templates.json", run.results / COVERAGE
    needed = (templates, run.results / "scale_factors.json", run.resolved_config)
    if not all(path.exists() for path in needed):
        raise DataError(
            "no finished fit to take toys of", where=str(directory), fix="run 'selfcal run' first"
        )
    settings = yaml.safe_load(run.resolved_config.read_text(encoding="utf-8"))["fit"]
    made_of = canonical_digest(
        {"templates": file_sha256(templates), "fit": settings, "toys": config.model_dump(mode="json")}
    )
    if target.exists() and read_json(target).get("made_of") == made_of:
        return target
    say(f"coverage: {config.toys} likelihood toys")
    torch.set_num_threads(1)
    measured = measurement_of(run.results, FitConfig.model_validate(settings))
    factors = measured.factors
    theta = torch.from_numpy(measured.result.best_fit)
    toys = toy_scale_factors(factors.ratios, theta, config.toys, config.seed)
    write_json(target, {**coverage_table(toys, factors.ratios, theta), "made_of": made_of})
    return target
