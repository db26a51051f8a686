"""What our tagger and salt's reject after equal steps: ``python -m bench.tagger_rejection FILES``.

Both have the layers of ``tagger.size`` medium (three of width 128) and see the same batches of the same
normalised inputs in the same order, with the same AdamW, learning rates, clipping and weights of the
losses; the weights after the last step are compared on the same jets that neither has seen. Half of the
events of FILES train; the others, and all jets of ``--held-out``, test. Errors are those of a bootstrap over
events in which both taggers see the same replicas.

salt runs with two losses: ``equal`` are ours, plain means over jets, tracks and pairs; ``salt`` are its
own, whose pair loss counts several times as much. Its Python is given as to :mod:`bench.tagger`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.command_line import run_script
from bench.paired import Scores, compare_rejections, cross_entropy, cross_entropy_change, show, unweighted
from bench.tagger import ask_salt
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.folds import event_hash
from selfcal.data.jets import Jets
from selfcal.data.samples import for_validation
from selfcal.tagger.batching import TensorJets, epoch_batches, join
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, TaggerInputs, common_inputs, compute_features
from selfcal.tagger.scoring import score_tensors
from selfcal.training.objectives import supervised_loss
from selfcal.training.schedule import learning_rate

SIZE = "medium"


@dataclass(frozen=True)
class Contest:
    """What both are given: inputs, jets to train on, N jets to test with, number of their event (N,)."""

    inputs: TaggerInputs
    normalisation: Normalisation
    train: TensorJets
    test: TensorJets
    event: NDArray[np.int64]


def prepare(files: Sequence[Path], held_out: Sequence[Path]) -> Contest:
    """Read all files and take every other event of ``files`` for training."""
    samples = [unweighted(path) for path in files]
    inputs = common_inputs(samples)
    chosen = [for_validation(jets, 0.5) for jets in samples]
    train = [jets.select(taken) for jets, taken in zip(samples, chosen, strict=True)]
    test = [jets.select(~taken) for jets, taken in zip(samples, chosen, strict=True)]
    test += [unweighted(path) for path in held_out]
    normalisation = Normalisation.measure([compute_features(jets, inputs) for jets in train])
    bundle = fresh(inputs, normalisation, 0)
    return Contest(
        inputs,
        normalisation,
        join([bundle.tensors(jets) for jets in train]),
        join([bundle.tensors(jets) for jets in test]),
        np.concatenate([_event(jets) for jets in test]),
    )


def _event(jets: Jets) -> NDArray[np.int64]:
    return event_hash(jets.dataset, jets.run, jets.event).astype(np.int64)


def fresh(inputs: TaggerInputs, normalisation: Normalisation, seed: int) -> TaggerBundle:
    """An untrained tagger."""
    config = TaggerConfig.model_validate({"size": SIZE})
    return TaggerBundle(config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed))


def batches(train: TensorJets, steps: int, training: TrainingConfig, seed: int) -> NDArray[np.int64]:
    """Jets of each step (steps, batch size): whole batches of as many epochs as it takes."""
    found: list[NDArray[np.int64]] = []
    epoch = 0
    while len(found) < steps:
        of_epoch = epoch_batches(train.n_tracks, training.batch_size, seed=seed, epoch=epoch)
        found += [index for index in of_epoch if len(index) == training.batch_size]
        epoch += 1
    return np.stack(found[:steps])


def train_ours(
    contest: Contest,
    order: NDArray[np.int64],
    rates: Sequence[float],
    training: TrainingConfig,
    seed: int,
    output: Path,
) -> dict[str, Any]:
    """Parameters, CPU-seconds and losses; the scores of the test jets go to ``output``."""
    model = fresh(contest.inputs, contest.normalisation, seed).model
    optimiser = torch.optim.AdamW(model.parameters(), lr=rates[0], weight_decay=training.weight_decay)
    begin, history = time.process_time(), []
    for index, rate in zip(order, rates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss, _ = supervised_loss(model, contest.train.batch(index), training)
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimiser.step()
        history.append(float(loss.parts["flavour"].detach()))
    spent = time.process_time() - begin
    np.save(output, score_tensors(model, contest.test).log_probability)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "cpu_s": spent, "flavour_loss": history}


def write_archive(path: Path, contest: Contest, orders: dict[int, NDArray[np.int64]]) -> Path:
    """All that salt needs, as plain arrays."""
    arrays = {f"batches_{seed}": order for seed, order in orders.items()}
    for prefix, jets in (("train", contest.train), ("test", contest.test)):
        for name in ("tracks", "offsets", "jet", "flavour", "origin", "vertex"):
            arrays[f"{prefix}_{name}"] = getattr(jets, name).numpy()
    np.savez(path, **arrays)
    return path


def main(words: list[str] | None = None) -> None:
    """Train, compare, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="native files of simulation")
    parser.add_argument("--held-out", nargs="*", default=[], type=Path, help="files that only test")
    parser.add_argument("--salt", default=os.environ.get("SALT_PYTHON"), help="Python of salt's environment")
    parser.add_argument("--losses", nargs="+", choices=("equal", "salt"), default=["equal", "salt"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="jets per step")
    parser.add_argument("--rate", type=float, default=1e-3, help="largest learning rate")
    parser.add_argument(
        "--keep", type=Path, help="folder of the scores of every training; what is there is not repeated"
    )
    choices = parser.parse_args(words)
    torch.set_num_threads(1)
    training = TrainingConfig(
        batch_size=choices.batch, learning_rate=choices.rate, weight_decay=1e-5, origin_loss_weight=0.5
    )
    contest = prepare(choices.files, choices.held_out)
    flavour = contest.test.flavour.numpy()
    counts = np.bincount(flavour, minlength=4).tolist()
    print(f"{len(contest.train):,} jets train; test: {counts} jets of b, c, light, tau", flush=True)
    rates = [
        learning_rate(step, choices.steps, training.learning_rate, training.warmup_fraction)
        for step in range(choices.steps)
    ]
    orders = {
        seed: batches(contest.train, choices.steps, training, seed) for seed in range(1, choices.seeds + 1)
    }
    found: dict[str, list[Scores]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = choices.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        archive = write_archive(Path(temporary) / "jets.npz", contest, orders) if choices.salt else None
        # One kind of training after the other: what is wanted first is complete first.
        for kind in ("ours", *(choices.losses if archive else [])):
            for seed, order in orders.items():
                scores = (
                    folder / f"{kind}_{choices.steps}x{choices.batch}_rate{choices.rate:g}_seed{seed}.npy"
                )
                said = None
                if not scores.exists() and kind == "ours":
                    said = train_ours(contest, order, rates, training, seed, scores)
                elif not scores.exists():
                    said = ask_salt(
                        choices.salt, "train", archive=str(archive), size=SIZE, seed=seed, losses=kind,
                        learning_rates=rates, weight_decay=training.weight_decay,
                        gradient_clip=training.gradient_clip, output=str(scores),
                    )  # fmt: skip
                found.setdefault(kind, []).append(np.load(scores))
                report(kind, seed, found[kind][-1], flavour, said)
    summary: dict[str, Any] = {"steps": choices.steps, "seeds": choices.seeds, "batch": choices.batch}
    if archive is None:
        print("salt: skipped, its Python is not given (--salt or SALT_PYTHON)")
    for losses in choices.losses if archive else []:
        rows = compare_rejections(found["ours"], found[losses], flavour, contest.event)
        title = f"{choices.steps} steps of {choices.batch} jets, salt with {losses} losses"
        show(title, "ours", "salt", rows)
        change, error = cross_entropy_change(found["ours"], found[losses], flavour)
        print(f"  cross entropy, ours - salt: {change:+.4f} ± {error:.4f}", flush=True)
        summary[losses] = {"rejections": rows, "cross_entropy_change": [change, error]}
    print(json.dumps(summary))


def report(
    kind: str, seed: int, scores: Scores, flavour: NDArray[np.int64], said: dict[str, Any] | None
) -> None:
    """One line per training; ``said`` is None for one that was there already."""
    who = kind if kind == "ours" else f"salt with {kind} losses"
    how = "kept from before"
    if said is not None:
        last = said["flavour_loss"][-50:]
        how = (
            f"{said['parameters']:,} parameters, {said['cpu_s']:.0f} CPU-s, "
            f"flavour loss of the last {len(last)} steps {np.mean(last):.4f}"
        )
    loss = cross_entropy([scores], flavour).mean()
    print(f"{who}, seed {seed}: {how}, on test jets {loss:.4f}", flush=True)


if __name__ == "__main__":
    run_script(main)
