"""Both simulators of the inference: jets per CPU-second, and what they do at equal parameters.

Truth is generated once (or taken from ``--cache``) and then passed through the detector with other
parameters, tracks, pile-up and fakes included; the nominal file is smeared. For every shift that both have:
correlation and slope of the changes of the track summaries, in units of their statistical error. Noise of the
finite sample pulls both below one. Target: 20,000 jets per CPU-second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.command_line import run_script
from selfcal.config.detector_parameters import DetectorParameters
from selfcal.config.smearing_parameters import NOMINAL, SmearingParameters
from selfcal.data.jets import Jets
from selfcal.generate.dataset import GenerateRequest, chunk_plan, chunk_seed
from selfcal.generate.detector import simulate
from selfcal.generate.workers import ensure_chunks, load_chunk, minimum_bias_pool
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.inference import per_jet
from selfcal.sbi.noise import draw_noise
from selfcal.sbi.smearing import smear
from selfcal.sbi.summaries import count_samples

Floats = NDArray[np.float64]
PROCESSES = ("ttbar_emu", "dijet")
JETS = 6000
SHIFTS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "d0 core x 1.1": ({"d0_core_scale": 1.1}, {"d0_core_scale_low": 1.1, "d0_core_scale_high": 1.1}),
    "z0 core x 1.1": ({"z0_core_scale": 1.1}, {"z0_core_scale_low": 1.1, "z0_core_scale_high": 1.1}),
    "tails x 1.5": (
        {"tail_fraction_scale": 1.5},
        {"tail_scale_low": 1.5, "tail_scale_high": 1.5, "far_tail_scale": 1.5},
    ),
    "d0 bias 5 um": ({"d0_bias_mm": 0.005}, {"d0_bias_mm": 0.005}),
    "efficiency - 5 %": ({"efficiency_shift": -0.05}, {"efficiency_shift": -0.05}),
    "innermost hits - 2 %": ({"innermost_efficiency_shift": -0.02}, {"innermost_efficiency_shift": -0.02}),
    "pile-up x 1.2": ({"pileup_mu": 48.0}, {"pileup_scale": 1.2}),
    "fakes x 2": ({"fake_rate_scale": 2.0}, {"fake_scale": 2.0}),
}


def generator(process: str, jets: int, cache: Path) -> Callable[[DetectorParameters], list[Jets]]:
    """Cached truth through any detector; everything is in memory when it is called."""
    request = GenerateRequest(name=f"bench_{process}", process=process, n_jets=jets, seed=1)
    plan, pool = chunk_plan(request), minimum_bias_pool(cache)
    ensure_chunks(plan, cache, 1)
    truth = [
        (found, chunk_seed(request, t.chunk)) for t in plan if (found := load_chunk(t, cache)) is not None
    ]

    def simulated(detector: DetectorParameters) -> list[Jets]:
        parts = [simulate(one, detector, pool, dataset=request.name, seed=seed).jets for one, seed in truth]
        # As in a run: weights that undo a biased generation leave hardly any effective jets.
        return [replace(jets, weight=np.ones(len(jets))) for jets in parts]

    return simulated


def rates(jets: Sequence[Jets]) -> Floats:
    """Summaries per jet, all flavours together."""
    return per_jet(count_samples(jets, with_spread=False).pooled()).ravel()


def compare(process: str, jets: int, cache: Path) -> dict[str, Any]:
    """Speeds, and one row per shift."""
    simulated = generator(process, jets, cache)
    nominal = simulated(DetectorParameters())
    donors = collect_donors(nominal, 1)
    noise = [draw_noise(one, 1) for one in nominal]

    def smeared(parameters: SmearingParameters) -> list[Jets]:
        pairs = zip(nominal, noise, strict=True)
        return [smear(one, parameters, donors, 1, of_jets) for one, of_jets in pairs]

    seconds = {"generator": 0.0, "smearing": 0.0}
    before = {"generator": rates(nominal), "smearing": rates(smeared(NOMINAL))}
    number, rows = sum(len(one) for one in nominal), {}
    for name, (of_generator, of_smearing) in SHIFTS.items():
        detector, parameters = DetectorParameters(**of_generator), SmearingParameters(**of_smearing)
        simulations = {"generator": partial(simulated, detector), "smearing": partial(smeared, parameters)}
        moved = {}
        for simulator, simulation in simulations.items():
            begin = time.process_time()
            sample = simulation()
            seconds[simulator] += time.process_time() - begin
            error = np.sqrt(np.maximum(before[simulator], 10 / number))
            moved[simulator] = (rates(sample) - before[simulator]) / error
        a, b = moved["smearing"], moved["generator"]
        rows[name] = {"correlation": float(np.corrcoef(a, b)[0, 1]), "slope": float(a @ b / (b @ b))}
    speeds = {name: len(SHIFTS) * number / spent for name, spent in seconds.items()}
    return {"jets": number, "jets_per_cpu_second": speeds, "shifts": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS)
    parser.add_argument("--cache", type=Path, help="folder of generated truth that is kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        found = {process: compare(process, options.jets, cache) for process in PROCESSES}
    for process, one in found.items():
        speeds = ", ".join(f"{name} {rate:,.0f}" for name, rate in one["jets_per_cpu_second"].items())
        print(f"{process}: {one['jets']} jets; jets per CPU-second: {speeds}")
        for name, row in one["shifts"].items():
            print(f"  {name:<22}correlation {row['correlation']:.2f}  slope {row['slope']:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    run_script(main)
