"""Our tagger beside salt's, at equal layer sizes on the same batches: ``python -m bench.tagger --help``.

Both train on one file of synthetic jets with the 19 track inputs of GN2 and a mean of 14 tracks: forward,
losses of jet, track origin and vertex pairs, backward, AdamW. Rates are jets per CPU-second of one thread,
the best of several steps, so that other work on the machine matters little; the two are measured in turn.

salt (PyPI ``salt-ml``) needs a virtual environment of its own, whose Python is given by ``--salt`` or by the
variable ``SALT_PYTHON``:

    python -m venv salt && salt/bin/pip install torch && salt/bin/pip install --no-deps salt-ml==0.13.0

and then what its imports ask for (it pins versions that do not go together with ours). Its ONNX
graph of one jet comes from its own exporter's class; that has no batches, so the one for batches
is exported from its modules.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from bench.command_line import run_script
from bench.mock_jets import JET_COLUMNS, ORIGIN, TRACK_COLUMNS, VERTEX, write_mock_jets
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.jets import TRACK_FIELDS
from selfcal.export.onnx_graph import onnx_installed
from selfcal.export.onnx_tagger import write_tagger
from selfcal.tagger.batching import JetBatch, TensorJets
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import JET_INPUTS, TRACK_INPUTS, Normalisation, known_inputs
from selfcal.training.objectives import tagger_loss

SIZES = ("medium", "gn2")
"""Three layers 128 wide and four 256 wide, with the heads of salt's GN2."""

PEER = Path(__file__).with_name("salt_peer.py")


def read_batches(path: Path, batch_size: int) -> list[JetBatch]:
    """The jets of the file in order, normalised as salt does, without any sorting by length."""
    with h5py.File(path) as handle:
        jets, tracks = handle["jets"][:], handle["tracks"][:]
    valid = tracks["valid"]
    table = np.stack([tracks[name][valid] for name in TRACK_COLUMNS], axis=1).astype(np.float32)
    of_jet = np.stack([jets["pt_btagJes"], jets["eta_btagJes"]], axis=1).astype(np.float32)
    counts = valid.sum(axis=1)
    packed = TensorJets(
        tracks=torch.from_numpy((table - table.mean(0)) / table.std(0)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        jet=torch.from_numpy((of_jet - of_jet.mean(0)) / of_jet.std(0)),
        flavour=torch.from_numpy(jets["flavour_label"].astype(np.int64)),
        origin=torch.from_numpy(tracks[ORIGIN][valid].astype(np.int64)),
        vertex=torch.from_numpy(tracks[VERTEX][valid].astype(np.int64)),
        weight=torch.ones(len(jets)),
    )
    starts = range(0, len(jets) - batch_size + 1, batch_size)
    return [packed.batch(np.arange(first, first + batch_size)) for first in starts]


def our_bundle(size: str) -> TaggerBundle:
    """An untrained tagger of this size, with inputs that are normalised already."""
    inputs = known_inputs([track_input.name for track_input in TRACK_INPUTS], list(JET_INPUTS))
    of_track, of_jet = np.zeros(len(inputs.track), np.float32), np.zeros(len(inputs.jet), np.float32)
    normalisation = Normalisation(of_track, of_track + 1, of_jet, of_jet + 1)
    config = TaggerConfig.model_validate({"size": size})
    return TaggerBundle(config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed=1))


@dataclass(frozen=True)
class Timing:
    """Best seconds of one training step and of one scoring pass over a batch."""

    parameters: int
    train_s: float
    score_s: float


def time_ours(size: str, batches: Sequence[JetBatch], device: str = "cpu", bfloat16: bool = False) -> Timing:
    """Forward, losses, backward, AdamW; and scoring. CPU-seconds, on a GPU seconds of the wall clock."""
    model = our_bundle(size).model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
    here = [batch.to(torch.device(device)) for batch in batches]
    weights = TrainingConfig(origin_loss_weight=0.5, vertex_loss_weight=1.5)

    def train(batch: JetBatch) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            output = model(batch)
            loss = tagger_loss(output, batch, weights)
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def score(batch: JetBatch) -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            model(batch, with_origin=False, with_vertex=False)

    training = [seconds(lambda batch=batch: train(batch), device) for batch in here]  # type: ignore[misc]
    model.eval()
    scoring = [seconds(lambda batch=batch: score(batch), device) for batch in here]  # type: ignore[misc]
    parameters = sum(p.numel() for p in model.parameters())
    return Timing(parameters, min(training), min(scoring))


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """CPU-seconds of this process; where a GPU works, seconds of the wall clock until it is done."""
    if device == "cpu":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def time_salt(python: str, path: Path, size: str, batch_size: int, steps: int) -> Timing:
    """The same of salt, in its own interpreter."""
    columns = {"jets": JET_COLUMNS, "tracks": TRACK_COLUMNS}
    found = ask_salt(
        python, "time", path=str(path), size=size, batch=batch_size, steps=steps, variables=columns
    )
    return Timing(found["parameters"], min(found["train_s"]), min(found["score_s"]))


