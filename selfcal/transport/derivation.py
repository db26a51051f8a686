"""Deriving composition and maps as a set of tasks, each of which leaves one file.

A killed derivation continues with the tasks whose files are missing. Every task is
seeded by its own name and runs on one thread, so the numbers depend neither on the
number of worker processes nor on where the work was interrupted.

=====================  =======================================================
task                   leaves
=====================  =======================================================
composition            fractions and stiff maps, nominal
densities              base densities, nominal
identifiability        which flavours no region determines: their maps stay the identity
bulk-<i>               replica i: resampled events, refitted composition and densities
mixture                maps and fractions by likelihood, nominal
replica-<i>            replica i: maps and fractions by likelihood
=====================  =======================================================

Where the map is not fitted by likelihood (``calibration.map.fit_by``), the last two minimise the
distance of the composition instead, and the replicas need no densities of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import selfcal
from selfcal.config.calibration import CalibrationConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import FitError
from selfcal.run.atomic import read_arrays, write_arrays, write_text
from selfcal.run.workers import worker_pool
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.averaged_descent import DistanceSchedule
from selfcal.transport.base_density import BaseDensities, fit_base_densities
from selfcal.transport.composition import (
    CompositionFit,
    CompositionPrior,
    fit_by_distance,
    fit_composition,
)
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.identifiability import (
    Identifiability,
    identifiability,
    mixture_scores,
    prior_widths,
)
from selfcal.transport.maps import FlavourMaps, build_maps
from selfcal.transport.mixture import KinematicFractions, MixtureFit, displacement_price, fit_mixture
from selfcal.transport.sample import Sample, simulated_fractions

INFORMATION_JETS = 20_000
"""Jets of data from which the information is estimated, and scaled to all of them."""

SAMPLE_FIELDS = ("coordinates", "conditions", "flavour", "region", "event", "weight")


def write_inputs(
    scratch: Path,
    simulation: Sample,
    data: Sample,
    prior: CompositionPrior,
    config: CalibrationConfig,
    seed: int,
) -> Path:
    """Store what all tasks read in ``scratch/<digest of it>``; returns that folder.

    Folders of other inputs or another configuration are removed.
    """
    arrays = {f"simulation.{name}": getattr(simulation, name).numpy() for name in SAMPLE_FIELDS}
    arrays |= {f"data.{name}": getattr(data, name).numpy() for name in SAMPLE_FIELDS}
    arrays |= {"prior.fractions": prior.fractions.numpy(), "prior.uncertainty": prior.uncertainty.numpy()}
    arrays["seed"] = np.array([seed])
    # The arrays are hashed, not their file: safetensors does not fix the order within a file.
    digest = hashlib.sha256(f"{selfcal.__version__} {config.model_dump_json(exclude={'workers'})}".encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    folder = scratch / digest.hexdigest()[:16]
    for other in scratch.glob("*/"):
        if other != folder:
            shutil.rmtree(other)
    write_arrays(folder / "inputs.safetensors", arrays)
    write_text(folder / "config.json", config.model_dump_json())
    return folder


def _tensors(module: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}{name}": value.detach().numpy() for name, value in module.state_dict().items()}


def _restore(module: nn.Module, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    state = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    module.load_state_dict(state)
    module.requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class Derivation:
    """The folder of one derivation, with its inputs loaded."""

    folder: Path
    simulation: Sample
    data: Sample
    prior: CompositionPrior
    config: CalibrationConfig
    seed: int

    @classmethod
    def open(cls, folder: Path) -> Derivation:
        """Load what :func:`write_inputs` stored."""
        arrays = {
            name: torch.from_numpy(value)
            for name, value in read_arrays(folder / "inputs.safetensors").items()
        }
        config = CalibrationConfig.model_validate_json((folder / "config.json").read_text())
        return cls(
            folder,
            Sample(*(arrays[f"simulation.{name}"] for name in SAMPLE_FIELDS)),
            Sample(*(arrays[f"data.{name}"] for name in SAMPLE_FIELDS)),
            CompositionPrior(arrays["prior.fractions"], arrays["prior.uncertainty"]),
            config,
            int(arrays["seed"][0]),
        )

    @property
    def regions(self) -> int:
        return len(self.prior.fractions)

    def path(self, task: str) -> Path:
        """The file that a task leaves."""
        return self.folder / f"{task}.safetensors"

    def generator(self, task: str) -> torch.Generator:
        """The random numbers of one task."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(task.encode()))

    def resampled(self, index: int) -> tuple[Sample, Sample]:
        """Simulation and data of bootstrap replica ``index``."""
        random = np.random.default_rng([self.seed, index])
        return self.simulation.resampled(random), self.data.resampled(random)

    def drawn_prior(self, index: int) -> CompositionPrior:
        """The prior of replica ``index``: its centre drawn from itself.

        Without this the spread of the replicas would miss what only the prior decides.
        """
        noise = torch.randn(
            self.prior.fractions.shape, generator=self.generator(f"prior-{index}"), dtype=torch.float64
        )
        centre = (self.prior.fractions + self.prior.uncertainty * noise).clamp_min(0.1 * self.prior.fractions)
        return CompositionPrior(centre / centre.sum(1, keepdim=True), self.prior.uncertainty)

    def composition(self, task: str = "composition") -> CompositionFit:
        """A finished composition fit."""
        arrays = read_arrays(self.path(task))
        width = self.simulation.coordinates.shape[1]
        maps = FlavourMaps(lambda: AffineMap(width, CONDITIONS, self.config.composition.map_scale))
        _restore(maps, arrays, "stiff.")
        return CompositionFit(torch.from_numpy(arrays["fractions"]), maps)

    def densities(self, task: str = "densities") -> BaseDensities:
        """Finished base densities."""
        densities = BaseDensities(
            self.simulation.coordinates.shape[1], self.regions, self.config.base_density
        )
        _restore(densities, read_arrays(self.path(task)), "density.")
        return densities

    def mixture(self, task: str = "mixture") -> MixtureFit:
        """A finished mixture fit."""
        arrays = read_arrays(self.path(task))
        maps = build_maps(self.config.map, self.simulation.coordinates.shape[1], CONDITIONS)
        _restore(maps, arrays, "map.")
        return MixtureFit(maps, torch.from_numpy(arrays["fractions"]))

    def identifiability(self) -> Identifiability:
        """What the data can tell about fractions and maps, at the fractions of the bulk fit."""
        every = torch.randperm(len(self.data), generator=self.generator("identifiability"))
        rows = every[:INFORMATION_JETS]
        data = self.data.rows(rows)
        fractions = self.composition().fractions
        kinematics = KinematicFractions(self.simulation, simulated_fractions(self.simulation, self.regions))
        scores, names = mixture_scores(data, self.densities(), kinematics, fractions)
        width, scale = self.data.coordinates.shape[1], self.config.composition.map_scale
        return identifiability(
            scores.numpy(),
            data.weight.numpy() * len(every) / len(rows),
            names,
            prior_widths(self.prior, fractions, width, scale),
            fractions.numpy(),
        )

    def undetermined(self) -> tuple[int, ...]:
        """Flavours (indices) whose map no region determines."""
        return tuple(int(i) for i in read_arrays(self.path("identifiability"))["undetermined"].nonzero()[0])

    def fraction_uncertainty(self) -> Tensor:
        """σ of each fitted fraction (R, F): bootstrap spread ⊕ ``relative_floor``."""
        replicas = torch.stack(
            [self.composition(f"bulk-{index}").fractions for index in range(self.config.bootstraps)]
        )
        floor = self.config.composition.relative_floor * self.composition().fractions
        return (replicas.var(0) + floor.square()).sqrt().clamp_min(1e-4)


