"""What fits of vertices bring to the tagger, and what they cost: with and without, same seeds and batches.

    python -m bench.vertex_fit runs/demo/data/sim_{ttbar_emu,dijet,w_charm}.h5

The first file must be tt̄: its b jets, which know where their hadron decayed, give the
resolution of the vertices. CPU seconds of one thread, so that a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from bench.command_line import run_script
from bench.paired import Scores, compare_rejections, cross_entropy, cross_entropy_change, show, unweighted
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.flavours import B
from selfcal.data.folds import event_hash
from selfcal.data.jets import ORIGINS
from selfcal.tagger.batching import TensorJets, join, sorted_batches
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.perigee import perigee_from_fields
from selfcal.tagger.scoring import score_tensors
from selfcal.tagger.vertex_fit import fit_vertices
from selfcal.tagger.vertex_layer import fit_secondary_vertices
from selfcal.training.loop import train_tagger
from selfcal.training.objectives import supervised_loss

BATCH = 512
TRACKS_OF_A_VERTEX = 1.5
"""A vertex counts as found when its tracks have this much weight together."""


def resolution(found_mm: NDArray[np.float64], true_mm: NDArray[np.float64]) -> dict[str, float]:
    """Median of found - true, and half the width of its central 68.3 %."""
    low, middle, high = np.quantile(found_mm - true_mm, [0.1585, 0.5, 0.8415])
    return {"bias_mm": float(middle), "width_mm": float((high - low) / 2), "vertices": len(found_mm)}


def vertex_resolution(
    bundle: TaggerBundle, b_jets: TensorJets, true_mm: NDArray[np.float64]
) -> dict[str, Any]:
    """L_xy of the first vertex that the heads of the model lead to, and of the one of the true b tracks."""
    lxy = {name: np.full(len(b_jets), np.nan) for name in ("of the heads", "of the true tracks")}
    pulls = np.full(len(b_jets), np.nan)
    bundle.model.eval()
    with torch.no_grad():
        for index in sorted_batches(b_jets.n_tracks, BATCH):
            batch = b_jets.batch(index)
            output = bundle.model(batch)
            fit = fit_secondary_vertices(batch, output.origin_logits, output.pairs, output.vertex_logits, 2)
            assert batch.perigee is not None
            tracks = perigee_from_fields(batch.perigee[..., :-1], batch.perigee[..., -1])
            truly = (batch.origin == ORIGINS.index("from_b"))[:, None].double()
            oracle = fit_vertices(tracks, batch.valid, truly)
            for name, one in (("of the heads", fit), ("of the true tracks", oracle)):
                enough = one.n_tracks[:, 0] >= TRACKS_OF_A_VERTEX
                lxy[name][index] = torch.where(enough, one.lxy_mm[:, 0], torch.nan).numpy()
            off = oracle.lxy_mm[:, 0] - torch.from_numpy(true_mm[index])
            pulls[index] = (off / oracle.covariance[:, 0, 0, 0].sqrt()).numpy()
    result: dict[str, Any] = {}
    for name, values in lxy.items():
        found = np.isfinite(values)
        result[name] = {**resolution(values[found], true_mm[found]), "found": float(found.mean())}
    found = np.isfinite(lxy["of the true tracks"])
    result["pull width, true tracks"] = resolution(pulls[found], np.zeros(found.sum()))["width_mm"]
    return result


def training_cost(bundles: dict[str, TaggerBundle], train: TensorJets, steps: int) -> dict[str, float]:
    """CPU milliseconds of forward, backward and step on 256 jets; the variants take turns."""
    training = TrainingConfig()
    spent = dict.fromkeys(bundles, 0.0)
    optimisers = {name: torch.optim.AdamW(bundle.model.parameters()) for name, bundle in bundles.items()}
    batches = [
        train.batch(index)
        for index in sorted_batches(train.n_tracks, 256)[:: max(1, len(train) // 256 // steps)]
    ]
    for batch in batches:
        for name, bundle in bundles.items():
            begin = time.process_time()
            optimisers[name].zero_grad(set_to_none=True)
            supervised_loss(bundle.model, batch, training)[0].total.backward()  # type: ignore[no-untyped-call]
            optimisers[name].step()
            spent[name] += time.process_time() - begin
    return {name: 1000.0 * seconds / len(batches) for name, seconds in spent.items()}


def compare(files: Sequence[Path], jets_per_file: int, epochs: int, seeds: int) -> None:
    """Print one JSON line per measurement."""
    samples = [unweighted(path) for path in files]
    with h5py.File(files[0]) as file:
        true_lxy = file["jets"]["HadronConeExclTruthLabelLxy"].astype(np.float64)
    inputs = common_inputs(samples)
    train_jets = [jets.select(np.arange(jets_per_file)) for jets in samples]
    held = [jets.select(np.arange(jets_per_file, len(jets))) for jets in samples]
    few = [jets.select(np.arange(min(len(jets), jets_per_file // 4))) for jets in held]
    tests = [jets.select(np.arange(len(part), len(jets))) for jets, part in zip(held, few, strict=True)]
    normalisation = Normalisation.measure([compute_features(jets, inputs) for jets in train_jets])

    def bundle_of(fit: bool, seed: int, size: str = "small") -> TaggerBundle:
        config = TaggerConfig.model_validate({"vertex_fit": fit, "size": size})
        return TaggerBundle(
            config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed=seed)
        )

    preparing = bundle_of(True, 0)
    train, validation, test = (
        join([preparing.tensors(j) for j in part]) for part in (train_jets, few, tests)
    )
    for size, steps in (("small", 20), ("medium", 8)):
        cost = training_cost({str(fit): bundle_of(fit, 1, size) for fit in (False, True)}, train, steps)
        print(
            json.dumps({"size": size, "ms_per_step": cost, "ratio": cost["True"] / cost["False"]}), flush=True
        )

    is_b = np.flatnonzero(tests[0].flavour == B)
    b_jets = preparing.tensors(tests[0].select(is_b))
    b_lxy = true_lxy[jets_per_file + len(few[0]) :][is_b]
    flavour = test.flavour.numpy()
    event = np.concatenate(
        [event_hash(jets.dataset, jets.run, jets.event).astype(np.int64) for jets in tests]
    )
    scores: dict[bool, list[Scores]] = {False: [], True: []}
    for seed in range(1, seeds + 1):
        for fit in (False, True):
            bundle, begin = bundle_of(fit, seed), time.process_time()
            train_tagger(bundle.model, train, validation, TrainingConfig(epochs=epochs), seed=seed)
            spent = time.process_time() - begin
            scores[fit].append(score_tensors(bundle.model, test).log_probability)
            row: dict[str, Any] = {"seed": seed, "vertex_fit": fit, "cpu_s": round(spent, 1)}
            row["cross_entropy"] = cross_entropy(scores[fit][-1:], flavour).mean()
            row["lxy"] = vertex_resolution(bundle, b_jets, b_lxy)
            print(json.dumps(row), flush=True)
        # After each pair what is known so far, so that the last table is the result.
        rows = compare_rejections(scores[True], scores[False], flavour, event)
        show(f"rejections after {seed} pair(s) of trainings", "with", "without", rows)
        change, error = cross_entropy_change(scores[True], scores[False], flavour)
        print(json.dumps({"pairs": seed, "cross entropy, with - without": [change, error]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="native files of simulation, tt̄ first")
    parser.add_argument("--jets", type=int, default=6000, help="training jets of each file (default 6000)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare(arguments.files, arguments.jets, arguments.epochs, arguments.seeds)


if __name__ == "__main__":
    run_script(main)