def ask_salt(python: str, task: str, **arguments: Any) -> dict[str, Any]:
    """What a task of ``salt_peer.py`` answers, run by salt's Python."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    command = [python, str(PEER), task, json.dumps(arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode != 0:
        raise SystemExit(f"salt failed:\n{answer.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def time_salt_onnx(python: str, path: Path, size: str, batch_size: int, steps: int) -> dict[str, float]:
    """Like :func:`time_onnx`, of salt."""
    columns = {"jets": JET_COLUMNS, "tracks": TRACK_COLUMNS}
    found = ask_salt(
        python, "onnx", path=str(path), size=size, batch=batch_size, steps=steps, variables=columns
    )
    return {"batch_s": min(found["batch_s"]), "median_latency_us": 1e6 * float(np.median(found["latency_s"]))}


def time_onnx(size: str, batches: Sequence[JetBatch]) -> dict[str, float]:
    """ONNX Runtime, one thread: CPU-seconds per batch, and microseconds of the wall clock for one jet."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = write_tagger(our_bundle(size), Path(folder) / "tagger.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)

    def inputs(valid: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        shape = (*valid.shape, len(TRACK_FIELDS))
        jet = np.tile(np.float32([[60.0, 1.0]]), (len(valid), 1))
        tracks = generator.uniform(0.1, 1, shape).astype(np.float32)
        return {"jet": jet, "tracks": tracks, "valid": valid}

    given = [inputs(batch.valid.numpy()) for batch in batches]
    one = inputs(np.ones((1, 14), np.bool_))
    latency = []
    for _ in range(200):
        begin = time.perf_counter()
        session.run(None, one)
        latency.append(time.perf_counter() - begin)
    batch_s = min(seconds(lambda g=g: session.run(None, g)) for g in given)  # type: ignore[misc]
    return {"batch_s": batch_s, "median_latency_us": 1e6 * float(np.median(latency))}


def compare(size: str, path: Path, choices: argparse.Namespace) -> dict[str, Any]:
    """All rates of one size, printed as they come; returns the same as plain numbers."""
    batches = read_batches(path, choices.batch)[: choices.steps]
    ours = time_ours(size, batches)
    found: dict[str, Any] = {"size": size, "parameters": ours.parameters}
    print(f"\n{size}: {ours.parameters:,} parameters; batches of {choices.batch}; jets per CPU-second")
    rows = [("train", ours.train_s, "train_s"), ("score, PyTorch", ours.score_s, "score_s")]
    salt = None
    if choices.salt:
        salt = time_salt(choices.salt, path, size, choices.batch, choices.steps)
        # Ours again after salt's: the machine may have become slower or faster meanwhile.
        again = time_ours(size, batches)
        rows = [(n, min(t, getattr(again, k)), k) for n, t, k in rows]
        found["salt_parameters"] = salt.parameters
    for label, best, key in rows:
        rate = choices.batch / best
        found[label] = rate
        beside = ""
        if salt is not None:
            peer = choices.batch / getattr(salt, key)
            found[f"{label}, salt"], found[f"{label}, ratio"] = peer, rate / peer
            beside = f"   salt ({salt.parameters:,}) {peer:>8.0f}   ratio {rate / peer:.2f}"
        print(f"  {label:<20}{rate:>8.0f}{beside}", flush=True)
    if onnx_installed():
        runtime = time_onnx(size, batches)
        peer = (
            time_salt_onnx(choices.salt, path, size, choices.batch, choices.steps) if choices.salt else None
        )
        rate, latency = choices.batch / runtime["batch_s"], runtime["median_latency_us"]
        found["score, ONNX Runtime"], found["ONNX latency of one jet, us"] = rate, latency
        beside, beside_one = "   (padded to the longest jet)", ""
        if peer is not None:
            rate_peer, latency_peer = choices.batch / peer["batch_s"], peer["median_latency_us"]
            found["score, ONNX Runtime, salt"] = rate_peer
            found["ONNX latency of one jet, us, salt"] = latency_peer
            beside = f"   salt{rate_peer:>18.0f}   ratio {rate / rate_peer:.2f}   (both padded)"
            beside_one = f"; salt {latency_peer:.0f} us"
        print(f"  {'score, ONNX Runtime':<20}{rate:>8.0f}{beside}")
        print(f"  one jet of 14 tracks, ONNX Runtime: {latency:.0f} us{beside_one}", flush=True)
    return found


def on_gpu(size: str, path: Path, batch_size: int) -> dict[str, Any]:
    """Rates on the GPU in bfloat16, jets per second."""
    batches = read_batches(path, batch_size)
    timing = time_ours(size, batches * 5, "cuda", bfloat16=True)
    name = torch.cuda.get_device_name()
    train, score = batch_size / timing.train_s, batch_size / timing.score_s
    print(
        f"\n{size} on {name}, bfloat16, batches of {batch_size}: train {train:.0f}, score {score:.0f} jets/s"
    )
    return {"size": size, "gpu": name, "train": train, "score": score}


def main(words: list[str] | None = None) -> None:
    """Print the comparison, and the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--salt", default=os.environ.get("SALT_PYTHON"), help="Python of salt's environment")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, default=1000, help="jets per batch")
    parser.add_argument("--steps", type=int, default=4, help="batches, of which the best counts")
    choices = parser.parse_args(words)
    torch.set_num_threads(1)
    if not choices.salt:
        print("salt: skipped, its Python is not given (--salt or SALT_PYTHON)")
    gpu_batch = 4096
    with tempfile.TemporaryDirectory() as folder:
        jets = max(choices.batch * choices.steps, 2 * gpu_batch if torch.cuda.is_available() else 0)
        path = write_mock_jets(Path(folder) / "jets.h5", jets, mean_tracks=14.0, seed=0)
        found = [compare(size, path, choices) for size in choices.sizes]
        if torch.cuda.is_available():
            found += [on_gpu(size, path, gpu_batch) for size in choices.sizes]
        else:
            print("\nGPU: skipped, there is none")
    print(json.dumps(found))


if __name__ == "__main__":
    run_script(main)
