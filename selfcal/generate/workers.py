"""Stage 1 spread over processes, one Pythia and one seed per chunk of jets, every chunk a cached file.

A chunk depends on (process, settings, seed, chunk number) alone, so that neither the
number of workers nor an interruption changes what is generated: a generation that was
killed goes on with the chunks it lacks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import DataError
from selfcal.generate.pileup import MinimumBiasPool, generate_pool
from selfcal.generate.processes import ordered_settings, process_named
from selfcal.generate.records import JET_ARRAYS, PARTICLE_ARRAYS, TruthJets
from selfcal.generate.truth import generate_chunk, up_to_quota
from selfcal.run.workers import worker_pool

CHUNK_JETS = 2000
"""Jets above 20 GeV per chunk: 3 to 10 s of work, of which Pythia's start takes 0.35 s."""

_CACHE_VERSION = 1
_POOL_SEED = 1
_PYTHIA_SEED_MAX = 900_000_000


@dataclass(frozen=True)
class ChunkTask:
    """One chunk of one truth sample: what to generate, and at least how many jets above 20 GeV."""

    process: str
    pythia_settings: tuple[str, ...]
    seed: int
    chunk: int
    quota: int

    def sample_digest(self) -> str:
        """SHA-256 of everything but chunk number and quota."""
        process = process_named(self.process)
        identity = {
            "version": _CACHE_VERSION,
            "pythia": importlib.metadata.version("pythia8mc"),
            "process": self.process,
            "settings": ordered_settings(process, self.pythia_settings),
            "forced": process.forced,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def path(self, cache: Path) -> Path:
        """Where the chunk is kept."""
        sample = f"{self.process}-{self.sample_digest()[:16]}"
        return cache / "truth" / sample / f"{self.chunk:05d}.safetensors"

    def pythia_seed(self) -> int:
        """1 to 900,000,000, from the digest and the chunk number."""
        digest = hashlib.sha256(f"{self.sample_digest()}/{self.chunk}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % _PYTHIA_SEED_MAX + 1


def load_chunk(task: ChunkTask, cache: Path) -> TruthJets | None:
    """The chunk from the cache, up to the task's quota; None if absent, too short or damaged."""
    from selfcal.run.atomic import read_arrays

    path = task.path(cache)
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        jets = TruthJets(**arrays)
    except (DataError, TypeError):
        path.unlink(missing_ok=True)
        return None
    return up_to_quota(jets, task.quota) if int((jets.pt_gev > 20.0).sum()) >= task.quota else None


def store_chunk(task: ChunkTask, jets: TruthJets, cache: Path) -> None:
    """Keep a chunk for later runs, whole or not at all."""
    from selfcal.run.atomic import write_arrays

    names = ("offsets", *JET_ARRAYS, *PARTICLE_ARRAYS)
    write_arrays(task.path(cache), {name: getattr(jets, name) for name in names})


def _run_task(task: ChunkTask) -> TruthJets:
    return generate_chunk(task.process, task.pythia_settings, task.pythia_seed(), task.chunk, task.quota)


def ensure_chunks(
    tasks: Sequence[ChunkTask],
    cache: Path,
    workers: int,
    done: Callable[[ChunkTask], None] | None = None,
) -> None:
    """Generate the chunks that the cache lacks; ``done`` is called once per task, cached or new.

    Raises
    ------
    DataError
        If a worker process dies (no memory, killed).
    ConfigError
        If Pythia refuses the settings.
    """
    missing: list[ChunkTask] = []
    for task in tasks:
        if load_chunk(task, cache) is None:
            missing.append(task)
        elif done:
            done(task)
    if not missing:
        return
    with worker_pool(max(1, min(workers, len(missing)))) as executor:
        futures: dict[Future[TruthJets], ChunkTask] = {executor.submit(_run_task, t): t for t in missing}
        try:
            for future in as_completed(futures):
                task = futures.pop(future)
                store_chunk(task, future.result(), cache)
                if done:
                    done(task)
        except BrokenProcessPool as error:
            raise DataError(
                "a generator process ended unexpectedly",
                where=f"{len(missing)} chunks for {cache}",
                fix="run the same command again, with fewer workers if memory was short; "
                "finished chunks are kept",
            ) from error


def minimum_bias_pool(cache: Path) -> MinimumBiasPool:
    """The pool from the cache, generated in a process of its own the first time (about 5 CPU seconds)."""
    from selfcal.run.atomic import read_arrays, write_arrays

    version = importlib.metadata.version("pythia8mc")
    path = cache / f"minimum-bias-v{_CACHE_VERSION}-pythia-{version}.safetensors"
    if path.exists():
        try:
            return MinimumBiasPool(**read_arrays(path))
        except (DataError, TypeError):
            path.unlink(missing_ok=True)
    with worker_pool(1) as executor:
        pool = executor.submit(generate_pool, (), _POOL_SEED).result()
    names = ("offsets", "eta", "momentum", "position", "charge", "pdg")
    write_arrays(path, {name: getattr(pool, name) for name in names})
    return pool
