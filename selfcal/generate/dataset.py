"""Datasets made from scratch: truth (cached) through the detector of a theta, into a native file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfcal.config.detector_parameters import DetectorParameters
from selfcal.data.hdf5 import write_jets
from selfcal.data.jets import Jets
from selfcal.errors import ConfigError
from selfcal.generate.detector import simulate
from selfcal.generate.pileup import MinimumBiasPool
from selfcal.generate.processes import ordered_settings, process_named
from selfcal.generate.records import offsets_from_counts
from selfcal.generate.workers import CHUNK_JETS, ChunkTask, ensure_chunks, load_chunk, minimum_bias_pool

_MARGIN = 1.03
"""Particle-level jets above 20 GeV generated per reconstructed jet wanted."""


@dataclass(frozen=True)
class GenerateRequest:
    """One dataset to be made.

    Attributes
    ----------
    name : of the dataset, part of every jet's key.
    process : one of the processes of :mod:`selfcal.generate.processes`.
    n_jets : jets in the file.
    seed : of generator and detector.
    pythia_settings : on top of the process's own, e.g. ``("StringZ:rFactB = 1.05",)``.
    detector : theta.
    is_data : pseudo-data: no label fields, no track truth, the truth in a dataset of its own.
    """

    name: str
    process: str
    n_jets: int
    seed: int
    pythia_settings: tuple[str, ...] = ()
    detector: DetectorParameters = field(default_factory=DetectorParameters)
    is_data: bool = False

    def __post_init__(self) -> None:
        process = process_named(self.process)
        ordered_settings(process, self.pythia_settings)
        if self.n_jets < 1:
            raise ConfigError(
                f"n_jets is {self.n_jets}", where=f"generate, dataset '{self.name}'", expected="at least 1"
            )


def generate_dataset(
    request: GenerateRequest,
    output: Path,
    cache: Path,
    workers: int,
    report: Callable[[int, int], None],
) -> None:
    """Write the dataset to ``output``, whole or not at all; see :func:`generate_datasets`."""
    generate_datasets([(request, output)], cache, workers, report)


def generate_datasets(
    requests: Sequence[tuple[GenerateRequest, Path]],
    cache: Path,
    workers: int,
    report: Callable[[int, int], None],
) -> None:
    """Write several datasets, sharing the worker processes.

    Equal requests give equal jets, whatever the number of workers, the state of the
    cache or earlier interruptions. ``report(done, total)`` is called with numbers of
    jets as truth chunks are finished.

    Raises
    ------
    ConfigError
        If Pythia refuses the settings.
    DataError
        If a worker dies or a file cannot be written.
    """
    plans = [chunk_plan(request) for request, _ in requests]
    total, done = sum(task.quota for plan in plans for task in plan), 0

    def finished(task: ChunkTask) -> None:
        nonlocal done
        done += task.quota
        report(done, total)

    pool = minimum_bias_pool(cache)
    ensure_chunks([task for plan in plans for task in plan], cache, workers, finished)
    for (request, output), plan in zip(requests, plans, strict=True):
        _write(request, *_detected(request, plan, pool, cache, workers), output)


def simulated_dataset(request: GenerateRequest, cache: Path, workers: int) -> Jets:
    """The jets that :func:`generate_dataset` writes, from cached truth where there is any.

    Raises
    ------
    ConfigError, DataError
        As :func:`generate_datasets`.
    """
    return _detected(request, chunk_plan(request), minimum_bias_pool(cache), cache, workers)[0]


def chunk_seed(request: GenerateRequest, chunk: int) -> int:
    """Seed of the detector for one chunk of truth."""
    return zlib.crc32(f"{request.name}/{request.seed}/{chunk}".encode())


def chunk_plan(request: GenerateRequest, first_chunk: int = 0, quota: int | None = None) -> list[ChunkTask]:
    """The truth chunks of a request: whole ones of ``CHUNK_JETS`` and a last one for the rest."""
    remaining = math.ceil(_MARGIN * request.n_jets) + 10 if quota is None else quota
    tasks: list[ChunkTask] = []
    while remaining > 0:
        size = min(CHUNK_JETS, remaining)
        chunk = first_chunk + len(tasks)
        tasks.append(ChunkTask(request.process, request.pythia_settings, request.seed, chunk, size))
        remaining -= size
    return tasks


_Truth = dict[str, NDArray[np.float32]]


def _detected(
    request: GenerateRequest, plan: list[ChunkTask], pool: MinimumBiasPool, cache: Path, workers: int
) -> tuple[Jets, _Truth]:
    """Exactly ``n_jets`` reconstructed jets; more chunks are made when resolution and scale left too few."""
    parts: list[Jets] = []
    truth_parts: list[_Truth] = []
    found, position = 0, 0
    while found < request.n_jets:
        if position == len(plan):
            lacking = math.ceil(1.2 * (request.n_jets - found)) + 20
            plan = [*plan, *chunk_plan(request, len(plan), lacking)]
            ensure_chunks(plan[position:], cache, workers)
        task = plan[position]
        truth = load_chunk(task, cache)
        if truth is None:
            ensure_chunks([task], cache, workers)
            continue
        seed = chunk_seed(request, task.chunk)
        detected = simulate(truth, request.detector, pool, dataset=request.name, seed=seed)
        kept = np.arange(min(len(detected.jets), request.n_jets - found))
        parts.append(detected.jets.select(kept))
        rows = detected.truth_row[kept]
        truth_parts.append(
            {
                "HadronConeExclTruthLabelPt": truth.hadron_pt_gev[rows] * np.float32(1000.0),
                "HadronConeExclTruthLabelLxy": truth.hadron_lxy_mm[rows],
                "ptTruth": truth.pt_gev[rows] * np.float32(1000.0),
            }
        )
        found += len(kept)
        position += 1
    fields = {name: np.concatenate([part[name] for part in truth_parts]) for name in truth_parts[0]}
    return concatenate_jets(parts), fields


def concatenate_jets(parts: Sequence[Jets]) -> Jets:
    """Jets of one dataset, one part after the other."""

    def joined(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    names = ("pt_gev", "eta", "flavour", "weight", "run", "event", "jet_index")
    arrays = {name: joined(name) for name in (*names, "tracks", "track_origin", "track_vertex")}
    if all(part.phi is not None for part in parts):
        arrays["phi"] = joined("phi")
    return Jets(
        dataset=parts[0].dataset,
        track_offsets=offsets_from_counts(np.concatenate([part.n_tracks for part in parts])),
        track_fields=parts[0].track_fields,
        **arrays,  # type: ignore[arg-type]
    )


def _write(request: GenerateRequest, jets: Jets, truth: _Truth, output: Path) -> None:
    """Pseudo-data say neither their flavours nor their theta where an analysis looks."""
    attributes = {"region": request.process, "role": "data" if request.is_data else "simulation"}
    if not request.is_data:
        attributes["detector"] = request.detector.model_dump_json()
        attributes["pythia_settings"] = "\n".join(request.pythia_settings)
    write_jets(
        output,
        jets,
        labels=not request.is_data,
        closure_truth=jets.flavour if request.is_data else None,
        jet_fields=None if request.is_data else truth,
        attributes=attributes,
    )
