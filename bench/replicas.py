"""What bootstrap replicas of a run's maps know of their events, beside whole fits of the same events.

    python -m bench.replicas RUN --replicas 10

A replica does the last ``calibration.bootstrap_steps`` of the nominal fit again. Here all of its
``calibration.map.steps`` are done again, with the densities and fractions of the same replica: same events,
same priors. For every flavour and working point the table has the spread of the efficiency in the flavour's
reference region over replicas and over whole fits, their correlation, and the slope of the former on the
latter: zero where a replica forgets nothing of the nominal fit, and one where it forgets all of it, less by
what the minibatches of a whole fit scatter. Nothing is left in the run's folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.command_line import run_script
from selfcal.config.loading import load_run
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import UNTRAINED
from selfcal.errors import ConfigError
from selfcal.likelihood.build import measure_fold
from selfcal.run.context import RunContext
from selfcal.run.progress import SilentReporter
from selfcal.study.closure_rows import discriminant_of
from selfcal.study.execution import context_of
from selfcal.training.calibrate_stage import control_scores
from selfcal.transport.calibration import Calibration, load_calibration
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.families import with_other_maps
from selfcal.transport.maps import FlavourMaps

WORKING_POINTS = (0.85, 0.77)


@dataclass(frozen=True)
class Compared:
    """Relative shifts of efficiencies from those of the nominal map.

    Attributes
    ----------
    names : "flavour working point", E of them
    replicas : (M, E) by the run's replicas
    whole : (M, E) by whole fits of the same events, relative to a whole nominal fit
    seconds : of one replica's map, and of one whole fit
    """

    names: tuple[str, ...]
    replicas: NDArray[np.float64]
    whole: NDArray[np.float64]
    seconds: tuple[float, float]


class Efficiencies:
    """Of calibrated simulation that did not train the tagger, each flavour in its reference region."""

    def __init__(self, context: RunContext, calibration: Calibration) -> None:
        self.context, self.calibration = context, calibration
        binning = measure_fold(context, calibration.regions).binning
        edges = dict(zip(binning.working_points, binning.discriminant_edges, strict=True))
        self.cuts = [(wp, float(edges[wp])) for wp in WORKING_POINTS if wp in edges]
        references = {str(name): region for name, region in context.config.fit.reference_regions.items()}
        self.jets = {}
        for index, name in enumerate(FLAVOURS):
            if references.get(name) in calibration.regions and name not in calibration.extrapolated:
                jets = control_scores(context, "simulation", references[name], UNTRAINED)
                self.jets[name] = jets.select(jets.flavour == index)

    @property
    def names(self) -> tuple[str, ...]:
        """``flavour working point``, E of them."""
        return tuple(f"{flavour} {wp:.0%}" for flavour in self.jets for wp, _ in self.cuts)

    def of(self, maps: FlavourMaps) -> NDArray[np.float64]:
        """(E,) as ``names``."""
        found = []
        for jets in self.jets.values():
            moved = self.calibration.apply(jets, maps)
            discriminant = discriminant_of(self.context, moved)
            found += [
                float(moved.weight[discriminant > cut].sum() / moved.weight.sum()) for _, cut in self.cuts
            ]
        return np.array(found)


def _shifts(efficiencies: Efficiencies, derivation: Derivation, count: int) -> NDArray[np.float64]:
    nominal = efficiencies.of(derivation.mixture().maps)
    replicas = [efficiencies.of(derivation.mixture(f"replica-{index}").maps) for index in range(count)]
    return np.stack(replicas) / nominal - 1


def _timed(folder: Path, tasks: Sequence[str]) -> float:
    """Does the tasks; returns the seconds of one."""
    start = time.perf_counter()
    for task in tasks:
        run_task(folder, task)
    return (time.perf_counter() - start) / len(tasks)


def compare(path: Path, count: int) -> Compared:
    """The first ``count`` replicas of the run in ``path``.

    Raises
    ------
    ConfigError
        If the map is not fitted by likelihood, or the run has fewer replicas.
    DataError
        If the run is not calibrated.
    """
    context = context_of(load_run([path / "config.resolved.yaml"]), path, SilentReporter())
    calibration = load_calibration(context.directory.results / "map")
    scratch = context.directory.checkpoints
    derivation = Derivation.of_run(context.directory)
    settings = derivation.config
    if not settings.map.by_likelihood or not 2 <= count <= settings.bootstraps:
        raise ConfigError(
            "there is nothing to compare",
            where=str(path),
            expected=f"a map fitted by likelihood, and 2 to {settings.bootstraps} replicas",
        )
    efficiencies = Efficiencies(context, calibration)
    tasks = [f"replica-{index}" for index in range(count)]
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        again = with_other_maps(derivation, Path(temporary) / "again", settings)
        os.link(derivation.path("mixture"), again / derivation.path("mixture").name)
        of_replica = _timed(again, tasks[:1])
        every = settings.model_copy(update={"bootstrap_steps": settings.map.steps})
        whole = with_other_maps(derivation, Path(temporary) / "whole", every)
        run_task(whole, "mixture")
        of_whole = _timed(whole, tasks)
        return Compared(
            efficiencies.names,
            _shifts(efficiencies, derivation, count),
            _shifts(efficiencies, Derivation.open(whole), count),
            (of_replica, of_whole),
        )


def main() -> None:
    """Read the command line, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--replicas", type=int, default=10)
    arguments = parser.parse_args()
    found = compare(arguments.run, arguments.replicas)
    print("efficiency | replicas: mean | spread | whole fits: mean | spread | correlation | slope")
    for index, name in enumerate(found.names):
        one, all_of_it = found.replicas[:, index], found.whole[:, index]
        covariance = np.cov(one, all_of_it)
        slope = covariance[0, 1] / covariance[1, 1]
        correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        means = " | ".join(f"{values.mean():+.4f} | {values.std(ddof=1):.4f}" for values in (one, all_of_it))
        print(f"{name} | {means} | {correlation:.2f} | {slope:.2f}")
    print(f"seconds of one map: replica {found.seconds[0]:.1f}, whole fit {found.seconds[1]:.1f}")


if __name__ == "__main__":
    run_script(main)
