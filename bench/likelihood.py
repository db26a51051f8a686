"""The likelihood fit beside pyhf and evermore: one data set, 100 and 1,000 toys of one workspace.

    python -m bench.likelihood [--workspace FILE] [--toys N] [--peer-limit SECONDS]
                               [--evermore PYTHON]

Every peer runs in a process of its own, under a time limit, on the same pseudo-data: pyhf with its
PyTorch backend and SLSQP (its best optimiser for models of this size), evermore in the Python that
``--evermore`` or the environment variable SELFCAL_BENCH_EVERMORE names. On a machine that is not quiet the
ratios of CPU seconds are the ones to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.command_line import run_script
from selfcal.likelihood.fit import fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.toy_fits import draw_toys, fit_toys
from selfcal.likelihood.workspace_file import read_workspace, with_data

WORKSPACE = Path(__file__).parents[2] / "shared" / "peers" / "scale_factor_fit.workspace.json.gz"
FITS = 5
PEER_TOYS = 100
PEER_LIMIT = 120.0

Toys = tuple[torch.Tensor, torch.Tensor]
"""Counts (T, B) and auxiliary measurements (T, D)."""


def ours(model: HistFactory, toys: Toys, number: int) -> dict[str, Any]:
    """Seconds per fit (warm, median of a few) and for ``number`` toys, with the failures counted."""
    counts, centre = toys
    fit(model, counts[0])
    single = []
    for i in range(FITS):
        begin, cpu = time.perf_counter(), time.process_time()
        fit(model.with_centre(centre[i]), counts[i])
        single.append((time.perf_counter() - begin, time.process_time() - cpu))
    wall, cpu = np.median(single, axis=0)
    rows: dict[str, Any] = {"fit_seconds": float(wall), "fit_cpu_seconds": float(cpu)}
    for size in sorted({min(PEER_TOYS, number), number}):
        begin, cpu = time.perf_counter(), time.process_time()
        failed = sum(batch.failed for batch in fit_toys(model, model.start, size, seed=1))
        rows[f"{size}_toys_seconds"] = time.perf_counter() - begin
        rows[f"{size}_toys_cpu_seconds"] = time.process_time() - cpu
        rows[f"{size}_toys_failures"] = failed
        rows["toy_seconds"] = rows[f"{size}_toys_seconds"] / size
        rows["toy_cpu_seconds"] = rows[f"{size}_toys_cpu_seconds"] / size
    return rows


def peer(name: str, python: str, folder: Path, limit: float, *words: str) -> dict[str, Any]:
    """Run ``bench/peer_<name>.py`` on the files of ``folder`` and read the JSON it prints last."""
    script = Path(__file__).with_name(f"peer_{name}.py")
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    try:
        answer = subprocess.run(
            [python, str(script), str(folder), *words],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"more_than_seconds": limit}
    if answer.returncode:
        return {"failed": answer.stderr.strip().splitlines()[-1:]}
    result: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return result


def write_inputs(folder: Path, workspace: dict[str, Any], model: HistFactory, toys: Toys) -> None:
    """What peers read: the first toy as a workspace, all toys and the tables of the model as arrays."""
    counts, centre = toys
    first = with_data(workspace, model, counts[0], centre[0])
    (folder / "toy.json").write_text(json.dumps(first))
    terms = model.terms
    tables = {
        "nominal": terms.nominal,
        "up": terms.up,
        "down": terms.down,
        "shift_parameter": terms.shift_parameter,
        "scale": terms.scale[terms.scale_row],
        "scale_parameter": terms.scale_parameter,
        "pair_parameter": terms.pair_parameter,
        "log_high": terms.scales.log_high,
        "log_low": terms.scales.log_low,
        "coefficients": terms.scales.coefficients,
        "factor": terms.factor,
        "shape": torch.tensor([terms.n_bins, terms.n_slots]),
        "start": model.start,
        "lower": model.lower,
        "upper": model.upper,
        "constrained": model.constrained,
        "width": model.width,
        "counts": counts,
        "centre": centre,
    }
    np.savez(folder / "model.npz", **{key: value.numpy() for key, value in tables.items()})


def report(rows: dict[str, dict[str, Any]]) -> None:
    """One line per program, with the ratio to ours."""
    mine = rows["selfcal"]
    for key, value in mine.items():
        print(f"{'selfcal ' + key:<36}{value:>12.4g}")
    for name in ("pyhf", "evermore"):
        found = rows.get(name, {})
        for key in ("fit_seconds", "fit_cpu_seconds", "toy_seconds", "toy_cpu_seconds"):
            if key in found:
                ratio = found[key] / mine[key]
                print(f"{name + ' ' + key:<36}{found[key]:>12.4g}   {ratio:.0f} x ours")
        for key in ("skipped", "failed", "more_than_seconds"):
            if key in found:
                print(f"{name}: {key.replace('_', ' ')}: {found[key]}")


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time everything that is there."""
    workspace = read_workspace(arguments.workspace)
    model = HistFactory(workspace)
    toys = draw_toys(model, model.start, PEER_TOYS, torch.Generator().manual_seed(1))
    rows = {"selfcal": ours(model, toys, arguments.toys)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, workspace, model, toys)
        if find_spec("pyhf") is None:
            rows["pyhf"] = {"skipped": "not installed"}
        else:
            rows["pyhf"] = peer("pyhf", sys.executable, folder, arguments.peer_limit)
        if arguments.evermore:
            rows["evermore"] = peer("evermore", arguments.evermore, folder, arguments.peer_limit)
        else:
            rows["evermore"] = {"skipped": "set SELFCAL_BENCH_EVERMORE to a Python that has it"}
    return rows


def main(words: list[str] | None = None) -> None:
    """Print the table, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.likelihood")
    parser.add_argument("--workspace", type=Path, default=WORKSPACE)
    parser.add_argument("--toys", type=int, default=1000)
    parser.add_argument("--peer-limit", type=float, default=PEER_LIMIT)
    parser.add_argument("--evermore", default=os.environ.get("SELFCAL_BENCH_EVERMORE"))
    arguments = parser.parse_args(words)
    if not arguments.workspace.exists():
        print(f"likelihood: skipped, there is no {arguments.workspace.name} (--workspace FILE)")
        return
    rows = compare(arguments)
    report(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    run_script(main)
