"""Ten million jets through reading, inference, calibration, templates and fit: time and peak memory.

The jets are a few thousand generated ones, written many times over with other event numbers. What is
timed and weighed is the program ``selfcal`` itself, run stage by stage in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import yaml

from selfcal.generate.dataset import GenerateRequest, generate_dataset

BASE_JETS = 4096
"""Jets generated per region: one chunk of the jets' dataset, a whole number of chunks of the tracks'."""

REGIONS = ("ttbar_emu", "w_charm", "dijet", "z_tautau")
STAGES = ("validate", "train", "calibrate", "fit", "export")
LAUNCH = "import sys; from selfcal.cli.app import main; sys.exit(main())"

SETTINGS: dict[str, Any] = {
    "name": "scale",
    "training": {"epochs": 2},
    "tagger": {"width": 16, "layers": 1, "heads": 2, "feedforward_width": 32, "latent": 16},
    "calibration": {"bootstraps": 2, "joint": {"enabled": False}},
    "fit": {"working_points": [0.60, 0.70, 0.77, 0.85, 0.92, 0.98]},
}
"""A small tagger, because its size does not change the memory; training sees one jet in a hundred."""
FOLDS = {"simulation_folds": [0.01, 0.39, 0.6], "data_folds": [0.01, 0.39, 0.6]}


def tile(source: Path, target: Path, copies: int) -> int:
    """Write the jets of ``source`` ``copies`` times with shifted event numbers; returns their number.

    The compressed chunks of the tracks are copied as they are.
    """
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        table = old["jets"][:]
        n, events = len(table), int(table["eventNumber"].max()) + 1
        jets = new.create_dataset(
            "jets", (n * copies,), table.dtype, chunks=(n,), compression="gzip", compression_opts=1
        )
        tracks = _empty_like(new, old["tracks"], n * copies)
        chunks = [
            (old["tracks"].id.get_chunk_info(i).chunk_offset[0], old["tracks"].id.get_chunk_info(i))
            for i in range(old["tracks"].id.get_num_chunks())
        ]
        raw = [(start, old["tracks"].id.read_direct_chunk(info.chunk_offset)) for start, info in chunks]
        for copy in range(copies):
            jets[copy * n : (copy + 1) * n] = table
            table["eventNumber"] += events
            for start, (mask, content) in raw:
                tracks.id.write_direct_chunk((copy * n + start, 0), content, mask)
    return n * copies


def _empty_like(file: h5py.File, dataset: h5py.Dataset, rows: int) -> h5py.Dataset:
    return file.create_dataset(
        "tracks",
        (rows, *dataset.shape[1:]),
        dataset.dtype,
        chunks=dataset.chunks,
        compression=dataset.compression,
        compression_opts=dataset.compression_opts,
        fletcher32=dataset.fletcher32,
    )


def prepare(folder: Path, jets: int) -> int:
    """Files, cards and configuration of about ``jets`` jets in all; returns their number."""
    copies = max(1, round(jets / (2 * len(REGIONS) * BASE_JETS)))
    cards, total = [], 0
    for region in REGIONS:
        for seed, role in enumerate(("simulation", "data"), start=1):
            name = f"{role}_{region}"
            base = folder / f"base_{name}.h5"
            request = GenerateRequest(name=name, process=region, n_jets=BASE_JETS, seed=seed)
            generate_dataset(request, base, folder / "cache", 1, lambda done, total: None)
            total += tile(base, folder / f"{name}.h5", copies)
            card: dict[str, Any] = {"name": name, "role": role, "region": region, "files": [f"{name}.h5"]}
            if role == "data":
                card["composition"] = {"relative_uncertainty": 0.25}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
            cards.append(f"{name}.yaml")
    settings = SETTINGS | {"data": {"cards": cards, **FOLDS}}
    (folder / "scale.yaml").write_text(yaml.safe_dump(settings))
    return total


def run_stage(folder: Path, stage: str) -> tuple[float, float]:
    """Seconds and peak memory in GiB of one stage, its largest worker process included."""
    command = [sys.executable, "-c", LAUNCH, stage, "scale.yaml", "--out", "run", "-q"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"selfcal {stage} failed with status {status}")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


JETS = 10_000_000


def main(jets: int = JETS) -> None:
    """Print seconds, jets per second and peak memory of every stage; the same as one line of JSON."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        total = prepare(Path(name), jets)
        print(f"{total} jets in {2 * len(REGIONS)} files")
        for stage in STAGES:
            seconds, peak_gib = run_stage(Path(name), stage)
            rows[stage] = {"seconds": round(seconds, 1), "peak_gib": round(peak_gib, 2)}
            rate = f"{total / seconds:>12.0f} jets/s"
            print(f"{stage:<12}{seconds:>9.1f} s{rate}{peak_gib:>8.2f} GiB", flush=True)
    print(json.dumps({"jets": total, "stages": rows}))


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
