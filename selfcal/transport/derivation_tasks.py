"""Deriving composition and maps as a set of tasks, each of which leaves one file.

A killed derivation continues with the tasks whose files are missing. Every task is
seeded by its own name, or that of the nominal fit which it repeats, and runs on one thread, so the numbers
depend neither on the number of worker processes nor on where the work was interrupted.

=====================  =======================================================
task                   leaves
=====================  =======================================================
composition            fractions and stiff maps, nominal
densities              base densities, nominal, before and after their last leg
identifiability        which flavours no region determines: their maps stay the identity
bulk-<i>               replica i: resampled events, refitted composition and densities
mixture                maps and fractions by likelihood, nominal, and the fit before its last leg
seed-<i>               the same events with other initial weights, densities and maps from scratch
family-<name>          the same events and densities, maps of another family
region_dependence      how much regions differ beyond pT and |eta|
replica-<i>            replica i: maps and fractions by likelihood, their last leg done again
=====================  =======================================================

Where the map is not fitted by likelihood (``calibration.map.fit_by``), mixture, seeds and replicas minimise
the distance of the composition instead; replicas need no densities, and go on from the nominal fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from selfcal.config.calibration import CalibrationConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import FitError
from selfcal.run.atomic import write_arrays
from selfcal.run.workers import worker_pool
from selfcal.transport.averaged_descent import DistanceSchedule
from selfcal.transport.base_density import BaseDensities, continue_base_densities, fit_base_densities
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import CompositionFit, CompositionPrior, fit_by_distance, fit_composition
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.derivation import Derivation, tensors
from selfcal.transport.mixture import KinematicFractions, LastLeg, MixtureFit, displacement_price, fit_mixture
from selfcal.transport.pt_fractions import PtShape
from selfcal.transport.region_dependence import region_dependence, region_statistics
from selfcal.transport.sample import Sample, simulated_fractions


def _save_composition(
    derivation: Derivation, task: str, fit: CompositionFit, extra: Mapping[str, np.ndarray]
) -> None:
    arrays = {"fractions": fit.fractions.numpy(), **tensors(fit.maps, "stiff."), **extra}
    if fit.pt_shape is not None:
        arrays |= {"pt_knots": fit.pt_shape.knots.numpy(), "pt_values": fit.pt_shape.values.numpy()}
    write_arrays(derivation.path(task), arrays)


def _run_composition(derivation: Derivation) -> None:
    fit = fit_composition(
        derivation.simulation,
        derivation.data,
        derivation.prior,
        derivation.config.composition,
        derivation.generator("composition"),
    )
    _save_composition(derivation, "composition", fit, {})


def _fresh_densities(derivation: Derivation, task: str) -> tuple[BaseDensities, BaseDensities]:
    """Densities before and after their last leg, the one that replicas repeat."""
    first = fit_base_densities(
        derivation.simulation, derivation.regions, derivation.config.base_density, derivation.generator(task)
    )
    return first, _last_leg_of_densities(derivation, first, derivation.simulation, task)


def _last_leg_of_densities(
    derivation: Derivation, first: BaseDensities, simulation: Sample, task: str
) -> BaseDensities:
    config, generator = derivation.config, derivation.generator(f"last leg of {task}")
    return continue_base_densities(first, simulation, config.base_density, config.bootstrap_steps, generator)


def _run_densities(derivation: Derivation) -> None:
    first, densities = _fresh_densities(derivation, "densities")
    write_arrays(derivation.path("densities"), tensors(first, "first.") | tensors(densities, "density."))


def _run_identifiability(derivation: Derivation) -> None:
    undetermined = derivation.identifiability().undetermined
    flags = np.array([flavour in undetermined for flavour in FLAVOURS], dtype=np.int8)
    write_arrays(derivation.path("identifiability"), {"undetermined": flags})


def _run_region_dependence(derivation: Derivation) -> None:
    fit = derivation.mixture()
    simulation = derivation.simulation.rows(derivation.simulation.weight != 0)
    with torch.no_grad():
        moved = fit.maps(simulation.coordinates, simulation.flavour, simulation.conditions)
    kinematics = derivation.kinematic_fractions(simulation)
    calibrated = replace(simulation, coordinates=moved)
    statistics = [
        region_statistics(derivation.data, calibrated, derivation.densities(), kinematics, fit.fractions, r)
        for r in range(derivation.regions)
    ]
    sigma = derivation.fraction_uncertainty().numpy()
    widths = [np.delete(sigma[r], int(fit.fractions[r].argmax())) for r in range(derivation.regions)]
    prior_width = derivation.config.map.displacement_scale
    found = region_dependence(statistics, widths, prior_width, derivation.seed)
    write_arrays(derivation.path("region_dependence"), found.arrays())


def _run_bulk(derivation: Derivation, index: int) -> None:
    task = f"bulk-{index}"
    simulation, data = derivation.resampled(index)
    fit = fit_composition(
        simulation,
        data,
        derivation.drawn_prior(index),
        derivation.config.composition,
        derivation.generator(task),
        start=derivation.composition(),
        steps=derivation.config.bootstrap_steps,
    )
    arrays = {}
    if derivation.config.map.by_likelihood:
        first = derivation.first_densities()
        densities = _last_leg_of_densities(derivation, first, simulation, "densities")
        arrays = tensors(densities, "density.")
    _save_composition(derivation, task, fit, arrays)


def _run_mixture(derivation: Derivation) -> None:
    """The nominal maps."""
    densities = derivation.densities() if derivation.config.map.by_likelihood else None
    _fit_maps(derivation, "mixture", derivation.simulation, derivation.data, "composition", densities)


def _run_seed(derivation: Derivation, task: str) -> None:
    """The nominal fit once more: other random numbers, the same events and constraint."""
    densities = _fresh_densities(derivation, task)[1] if derivation.config.map.by_likelihood else None
    _fit_maps(derivation, task, derivation.simulation, derivation.data, "composition", densities)


def _run_family(derivation: Derivation, name: str) -> None:
    """Maps of another family from the same events, densities and constraint."""
    changed = derivation.config.model_copy(update={"map": derivation.map_config_of(f"family-{name}")})
    densities = derivation.densities() if changed.map.by_likelihood else None
    of_family = replace(derivation, config=changed)
    task = f"family-{name}"
    _fit_maps(of_family, task, derivation.simulation, derivation.data, "composition", densities)


def _run_replica(derivation: Derivation, index: int) -> None:
    """Replica ``index``; by likelihood the last leg of the nominal fit again, with its random numbers."""
    bulk, start = f"bulk-{index}", derivation.mixture()
    densities = derivation.densities(bulk) if derivation.config.map.by_likelihood else None
    _fit_maps(derivation, f"replica-{index}", *derivation.resampled(index), bulk, densities, start)


def _like(task: str) -> str:
    """The task whose random numbers a task has: families differ from the nominal maps by nothing else."""
    return "mixture" if task.startswith("family-") else task


def _fit_maps(
    derivation: Derivation,
    task: str,
    simulation: Sample,
    data: Sample,
    bulk: str,
    densities: BaseDensities | None,
    start: MixtureFit | None = None,
) -> None:
    """Maps and fractions near those of the task ``bulk``; a fit by likelihood needs densities."""
    nominal = "mixture" if start is not None else _like(task)
    fit = fit_maps(
        simulation=simulation,
        data=data,
        densities=densities,
        constraint=derivation.constraint(bulk),
        config=derivation.config,
        generator=derivation.generator(_like(task)),
        last_leg=LastLeg(derivation.last_leg_steps, derivation.generator(f"last leg of {nominal}")),
        start=start,
        identities=derivation.undetermined(),
        pt_shape=derivation.composition(bulk).pt_shape,
    )
    arrays = {"fractions": fit.fractions.numpy(), **tensors(fit.maps, "map.")}
    if task == "mixture" and fit.at_last_leg is not None:
        arrays |= fit.at_last_leg.arrays()
    write_arrays(derivation.path(task), arrays)


def fit_maps(
    simulation: Sample,
    data: Sample,
    densities: BaseDensities | None,
    constraint: CompositionPrior,
    config: CalibrationConfig,
    generator: torch.Generator,
    last_leg: LastLeg | None = None,
    start: MixtureFit | None = None,
    identities: Sequence[int] = (),
    pt_shape: PtShape | None = None,
) -> MixtureFit:
    """Maps and fractions, by likelihood where ``densities`` are given, else by the composition's distance.

    ``constraint`` is what the bulk says of the fractions, ``pt_shape`` how it lets them vary with pT; the
    maps of the flavours ``identities`` stay. With ``start``, a nominal fit of the same kind, only its
    ``last_leg`` is done again by likelihood, without ``generator``; by distance the fit goes on from its end
    for ``bootstrap_steps``.

    Raises
    ------
    FitError
        If a loss is not finite or a fit does not converge, or if ``start`` has no last leg.
    """
    if densities is not None:
        if start is not None:
            if last_leg is None or start.at_last_leg is None:
                raise FitError(
                    "the nominal fit did not keep where its last leg began",
                    fix="derive the maps anew ('selfcal calibrate')",
                )
            last_leg = replace(last_leg, state=start.at_last_leg)
        kept = simulation.rows(simulation.weight != 0)
        return fit_mixture(
            data,
            densities,
            KinematicFractions(kept, simulated_fractions(kept, len(constraint.fractions)), pt_shape),
            constraint,
            config.map,
            generator,
            last_leg,
            identities=identities,
        )
    width = simulation.coordinates.shape[1]
    maps = build_maps(config.map, width, CONDITIONS)
    if start is not None:
        maps.load_state_dict(start.maps.state_dict())
    for flavour in identities:
        maps.of(flavour).requires_grad_(requires_grad=False)
    # The bulk fit's batches: a distance costs their square.
    steps = config.map.steps if start is None else config.bootstrap_steps
    schedule = DistanceSchedule(steps, config.composition.batch_size, config.map.learning_rate)
    by_distance = fit_by_distance(
        simulation=simulation if pt_shape is None else pt_shape.weighted(simulation),
        data=data,
        prior=constraint,
        maps=maps,
        start=constraint.fractions if start is None else start.fractions,
        schedule=schedule,
        generator=generator,
        displacement_price=displacement_price(config.map, width),
        distance=config.map.distance,
    )
    return MixtureFit(by_distance.maps, by_distance.fractions)


def run_task(folder: Path, task: str) -> str:
    """Do one task of a derivation, on one thread."""
    torch.set_num_threads(1)
    derivation = Derivation.open(folder)
    # Fresh networks draw their weights from torch's global generator, whose state depends on
    # what this process did before.
    torch.manual_seed(derivation.generator(f"weights of {_like(task)}").initial_seed())
    kind, _, number = task.partition("-")
    if kind == "composition":
        _run_composition(derivation)
    elif kind == "densities":
        _run_densities(derivation)
    elif kind == "identifiability":
        _run_identifiability(derivation)
    elif kind == "region_dependence":
        _run_region_dependence(derivation)
    elif kind == "bulk":
        _run_bulk(derivation, int(number))
    elif kind == "seed":
        _run_seed(derivation, task)
    elif kind == "family":
        _run_family(derivation, number)
    elif kind == "replica":
        _run_replica(derivation, int(number))
    else:
        _run_mixture(derivation)
    return task


def _finished(future: Future[str], folder: Path) -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise FitError(
            "a calibration process ended unexpectedly",
            where=str(folder),
            fix="run the same command again, with calibration.workers: 1 if memory was short; "
            "finished tasks are kept",
        ) from error


Task = tuple[Path, str]
"""The folder of a derivation and the name of one of its tasks."""


def _waves(config: CalibrationConfig) -> Sequence[Sequence[str]]:
    """All tasks; those of one wave need only what earlier ones left."""
    replicas = range(config.bootstraps)
    return (
        ("composition", "densities"),
        ("identifiability",),
        [f"bulk-{index}" for index in replicas],
        (
            "mixture",
            *(f"seed-{index}" for index in range(config.seeds)),
            *(f"family-{name}" for name in config.families),
        ),
        ["region_dependence", *(f"replica-{index}" for index in replicas)],
    )


def number_of_tasks(config: CalibrationConfig) -> int:
    """How many tasks one derivation has."""
    return sum(len(wave) for wave in _waves(config))


def missing_tasks(waves: Sequence[Sequence[Task]]) -> tuple[list[list[Task]], int]:
    """The tasks of every wave whose file is not there, and how many are."""
    missing = [[task for task in wave if not (task[0] / f"{task[1]}.safetensors").exists()] for wave in waves]
    return missing, sum(map(len, waves)) - sum(map(len, missing))


def run_tasks(
    waves: Sequence[Sequence[Task]], done: int, workers: int, report: Callable[[int, int], None]
) -> None:
    """Run tasks wave after wave, each of which needs those before it; ``done`` are finished already.

    ``workers`` processes share the tasks (0: one per core, 1: this process); ``report(done, total)``
    follows it.
    """
    total = done + sum(map(len, waves))
    report(done, total)
    if workers == 1:
        for folder, task in (task for wave in waves for task in wave):
            run_task(folder, task)
            done += 1
            report(done, total)
    elif done < total:
        with worker_pool(workers or os.cpu_count() or 1) as pool:
            for wave in waves:
                futures = {pool.submit(run_task, folder, task): folder for folder, task in wave}
                for future in as_completed(futures):
                    _finished(future, futures[future])
                    done += 1
                    report(done, total)


def files_of(derivation: Derivation) -> list[Path]:
    """What a finished derivation consists of: its inputs, and what every task left."""
    tasks = [derivation.path(task) for wave in _waves(derivation.config) for task in wave]
    return [derivation.folder / "inputs.safetensors", derivation.folder / "config.json", *tasks]


def derive(folder: Path, workers: int, report: Callable[[int, int], None]) -> Derivation:
    """Run all missing tasks of a derivation; ``workers`` and ``report`` as in :func:`run_tasks`."""
    derivation = Derivation.open(folder)
    waves = [[(folder, task) for task in wave] for wave in _waves(derivation.config)]
    run_tasks(*missing_tasks(waves), workers, report)
    return derivation
