"""How fast this machine generates, reads, trains, scores and calibrates jets: one table."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import likelihood, maps, scale, simulators, tagger
from bench.command_line import run_script
from bench.scale import tile
from selfcal.config.card import DataCard
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import Jets
from selfcal.data.reading import read_dataset
from selfcal.generate.dataset import GenerateRequest, generate_dataset
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.scoring import score_jets
from selfcal.training.loop import train_tagger

N_JETS = 1024
COPIES = 8
"""Training and scoring see the generated jets this many times, so that a timing lasts seconds."""


READ_COPIES = 60
"""The file that is read has so many times the generated jets."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def generation(folder: Path) -> tuple[dict[str, float], Path]:
    """Jets per second with truth from Pythia, and with truth from the cache."""
    request = GenerateRequest(name="bench", process="ttbar_emu", n_jets=N_JETS, seed=1)

    def generate(output: str) -> Callable[[], None]:
        path = folder / output
        return lambda: generate_dataset(request, path, folder / "cache", 1, lambda done, total: None)

    cold, warm = timed(generate("a.h5")), timed(generate("b.h5"))
    return {"generate, no cache": N_JETS / cold, "generate, truth cached": N_JETS / warm}, folder / "a.h5"


def read_all(path: Path) -> None:
    """Read a file with tracks as every stage does, chunk by chunk."""
    card = DataCard(name="bench", role="simulation", region="any", files=(str(path),))
    for _ in read_dataset(card, [path], Wanted()):
        continue


def tagging(jets: Jets) -> dict[str, float]:
    """Jets per second in training (forward, backward, step) and in scoring."""
    many = jets.select(np.tile(np.arange(len(jets)), COPIES))
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    config = TaggerConfig()
    bundle = TaggerBundle(config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed=1))
    train, few = bundle.tensors(many), bundle.tensors(jets.select(np.arange(100)))
    training = TrainingConfig(epochs=1)
    seconds = timed(lambda: train_tagger(bundle.model, train, few, training, seed=1))
    bundle.model.eval()
    return {"train": len(many) / seconds, "score": len(many) / timed(lambda: score_jets(bundle, many))}


def main() -> None:
    """Print the table, and the same as one line of JSON."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        rates, path = generation(Path(name))
        jets = read_jets(path, "bench")
        many = Path(name) / "many.h5"
        read = tile(path, many, READ_COPIES)
        begin = time.process_time()
        read_all(many)
        rates["read, per CPU-second"] = read / (time.process_time() - begin)
        rates |= tagging(jets)
    for label, rate in rates.items():
        print(f"{label:<24}{rate:>12.0f} jets/s")
    print(json.dumps({label: round(rate, 1) for label, rate in rates.items()}))
    simulators.main([])
    likelihood.main([])
    tagger.main([])
    maps.main([])
    scale.main(int(os.environ.get("SELFCAL_BENCH_JETS", scale.JETS)))


if __name__ == "__main__":
    run_script(main)
