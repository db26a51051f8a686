"""Calibration maps: deriving all of them with bootstrap replicas, and applying them.

Simulation and data are drawn from one law per flavour, shifted in data, so that the sizes are those wanted.
Targets: M = 20 replicas on 100,000 + 100,000 jets in 10 minutes on 2 cores, 20 s of one core for a replica;
200,000 jets/s/core applied.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bench.command_line import run_script
from selfcal.config.calibration import CalibrationConfig, MapConfig
from selfcal.config.evaluation import FAMILIES
from selfcal.data.flavours import FLAVOURS
from selfcal.transport.choice import build_maps, map_config
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import CONDITIONS, condition_features
from selfcal.transport.derivation import write_inputs
from selfcal.transport.derivation_tasks import derive, run_task
from selfcal.transport.sample import Sample

JETS, REPLICAS, WORKERS = 100_000, 20, 2
APPLIED_JETS = 200_000
FRACTIONS = np.array(
    [[0.58, 0.02, 0.40, 0.0], [0.01, 0.42, 0.57, 0.0], [0.04, 0.06, 0.90, 0.0], [0.01, 0.03, 0.39, 0.57]]
)
"""Of four control regions, as b-tagging calibrations have them."""
CENTRES = np.array([[1.6, 0.4, 0.6], [0.0, 0.9, 0.4], [-0.9, -0.4, 0.3], [-0.4, -0.2, -1.8]])
SHIFTS = np.array([[-0.05, 0.0, 0.0], [0.05, 0.05, 0.0], [0.15, 0.05, 0.0], [0.0, 0.05, 0.1]])


def draw(jets: int, shifts: np.ndarray, random: np.random.Generator, *, labelled: bool) -> Sample:
    """``jets`` jets of all regions together."""
    region = np.repeat(np.arange(len(FRACTIONS)), jets // len(FRACTIONS))
    flavour = np.concatenate(
        [random.choice(len(FLAVOURS), size=jets // len(FRACTIONS), p=row) for row in FRACTIONS]
    )
    pt_gev = 20.0 + random.exponential(40.0, len(region))
    tails = np.where(random.random(len(region)) < 0.1, 1.8, 1.0)[:, None]
    u = CENTRES[flavour] + 0.6 * tails * random.standard_normal((len(region), 3)) + shifts[flavour]
    return Sample(
        torch.from_numpy(u),
        condition_features(pt_gev, random.uniform(0.0, 2.5, len(region))),
        torch.from_numpy(flavour if labelled else np.full(len(region), -1)),
        torch.from_numpy(region),
        torch.arange(len(region)) // 2,
        torch.ones(len(region), dtype=torch.float64),
    )


def derivation_seconds(jets: int, replicas: int, workers: int) -> dict[str, float]:
    """Wall-clock seconds of everything that a calibration derives, CPU-seconds of a replica, peak memory."""
    random = np.random.default_rng(1)
    simulation = draw(jets, np.zeros_like(SHIFTS), random, labelled=True)
    data = draw(jets, SHIFTS, random, labelled=False)
    centre = torch.from_numpy(FRACTIONS + 1e-4)
    centre = centre / centre.sum(1, keepdim=True)
    prior = CompositionPrior(centre, (0.25 * centre).clamp_min(0.002))
    with tempfile.TemporaryDirectory() as name:
        config = CalibrationConfig(bootstraps=replicas)
        folder = write_inputs(Path(name), simulation, data, prior, config, 1)
        begin = time.perf_counter()
        derive(folder, workers, lambda done, total: None)
        seconds = time.perf_counter() - begin
        task_seconds(folder, ("bulk-0",))  # what a process loads once is no replica's
        replica = task_seconds(folder, ("bulk-1", "replica-1"))
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": seconds, "replica_seconds": replica, "peak_gib": max(used) / 2**20}


def task_seconds(folder: Path, tasks: Sequence[str]) -> float:
    """CPU-seconds of ``tasks`` of a finished derivation, done once more in this process, on one thread."""
    for task in tasks:
        (folder / f"{task}.safetensors").unlink()
    begin = time.process_time()
    for task in tasks:
        run_task(folder, task)
    return time.process_time() - begin


def applied_per_second(jets: int) -> dict[str, float]:
    """Jets per CPU-second through the maps of every family, on one thread."""
    torch.set_num_threads(1)
    sample = draw(jets, np.zeros_like(SHIFTS), np.random.default_rng(2), labelled=True)
    rates = {}
    for family in FAMILIES:
        maps = build_maps(map_config(family, MapConfig()), sample.coordinates.shape[1], CONDITIONS)
        few = sample.rows(torch.arange(1000))
        with torch.no_grad():
            maps(few.coordinates, few.flavour, few.conditions)
            begin = time.process_time()
            maps(sample.coordinates, sample.flavour, sample.conditions)
        rates[family] = len(sample) / (time.process_time() - begin)
    return rates


def main(words: list[str] | None = None) -> None:
    """Print both, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS, help="of simulation, and as many of data")
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--workers", type=int, default=min(WORKERS, os.cpu_count() or 1))
    parser.add_argument("--apply-only", action="store_true")
    given = parser.parse_args(words)
    rates = applied_per_second(APPLIED_JETS)
    for family, rate in rates.items():
        print(f"apply {family:<22}{rate:>12.0f} jets/s/core", flush=True)
    result: dict[str, object] = {"apply": {family: round(rate) for family, rate in rates.items()}}
    if not given.apply_only:
        derived = derivation_seconds(given.jets, given.replicas, given.workers)
        print(
            f"derive, {given.jets} + {given.jets} jets, {given.replicas} replicas, {given.workers} processes "
            f"{derived['seconds']:.0f} s, {derived['replica_seconds']:.1f} s of one core for a replica, "
            f"{derived['peak_gib']:.2f} GiB"
        )
        result["derive"] = {key: round(value, 2) for key, value in derived.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
