"""How likely data that fitted nothing are, after maps fitted with other settings than those of a run.

    python -m bench.map_convergence RUN --set calibration.map.steps=300 --set calibration.map.steps=1000

Each ``--set`` is one line of the table (several assignments: ``--set "KEY=VALUE KEY=VALUE"``), behind
the line of the run's own map; keys are of ``calibration.map``. Maps are fitted as the run's own is, with
its densities, constraint and random numbers, to the derive fold; the likelihood is that of the data of the
measure fold, which the fit has not seen: what rises there is no noise of the fit. Nothing in the table looks
at the truth, and nothing is left in the run's folder.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.command_line import run_script
from selfcal.config.loading import load_run
from selfcal.data.folds import Fold
from selfcal.errors import ConfigError
from selfcal.run.progress import SilentReporter
from selfcal.study.execution import context_of
from selfcal.training.calibrate_stage import control_scores
from selfcal.transport.calibration import load_calibration
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.families import with_other_maps
from selfcal.transport.mixture import mixture_log_density
from selfcal.transport.sample import Sample, build_sample


@dataclass(frozen=True)
class Fitted:
    """ln L of the data that were fitted and of those that were not, and the fitted fractions (R, F)."""

    inside: float
    outside: float
    fractions: torch.Tensor


def refit_map(path: Path, assignments: tuple[str, ...] = ()) -> Fitted:
    """The nominal map of the run in ``path``, or one with other values of ``calibration.map`` in its place.

    Raises
    ------
    ConfigError
        If other keys are changed, or if the map is not fitted by likelihood.
    DataError
        If the run is not calibrated.
    """
    context = context_of(load_run([path / "config.resolved.yaml"]), path, SilentReporter())
    calibration = load_calibration(context.directory.results / "map")
    regions = calibration.regions
    scratch = context.directory.checkpoints
    derivation = Derivation.of_run(context.directory)
    wanted = load_run([path / "config.resolved.yaml"], assignments).config.calibration_in_use
    if wanted != derivation.config.model_copy(update={"map": wanted.map}) or not wanted.map.by_likelihood:
        raise ConfigError(
            "only maps that are fitted by likelihood are compared, and only by their own settings",
            where=" ".join(assignments),
            expected="keys of 'calibration.map', with an invertible 'family' and not 'fit_by: distance'",
        )
    densities, fit = derivation.densities(), derivation.mixture()
    if wanted.map != derivation.config.map:
        with tempfile.TemporaryDirectory(dir=scratch) as temporary:
            folder = with_other_maps(derivation, Path(temporary), wanted)
            run_task(folder, "mixture")
            fit = Derivation.open(folder).mixture()
    unseen = build_sample(
        {region: control_scores(context, "data", region, (Fold.MEASURE,)) for region in regions},
        regions,
        calibration.frame,
    )
    kinematics = derivation.kinematic_fractions(derivation.simulation)

    def log_likelihood(data: Sample) -> float:
        with torch.no_grad():
            terms, _ = mixture_log_density(
                data, kinematics.log_prior(data), fit.fractions.log(), densities, fit.maps
            )
            return float((data.weight * torch.logsumexp(terms, dim=1)).sum())

    return Fitted(log_likelihood(derivation.data), log_likelihood(unseen), fit.fractions)


def main() -> None:
    """Read the command line, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print("settings | ln L of the derive fold | of the measure fold | fractions by region")
    for words in ("", *arguments.set):
        found = refit_map(arguments.run, tuple(words.split()))
        fractions = "; ".join(" ".join(f"{value:.4f}" for value in region) for region in found.fractions)
        row = (words or "as it is", f"{found.inside:.1f}", f"{found.outside:.1f}", fractions)
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    run_script(main)