def _save_composition(
    derivation: Derivation, task: str, fit: CompositionFit, extra: Mapping[str, np.ndarray]
) -> None:
    write_arrays(
        derivation.path(task),
        {"fractions": fit.fractions.numpy(), **_tensors(fit.maps, "stiff."), **extra},
    )


def _run_composition(derivation: Derivation) -> None:
    fit = fit_composition(
        derivation.simulation,
        derivation.data,
        derivation.prior,
        derivation.config.composition,
        derivation.generator("composition"),
    )
    _save_composition(derivation, "composition", fit, {})


def _run_densities(derivation: Derivation) -> None:
    densities = fit_base_densities(
        derivation.simulation,
        derivation.regions,
        derivation.config.base_density,
        derivation.generator("densities"),
    )
    write_arrays(derivation.path("densities"), _tensors(densities, "density."))


def _run_identifiability(derivation: Derivation) -> None:
    undetermined = derivation.identifiability().undetermined
    flags = np.array([flavour in undetermined for flavour in FLAVOURS], dtype=np.int8)
    write_arrays(derivation.path("identifiability"), {"undetermined": flags})


def _run_bulk(derivation: Derivation, index: int) -> None:
    task = f"bulk-{index}"
    simulation, data = derivation.resampled(index)
    generator = derivation.generator(task)
    steps = derivation.config.bootstrap_steps
    fit = fit_composition(
        simulation,
        data,
        derivation.drawn_prior(index),
        derivation.config.composition,
        generator,
        start=derivation.composition(),
        steps=steps,
    )
    arrays = {}
    if derivation.config.map.by_likelihood:
        densities = fit_base_densities(
            simulation,
            derivation.regions,
            derivation.config.base_density,
            generator,
            start=derivation.densities(),
            steps=steps,
        )
        arrays = _tensors(densities, "density.")
    _save_composition(derivation, task, fit, arrays)


