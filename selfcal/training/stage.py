"""The ``train`` stage: from the simulation of the control regions to a tagger and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.folds import Fold
from selfcal.data.jets import Jets
from selfcal.errors import ConfigError, DataError
from selfcal.run.atomic import write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.tagger.batching import TensorJets, join
from selfcal.tagger.bundle import TaggerBundle, build_tagger, save_bundle
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.working_points import roc_curve
from selfcal.training.evaluation import rejections, summary
from selfcal.training.loop import TrainingFiles, TrainingResult, train_tagger
from selfcal.training.processes import current_processes
from selfcal.training.samples import for_validation, jets_in_fold, training_fold
from selfcal.training.scoring import score_jets

TRAIN = "train"
"""What the first process announces to the others before it trains."""


def run_train(context: RunContext) -> list[Path]:
    """Train the tagger and measure it.

    Writes the bundle ``checkpoints/tagger/``, ``results/tagger_metrics.json`` (learning
    curve; rejections at the working points on the measure fold of the working-point
    region's simulation) and ``results/roc.safetensors`` (``<background>_signal``,
    ``_background``, ``_threshold``). Continues from ``checkpoints/training.safetensors``.

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
    bundle, train, validation = prepare_training(context)
    steps = config.training.epochs * -(-len(train) // config.training.batch_size)
    tracker = context.progress("training the tagger", steps)
    result = train_tagger(
        bundle.model,
        train,
        validation,
        config.training,
        seed=config.seed,
        files=_training_files(context),
        on_step=tracker.update,
    )
    tracker.update(steps)
    written = save_bundle(bundle, checkpoints / "tagger")
    return written + measure_tagger(context, bundle, result)


def assist_training(context: RunContext) -> None:
    """What every further process of ``torchrun`` does while the first does :func:`run_train`."""
    bundle, train, validation = prepare_training(context)
    config = context.config
    train_tagger(
        bundle.model, train, validation, config.training, seed=config.seed, files=_training_files(context)
    )


def _training_files(context: RunContext) -> TrainingFiles:
    return TrainingFiles(context.directory.checkpoints / "training.safetensors", context.directory.metrics)


def prepare_training(context: RunContext) -> tuple[TaggerBundle, TensorJets, TensorJets]:
    """A fresh tagger, its training jets and its validation jets.

    Inputs are those that all training files can provide; the normalisation is
    measured on the training jets alone.
    """
    config = context.config
    samples = [jets for jets in training_fold(context) if len(jets)]
    if not samples:
        raise DataError(
            "no simulated jets to train on",
            where="train fold of the cards with role: simulation, use: control",
            fix="provide more simulation, or enlarge data.simulation_folds[0]",
        )
    inputs = common_inputs(samples)
    chosen = [for_validation(jets, config.training.validation_fraction) for jets in samples]
    train = [jets.select(~taken) for jets, taken in zip(samples, chosen, strict=True)]
    validation = [jets.select(taken) for jets, taken in zip(samples, chosen, strict=True)]
    normalisation = Normalisation.measure([compute_features(jets, inputs) for jets in train])
    model = build_tagger(config.tagger, inputs, normalisation, config.seed)
    bundle = TaggerBundle(config.tagger, inputs, normalisation, model)
    return bundle, join([bundle.tensors(j) for j in train]), join([bundle.tensors(j) for j in validation])


def measure_tagger(context: RunContext, bundle: TaggerBundle, result: TrainingResult) -> list[Path]:
    """Write rejections and ROC curves of ``bundle``; returns the two files."""
    tagger, fit = context.config.tagger, context.config.fit
    parts = [_measured(jets, bundle, context) for jets in _working_point_samples(context)]
    log_probability, flavour, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    discriminant = discriminant_b(log_probability, tagger.charm_fraction, tagger.tau_fraction)
    metrics: dict[str, Any] = {
        "tagger": tagger.name,
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
        "inputs": {"track": bundle.inputs.track, "jet": bundle.inputs.jet},
        "best_epoch": result.best_epoch,
        "history": result.history,
        "region": fit.working_point_region,
        "jets": {name: int((flavour == k).sum()) for k, name in enumerate(FLAVOURS)},
        "summary": summary(discriminant, log_probability, flavour),
        "working_points": rejections(discriminant, flavour, weight, fit.working_points),
    }
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
    write_json(results / "tagger_metrics.json", metrics)
    write_arrays(results / "roc.safetensors", curves)
    return [results / "tagger_metrics.json", results / "roc.safetensors"]


def _require_working_point_region(context: RunContext) -> None:
    region = context.config.fit.working_point_region
    known = [card.region for card in context.cards_for(role="simulation", use="control")]
    if region not in known:
        raise ConfigError(
            f"no simulation of the working-point region '{region}'",
            where="fit.working_point_region",
            expected=f"one of {sorted(set(known))}",
        )


def _working_point_samples(context: RunContext) -> list[Jets]:
    region = context.config.fit.working_point_region
    cards = [card for card in context.cards_for("simulation", "control") if card.region == region]
    return [jets for card in cards for jets in jets_in_fold(context, card, Fold.MEASURE)]


def _measured(
    jets: Jets, bundle: TaggerBundle, context: RunContext
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    tracker = context.progress(f"scoring {jets.dataset}", len(jets))
    log_probability, _ = score_jets(bundle, jets, on_chunk=tracker.update)
    return log_probability, jets.flavour, jets.weight
