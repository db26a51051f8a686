"""The ``train`` stage: from the simulation of the control regions to a tagger and its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.folds import Fold, event_hash
from selfcal.data.jets import Jets
from selfcal.data.samples import for_validation, jets_in, training_fold
from selfcal.errors import ConfigError, DataError
from selfcal.run.atomic import write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.tagger.batching import TensorJets, join
from selfcal.tagger.bundle import TaggerBundle, build_tagger, save_bundle
from selfcal.tagger.discriminants import discriminant_of
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.scoring import regressed_pt_gev, score_jets
from selfcal.tagger.working_points import roc_curve
from selfcal.training.evaluation import add_bootstrap_errors, rejections, summary
from selfcal.training.loop import TrainingFiles, TrainingResult, VariedJets, train_tagger
from selfcal.training.processes import current_processes
from selfcal.training.response import measure_response
from selfcal.training.speed import measure_speed
from selfcal.training.varied_detector import prior_detector, varied_tensors

TRAIN = "train"
"""What the first process announces to the others before it trains."""


def run_train(context: RunContext) -> list[Path]:
    """Train the tagger and measure it.

    Writes the bundle ``checkpoints/tagger/``; ``results/tagger_metrics.json``: learning curve,
    rejections at the working points on the measure fold of the working-point region's
    simulation, those of D_c and D_tau, and what the regression of pT gains, if there is one;
    ``results/roc.safetensors``: ``<background>_signal``, ``_background``, ``_threshold``;
    ``results/tagger_speed.json``. Continues from ``checkpoints/training.safetensors``.

    Raises
    ------
    ConfigError
        If no simulation describes the working-point region.
    DataError
        If the simulation cannot be used for training.
    FitError
        If the training diverges.
    """
    _require_working_point_region(context)
    current_processes().announce(TRAIN)
    config, checkpoints = context.config, context.directory.checkpoints
    prepared = prepare_training(context)
    epochs = config.training.contrastive_epochs + config.training.epochs
    steps = epochs * -(-len(prepared.train) // config.training.batch_size)
    tracker = context.progress("training the tagger", steps)
    result = train_tagger(
        prepared.bundle.model,
        prepared.train,
        prepared.validation,
        config.training,
        seed=config.training_seed,
        files=_training_files(context),
        on_step=tracker.update,
        varied=prepared.varied,
    )
    tracker.update(steps)
    written = save_bundle(prepared.bundle, checkpoints / "tagger")
    return written + measure_tagger(context, prepared.bundle, result)


def assist_training(context: RunContext) -> None:
    """What every further process of ``torchrun`` does while the first does :func:`run_train`."""
    prepared = prepare_training(context)
    config = context.config
    train_tagger(
        prepared.bundle.model,
        prepared.train,
        prepared.validation,
        config.training,
        seed=config.training_seed,
        files=_training_files(context),
        varied=prepared.varied,
    )


def _training_files(context: RunContext) -> TrainingFiles:
    return TrainingFiles(context.directory.checkpoints / "training.safetensors", context.directory.metrics)


@dataclass(frozen=True)
class Prepared:
    """A fresh tagger and its jets; ``varied`` are those of ``train`` in other detectors, if asked for."""

    bundle: TaggerBundle
    train: TensorJets
    validation: TensorJets
    varied: VariedJets | None


def prepare_training(context: RunContext) -> Prepared:
    """A fresh tagger, its training jets and its validation jets.

    Inputs are those that all training files can provide; the normalisation is
    measured on the training jets alone.

    Raises
    ------
    DataError
        If there are no jets to train on, or no true pT where it is to be learnt.
    """
    config = context.config
    samples = [jets for jets in training_fold(context) if len(jets)]
    if not samples:
        raise DataError(
            "no simulated jets to train on",
            where="train fold of the cards with role: simulation, use: control",
            fix="provide more simulation, or enlarge data.simulation_folds[0]",
        )
    if config.tagger.regress_pt and all(jets.truth_pt_gev is None for jets in samples):
        raise DataError(
            "no file gives the true pT of its jets, which tagger.regress_pt is to learn",
            where=", ".join(jets.dataset for jets in samples),
            expected="a field ptTruth, or the name of another one under fields.truth_pt of a data card",
            fix="set tagger.regress_pt to false",
        )
    inputs = common_inputs(samples)
    chosen = [for_validation(jets, config.training.validation_fraction) for jets in samples]
    train = [jets.select(~taken) for jets, taken in zip(samples, chosen, strict=True)]
    validation = [jets.select(taken) for jets, taken in zip(samples, chosen, strict=True)]
    normalisation = Normalisation.measure([compute_features(jets, inputs) for jets in train])
    model = build_tagger(config.tagger, inputs, normalisation, config.training_seed)
    bundle = TaggerBundle(config.tagger, inputs, normalisation, model)
    varied = None
    if config.training.sees_other_detectors:
        varied = partial(varied_tensors, train, bundle.tensors, prior_detector(train, config.training_seed))
    return Prepared(
        bundle,
        join([bundle.tensors(jets) for jets in train]),
        join([bundle.tensors(jets) for jets in validation]),
        varied,
    )


@dataclass(frozen=True)
class Measured:
    """N labelled jets with their scores: ln p (N, 4); flavour, weight and number of the event (N,).

    With a head for it also the momenta (3, N): pT, the regressed and the true one, NaN where that is unknown.
    """

    log_probability: NDArray[np.float64]
    flavour: NDArray[np.int8]
    weight: NDArray[np.float64]
    event: NDArray[np.int64]
    pt_gev: NDArray[np.float64] | None = None


def measure_tagger(context: RunContext, bundle: TaggerBundle, result: TrainingResult) -> list[Path]:
    """Write rejections, ROC curves and speed of ``bundle``; returns the three files."""
    tagger, fit = context.config.tagger, context.config.fit
    region = fit.working_point_region
    measured = _measured(context, bundle, region)
    flavour, weight = measured.flavour, measured.weight
    discriminant = discriminant_of("b", measured.log_probability, tagger)
    rows = _rejections(context, measured, "b", fit.working_points)
    metrics: dict[str, Any] = {
        "tagger": tagger.name,
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
        "inputs": {"track": bundle.inputs.track, "jet": bundle.inputs.jet},
        "best_by": context.config.training.best_by,
        "best_epoch": result.best_epoch,
        "history": result.history,
        "region": region,
        "jets": {name: int((flavour == k).sum()) for k, name in enumerate(FLAVOURS)},
        "summary": summary(discriminant, measured.log_probability, flavour),
        "working_points": rows,
        "table": _table(rows),
        "other_discriminants": {
            "c": _other_working_points(context, bundle, measured, "c", tagger.charm.working_points),
            "tau": _other_working_points(context, bundle, measured, "tau", tagger.tau.working_points),
        },
    }
    if measured.pt_gev is not None:
        pt_gev, regressed, true = measured.pt_gev
        metrics["response"] = measure_response(
            pt_gev, regressed, true, flavour, measured.event, seed=context.config.seed
        )
    curves: dict[str, np.ndarray[Any, Any]] = {}
    signal = flavour == B
    for k, name in enumerate(FLAVOURS):
        if k == B or not (flavour == k).any():
            continue
        other = flavour == k
        curve = roc_curve(discriminant[signal], discriminant[other], weight[signal], weight[other])
        curves |= {
            f"{name}_threshold": curve.threshold,
            f"{name}_signal": curve.signal,
            f"{name}_background": curve.background,
        }
    results = context.directory.results
    paths = [results / name for name in ("tagger_metrics.json", "roc.safetensors", "tagger_speed.json")]
    write_json(paths[0], metrics)
    write_arrays(paths[1], curves)
    write_json(paths[2], measure_speed(bundle, _samples(context, region), context.config.training))
    return paths


def _rejections(
    context: RunContext, measured: Measured, signal: str, working_points: tuple[float, ...]
) -> list[dict[str, Any]]:
    discriminant = discriminant_of(signal, measured.log_probability, context.config.tagger)
    jets = (discriminant, measured.flavour, measured.weight)
    index = FLAVOURS.index(signal)
    rows = rejections(*jets, working_points, index)
    add_bootstrap_errors(rows, *jets, measured.event, index, seed=context.config.seed)
    return rows


def _table(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """``<background>_<efficiency in %>`` and ``..._error``: the rejections under short names, for studies."""
    found: dict[str, float | None] = {}
    for row in rows:
        for name in FLAVOURS:
            if name in row and name != "b":
                label = f"{name}_{100 * row['working_point']:g}"
                found[label] = row[name]["rejection"]
                found[f"{label}_error"] = row[name]["rejection_bootstrap_error"]
    return found


def _other_working_points(
    context: RunContext,
    bundle: TaggerBundle,
    measured: Measured,
    signal: str,
    working_points: tuple[float, ...],
) -> dict[str, Any]:
    """Rejections of D_c or D_tau in the signal's own reference region, where that is simulated.

    Else in the working-point region, whose jets are ``measured``; no rows without jets of the signal.
    """
    fit = context.config.fit
    region = {**fit.reference_regions}.get("tau") if signal == "tau" else fit.working_point_region
    if region is None or region not in _simulated_regions(context):
        region = fit.working_point_region
    jets = measured if region == fit.working_point_region else _measured(context, bundle, region)
    present = bool((jets.flavour == FLAVOURS.index(signal)).any())
    rows = _rejections(context, jets, signal, working_points) if present else []
    return {"region": region, "working_points": rows}


def _simulated_regions(context: RunContext) -> set[str]:
    return {card.region for card in context.cards_for(role="simulation", use="control")}


def _require_working_point_region(context: RunContext) -> None:
    region = context.config.fit.working_point_region
    known = _simulated_regions(context)
    if region not in known:
        raise ConfigError(
            f"no simulation of the working-point region '{region}'",
            where="fit.working_point_region",
            expected=f"one of {sorted(known)}",
        )


def _samples(context: RunContext, region: str) -> list[Jets]:
    cards = [card for card in context.cards_for("simulation", "control") if card.region == region]
    return [jets for card in cards for jets in jets_in(context, card, (Fold.MEASURE,))]


def _measured(context: RunContext, bundle: TaggerBundle, region: str) -> Measured:
    scores, events, momenta, samples = [], [], [], _samples(context, region)
    for jets in samples:
        tracker = context.progress(f"scoring {jets.dataset}", len(jets))
        scores.append(score_jets(bundle, jets, on_chunk=tracker.update))
        if bundle.config.regress_pt:
            unknown = np.full(len(jets), np.nan)
            true = unknown if jets.truth_pt_gev is None else jets.truth_pt_gev
            momenta.append(np.stack([jets.pt_gev, regressed_pt_gev(jets, scores[-1]), true]))
        events.append(event_hash(jets.dataset, jets.run, jets.event).astype(np.int64))
    return Measured(
        np.concatenate([part.log_probability for part in scores]),
        np.concatenate([jets.flavour for jets in samples]),
        np.concatenate([jets.weight for jets in samples]),
        np.concatenate(events),
        np.concatenate(momenta, axis=1) if momenta else None,
    )
