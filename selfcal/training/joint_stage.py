"""The joint part of the calibrate stage: jets of the train fold in, a changed tagger out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from selfcal.data.folds import Fold
from selfcal.data.jets import Jets
from selfcal.data.samples import Correction, for_validation, jets_in
from selfcal.data.score_files import join_datasets
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.run.atomic import write_json
from selfcal.run.context import RunContext
from selfcal.run.metrics import append_metrics, drop_metrics
from selfcal.tagger.batching import TensorJets, join
from selfcal.tagger.bundle import TaggerBundle
from selfcal.training.joint import JointInputs, JointSample, train_jointly
from selfcal.training.scores_stage import scored, scorer_of
from selfcal.training.varied_detector import remaining_detector, varied_tensors
from selfcal.transport.composition import fit_composition
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.control_regions import cards_of, composition_prior
from selfcal.transport.sample import build_sample, simulated_fractions


def run_joint_training(
    context: RunContext, bundle: TaggerBundle, regions: tuple[str, ...], correction: Correction | None = None
) -> list[Path]:
    """Change ``bundle.model`` in place and write ``results/joint.json``.

    First fractions and stiff maps with the tagger as it is, then all three together.
    """
    config = context.config
    tensors: dict[str, list[TensorJets]] = {"simulation": [], "data": [], "validation": []}
    simulated: list[Jets] = []
    validation_region: list[int] = []
    scores: dict[str, dict[str, ScoredJets]] = {"simulation": {}, "data": {}}
    for number, region in enumerate(regions):
        for role in ("simulation", "data"):
            parts: list[ScoredJets] = []
            for card in cards_of(context, role, region):
                for jets in jets_in(context, card, (Fold.TRAIN,), correction):
                    kept = jets
                    if role == "simulation":
                        chosen = for_validation(jets, config.training.validation_fraction)
                        tensors["validation"].append(bundle.tensors(jets.select(chosen)))
                        validation_region += [number] * int(chosen.sum())
                        kept = jets.select(~chosen)
                        simulated.append(kept)
                    tensors[role].append(bundle.tensors(kept))
                    parts.append(_scored(bundle, kept, region))
            scores[role][region] = join_datasets(parts)
    frame = ScoreFrame.from_jets(concatenate(list(scores["simulation"].values())))
    samples = {role: build_sample(scores[role], regions, frame) for role in scores}
    prior = composition_prior(context, regions, simulated_fractions(samples["simulation"], len(regions)))
    calibration = config.calibration_in_use
    start_tracker = context.progress("composition before joint training", calibration.composition.steps)
    start = fit_composition(
        samples["simulation"],
        samples["data"],
        prior,
        calibration.composition,
        torch.Generator().manual_seed(config.seed),
        progress=start_tracker.update,
    )
    steps = calibration.joint.epochs * max(1, len(samples["simulation"]) // calibration.joint.batch_size)
    tracker = context.progress("joint training", steps)
    varied = None
    if calibration.joint.vary_detector:
        detector = remaining_detector(context, simulated)
        varied = partial(varied_tensors, simulated, bundle.tensors, detector)
    result = train_jointly(
        JointInputs(
            tagger=bundle.model,
            simulation=JointSample(join(tensors["simulation"]), samples["simulation"]),
            data=JointSample(join(tensors["data"]), samples["data"]),
            validation=join(tensors["validation"]),
            validation_region=np.array(validation_region),
            frame=frame,
            prior=prior,
            start=start,
            config=calibration.joint,
            training=config.training,
            seed=config.seed,
            varied=varied,
        ),
        checkpoint=context.directory.checkpoints / "joint.safetensors",
        on_step=lambda done, _: tracker.update(done),
    )
    drop_metrics(context.directory.metrics, "joint")
    for row in result.history:
        append_metrics(context.directory.metrics, row)
    path = context.directory.results / "joint.json"
    write_json(
        path, {"epochs_kept": result.epochs_kept, "stopped": result.stopped, "history": result.history}
    )
    return [path]


def _scored(bundle: TaggerBundle, jets: Jets, region: str) -> ScoredJets:
    """Jets of the train fold, all of which are in it."""
    return scored(scorer_of(bundle), [jets], region, (1.0, 0.0, 0.0), labelled=jets.labelled)
