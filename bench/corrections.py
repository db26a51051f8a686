"""What the taggers of several finished runs leave to be corrected, and what that costs: truth, jet by jet.

    python -m bench.corrections ARM ARM ...

An arm is a run, or a quoted pattern such as ``'studies-out/self_calibration_training/then_map,*'`` whose
runs are trainings of one kind, as many in each arm. All have the same pseudo-data and differ in the tagger.
For every flavour in its reference region and in the held-out ones: the true efficiency in data over that in
simulation at working points of b jets, the change from the first arm, and the efficiency in simulation
relative to the first arm, averaged over trainings. The first error is that of a Poisson bootstrap by events
with the same replicas for all runs, in which what two runs share drops out of their difference; the second,
with several trainings, the standard error over them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.command_line import run_script
from selfcal.config.loading import load_run
from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.context import RunContext
from selfcal.run.progress import SilentReporter
from selfcal.study.closure_rows import discriminant_of
from selfcal.study.execution import context_of
from selfcal.study.truth import best_truth, nominal_efficiency_jets
from selfcal.tagger.working_points import thresholds

WORKING_POINTS = (0.70, 0.77, 0.85)
REPLICAS = 200
JETS_MIN = 500
"""Flavours with fewer jets in a region, in data or simulation, are left out."""
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Jets of one region: discriminant, flavour, weight and number of the event, each (N,)."""

    discriminant: Doubles
    flavour: NDArray[np.int8]
    weight: Doubles
    event: NDArray[np.int64]


@dataclass(frozen=True)
class TruthOfRun:
    """Data and simulation by region, and the region whose b jets define the working points."""

    samples: dict[str, tuple[Scored, Scored]]
    working_point_region: str


def scored(context: RunContext, jets: ScoredJets) -> Scored:
    """What is needed of ``jets``; events are numbered from zero."""
    number = np.unique(jets.event, return_inverse=True)[1]
    return Scored(discriminant_of(context, jets), jets.flavour, jets.weight.astype(np.float64), number)


def truth_of_run(path: Path) -> TruthOfRun:
    """Read a run of pseudo-data whose scores are there.

    Raises
    ------
    DataError
        If a region has no truth: real data.
    """
    loaded = load_run([path / "config.resolved.yaml"])
    context = context_of(loaded, path, SilentReporter())
    held_out = {card.region for card in context.cards_for("data", "validation")}
    samples = {}
    fit = loaded.config.fit
    regions = [*fit.reference_regions.values(), fit.working_point_region, *sorted(held_out)]
    for region in dict.fromkeys(regions):
        data = best_truth(context, region)
        if data is None:
            raise DataError("no truth", where=f"{path}, region {region}", expected="a run of pseudo-data")
        samples[region] = (scored(context, data), scored(context, nominal_efficiency_jets(context, region)))
    return TruthOfRun(samples, fit.working_point_region)


def refuse_other_jets(first: TruthOfRun, other: TruthOfRun) -> None:
    """Differences are taken jet by jet.

    Raises
    ------
    DataError
        If two runs do not have the same jets in the same order.
    """
    if first.samples.keys() != other.samples.keys():
        found = ", ".join(sorted(first.samples.keys() ^ other.samples.keys()))
        raise DataError("the runs have other regions", where=found, expected="the same pseudo-data")
    for region, pair in first.samples.items():
        for mine, theirs in zip(pair, other.samples[region], strict=True):
            if not (
                np.array_equal(mine.flavour, theirs.flavour)
                and np.array_equal(mine.event, theirs.event)
                and np.array_equal(mine.weight, theirs.weight)
            ):
                raise DataError("the runs have other jets", where=region, expected="the same pseudo-data")


def efficiencies(
    run: TruthOfRun, replica: dict[str, tuple[Doubles, Doubles]]
) -> dict[tuple[str, str, float], Doubles]:
    """(data, simulation) by (region, flavour, working point), jets counted by ``replica``'s factors too."""
    simulation, factor = run.samples[run.working_point_region][1], replica[run.working_point_region][1]
    b = simulation.flavour == B
    cuts = thresholds(simulation.discriminant[b], (simulation.weight * factor)[b], WORKING_POINTS)
    found = {}
    for region, pair in run.samples.items():
        for index, flavour in enumerate(FLAVOURS):
            if min(int((jets.flavour == index).sum()) for jets in pair) < JETS_MIN:
                continue
            for point, cut in zip(WORKING_POINTS, cuts, strict=True):
                shares = []
                for jets, factors in zip(pair, replica[region], strict=True):
                    weight = np.where(jets.flavour == index, jets.weight * factors, 0.0)
                    shares.append(weight[jets.discriminant > cut].sum() / weight.sum())
                found[region, flavour, point] = np.array(shares)
    return found