def _run_mixture(derivation: Derivation, index: int | None) -> None:
    """The nominal map (index None), or replica ``index`` started from it."""
    nominal = index is None
    task = "mixture" if nominal else f"replica-{index}"
    bulk = "composition" if nominal else f"bulk-{index}"
    simulation, data = (
        (derivation.simulation, derivation.data) if index is None else derivation.resampled(index)
    )
    constraint = CompositionPrior(derivation.composition(bulk).fractions, derivation.fraction_uncertainty())
    start = None if nominal else derivation.mixture()
    config = derivation.config.map
    steps = config.steps if nominal else derivation.config.bootstrap_steps
    if config.by_likelihood:
        kept = simulation.rows(simulation.weight != 0)
        fit = fit_mixture(
            data,
            derivation.densities("densities" if nominal else bulk),
            KinematicFractions(kept, simulated_fractions(kept, derivation.regions)),
            constraint,
            config,
            derivation.generator(task),
            start=start,
            steps=steps,
            identities=derivation.undetermined(),
        )
    else:
        width = simulation.coordinates.shape[1]
        maps = build_maps(config, width, CONDITIONS)
        if start is not None:
            maps.load_state_dict(start.maps.state_dict())
        for flavour in derivation.undetermined():
            maps.of(flavour).requires_grad_(requires_grad=False)
        # The bulk fit's batches: a distance costs their square.
        schedule = DistanceSchedule(steps, derivation.config.composition.batch_size, config.learning_rate)
        by_distance = fit_by_distance(
            simulation,
            data,
            constraint,
            maps,
            constraint.fractions if start is None else start.fractions,
            schedule,
            derivation.generator(task),
            displacement_price(config, width),
        )
        fit = MixtureFit(by_distance.maps, by_distance.fractions)
    write_arrays(derivation.path(task), {"fractions": fit.fractions.numpy(), **_tensors(fit.maps, "map.")})


def run_task(folder: Path, task: str) -> str:
    """Do one task of a derivation, on one thread."""
    torch.set_num_threads(1)
    derivation = Derivation.open(folder)
    # Fresh networks draw their weights from torch's global generator, whose state depends on
    # what this process did before.
    torch.manual_seed(derivation.generator(f"weights of {task}").initial_seed())
    kind, _, number = task.partition("-")
    if kind == "composition":
        _run_composition(derivation)
    elif kind == "densities":
        _run_densities(derivation)
    elif kind == "identifiability":
        _run_identifiability(derivation)
    elif kind == "bulk":
        _run_bulk(derivation, int(number))
    else:
        _run_mixture(derivation, int(number) if number else None)
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


def derive(folder: Path, workers: int, report: Callable[[int, int], None]) -> Derivation:
    """Run all missing tasks of a derivation; ``report(done, total)`` follows it.

    ``workers`` processes share the tasks (0: one per core, 1: this process).
    """
    derivation = Derivation.open(folder)
    replicas = range(derivation.config.bootstraps)
    waves: Sequence[Sequence[str]] = (
        ("composition", "densities"),
        ("identifiability",),
        [f"bulk-{index}" for index in replicas],
        ("mixture",),
        [f"replica-{index}" for index in replicas],
    )
    total = sum(len(wave) for wave in waves)
    missing = [[task for task in wave if not derivation.path(task).exists()] for wave in waves]
    done = total - sum(len(wave) for wave in missing)
    report(done, total)
    if workers == 1:
        for task in (task for wave in missing for task in wave):
            run_task(folder, task)
            done += 1
            report(done, total)
    elif done < total:
        with worker_pool(workers or os.cpu_count() or 1) as pool:
            for wave in missing:
                for future in as_completed([pool.submit(run_task, folder, task) for task in wave]):
                    _finished(future, folder)
                    done += 1
                    report(done, total)
    return derivation
