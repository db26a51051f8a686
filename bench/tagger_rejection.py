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

from bench.tagger import ask_salt
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig
from selfcal.data.folds import event_hash
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jets import Jets
from selfcal.tagger.batching import TensorJets, epoch_batches, join
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.inputs import Normalisation, TaggerInputs, common_inputs, compute_features
from selfcal.training.evaluation import rejections, score_tensors
from selfcal.training.objectives import supervised_loss
from selfcal.training.samples import for_validation
from selfcal.training.schedule import learning_rate

SIZE = "medium"
WORKING_POINTS = (0.60, 0.70, 0.77, 0.85)
BACKGROUNDS = ("light", "c")
REPLICAS = 200
Scores = NDArray[np.float64]


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
    samples = [read_jets(path, path.stem) for path in files]
    inputs = common_inputs(samples)
    chosen = [for_validation(jets, 0.5) for jets in samples]
    train = [jets.select(taken) for jets, taken in zip(samples, chosen, strict=True)]
    test = [jets.select(~taken) for jets, taken in zip(samples, chosen, strict=True)]
    test += [read_jets(path, path.stem) for path in held_out]
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
        history.append(float(loss.flavour.detach()))
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


def rejected(
    scores: Sequence[Scores], flavour: NDArray[np.int64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """ln of the rejections (trainings, working points, backgrounds)."""
    found = np.empty((len(scores), len(WORKING_POINTS), len(BACKGROUNDS)))
    for k, log_p in enumerate(scores):
        rows = rejections(discriminant_b(log_p), flavour, weight, WORKING_POINTS)
        found[k] = [[-np.log(row[name]["efficiency"]) for name in BACKGROUNDS] for row in rows]
    return found


def compare(ours: Sequence[Scores], salt: Sequence[Scores], contest: Contest) -> list[dict[str, Any]]:
    """Rejections (geometric means over trainings) and their ratio, per working point and background.

    ``jets_error`` is the relative error of the ratio from the number of test jets (paired bootstrap over
    events), ``trainings_error`` that from the number of trainings (standard error over seeds).
    """
    flavour = contest.test.flavour.numpy()
    _, number = np.unique(contest.event, return_inverse=True)
    ones = np.ones(len(flavour))
    a, b = rejected(ours, flavour, ones), rejected(salt, flavour, ones)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(REPLICAS):
        weight = generator.poisson(1.0, number.max() + 1)[number].astype(np.float64)
        kept = weight > 0
        mine, theirs = (
            rejected([log_p[kept] for log_p in scores], flavour[kept], weight[kept])
            for scores in (ours, salt)
        )
        drawn.append((mine - theirs).mean(axis=0))
    jets_error = np.std(drawn, axis=0, ddof=1)
    change = a - b
    seeds = len(change)
    trainings_error = (
        change.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.full(a.shape[1:], np.nan)
    )
    rows = []
    for i, point in enumerate(WORKING_POINTS):
        for j, name in enumerate(BACKGROUNDS):
            rows.append(
                {
                    "efficiency": point,
                    "background": name,
                    "ours": float(np.exp(a[:, i, j].mean())),
                    "salt": float(np.exp(b[:, i, j].mean())),
                    "ratio": float(np.exp(change[:, i, j].mean())),
                    "jets_error": float(jets_error[i, j]),
                    "trainings_error": float(trainings_error[i, j]),
                    "ratios": np.exp(change[:, i, j]).round(3).tolist(),
                }
            )
    return rows


def cross_entropy(scores: Sequence[Scores], flavour: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln p of the true flavour, mean over trainings, (N,)."""
    each: NDArray[np.float64] = np.mean(
        [-log_p[np.arange(len(flavour)), flavour] for log_p in scores], axis=0
    )
    return each


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"\n{title}\n  b eff.  against   ours    salt    ratio ± jets ± trainings   each training", flush=True
    )
    for row in rows:
        errors = f"± {row['jets_error']:.3f} ± {row['trainings_error']:.3f}"
        print(
            f"  {row['efficiency']:.2f}    {row['background']:<6}{row['ours']:>9.2f}{row['salt']:>8.2f}"
            f"{row['ratio']:>9.3f} {errors}      {row['ratios']}"
        )


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
        change = cross_entropy(found["ours"], flavour) - cross_entropy(found[losses], flavour)
        error = float(change.std() / np.sqrt(len(change)))
        rows = compare(found["ours"], found[losses], contest)
        show(f"{choices.steps} steps of {choices.batch} jets, salt with {losses} losses", rows)
        print(f"  cross entropy, ours - salt: {change.mean():+.4f} ± {error:.4f}", flush=True)
        summary[losses] = {"rejections": rows, "cross_entropy_change": [float(change.mean()), error]}
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
    main()