def replicas(run: TruthOfRun, number: int, seed: int) -> list[dict[str, tuple[Doubles, Doubles]]]:
    """Poisson factors of the jets by region, one per event: ones first, then ``number`` draws."""
    generator = np.random.default_rng(seed)

    def draw(jets: Scored) -> Doubles:
        return generator.poisson(1.0, int(jets.event.max()) + 1)[jets.event].astype(np.float64)

    ones = {
        region: (np.ones(len(data.event)), np.ones(len(simulation.event)))
        for region, (data, simulation) in run.samples.items()
    }
    drawn = [
        {region: (draw(data), draw(simulation)) for region, (data, simulation) in run.samples.items()}
        for _ in range(number)
    ]
    return [ones, *drawn]


@dataclass(frozen=True)
class Averaged:
    """A mean over trainings, with its error from the number of jets and, with several, of trainings."""

    value: float
    jets_error: float
    trainings_error: float | None

    @classmethod
    def of(cls, values: Doubles) -> Averaged:
        """``values`` (trainings, 1 + replicas): the sample as it is first."""
        central, several = values[:, 0], len(values) > 1
        error = float(central.std(ddof=1) / np.sqrt(len(central))) if several else None
        return cls(float(central.mean()), float(values[:, 1:].mean(axis=0).std()), error)

    def __str__(self) -> str:
        trainings = "" if self.trainings_error is None else f" ± {self.trainings_error:.4f}"
        return f"{self.value:+.4f} ± {self.jets_error:.4f}{trainings}"


@dataclass(frozen=True)
class Comparison:
    """One arm, region, flavour and working point.

    ``correction`` is ε(data) / ε(simulation), ``change`` its difference to that of the first arm and ``cost``
    ε(simulation) over that of the first arm.
    """

    arm: int
    region: str
    flavour: str
    working_point: float
    correction: Averaged
    change: Averaged
    cost: Averaged


def compare(arms: Sequence[Sequence[TruthOfRun]], number: int = REPLICAS, seed: int = 1) -> list[Comparison]:
    """All arms with the first one; trainings in the same place are paired.

    Rows in which a replica has no jet that passes are left out.

    Raises
    ------
    DataError
        If runs have other jets, or arms other numbers of trainings.
    """
    if len({len(arm) for arm in arms}) > 1:
        counts = ", ".join(str(len(arm)) for arm in arms)
        raise DataError("the arms have other numbers of trainings", where=counts, expected="as many in each")
    for other in (run for arm in arms for run in arm):
        refuse_other_jets(arms[0][0], other)
    drawn = replicas(arms[0][0], number, seed)
    values = [[[efficiencies(run, replica) for replica in drawn] for run in arm] for arm in arms]
    rows = []
    for key in values[0][0][0]:
        pairs = np.array([[[one[key] for one in run] for run in arm] for arm in values])
        if not (pairs > 0).all():
            continue
        data, simulation = pairs[..., 0], pairs[..., 1]  # (arm, training, replica)
        correction = data / simulation
        for place in range(len(arms)):
            columns = correction[place], correction[place] - correction[0], simulation[place] / simulation[0]
            rows.append(Comparison(place, *key, *(Averaged.of(column) for column in columns)))
    return rows


def main() -> None:
    """Print one line per row."""
    patterns = sys.argv[1:]
    found = [sorted(glob(pattern)) or [pattern] for pattern in patterns]
    if len(found) < 2:
        sys.exit("python -m bench.corrections ARM ARM ...: two finished runs or patterns of runs, or more")
    arms = [[truth_of_run(Path(path)) for path in paths] for paths in found]
    for row in compare(arms):
        numbers = (row.correction, row.change, row.cost)
        print(row.region, row.flavour, row.working_point, *numbers, Path(found[row.arm][0]).name, sep=" | ")


if __name__ == "__main__":
    run_script(main)
