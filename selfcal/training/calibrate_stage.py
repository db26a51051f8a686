"""The ``calibrate`` stage: joint training, scores of all datasets, then composition and maps.

Order (train fold first, then a fold that the tagger has not seen):

1. train fold: fractions and stiff maps with the tagger of stage 0 frozen;
2. train fold: joint training of tagger, maps and fractions;
3. all datasets are scored with the tagger, which is never changed again;
4. derive fold: fractions, densities, maps by likelihood, and bootstrap replicas of all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from selfcal.config.card import DataCard
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.jets import Jets
from selfcal.data.score_files import control_scores, join_datasets
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.errors import ConfigError
from selfcal.run.atomic import write_json
from selfcal.run.context import RunContext
from selfcal.run.metrics import append_metrics, drop_metrics
from selfcal.run.stages import canonical_digest, file_sha256
from selfcal.tagger.batching import TensorJets, join
from selfcal.tagger.bundle import TaggerBundle, load_bundle, save_bundle
from selfcal.training.joint import JointSample, train_jointly
from selfcal.training.samples import for_validation, jets_in_fold
from selfcal.training.scores_stage import score_datasets, scored
from selfcal.transport.calibration import Calibration, collect, save_calibration
from selfcal.transport.composition import CompositionPrior, fit_composition
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import derive, write_inputs
from selfcal.transport.sample import build_sample, simulated_fractions


FRACTION_UNCERTAINTY_MIN = 0.002
"""A flavour absent from the simulation of a region may still be there in data."""


def run_calibrate(context: RunContext) -> list[Path]:
    """Do all four steps; a killed stage continues where it was.

    Writes ``checkpoints/tagger_final/``, ``scores/<card>.safetensors``, ``results/map/``,
    ``results/composition.json`` and ``results/joint.json``.

    Raises
    ------
    ConfigError
        If a control region has simulation but no data, or the reverse.
    FitError
        If a fit does not converge.
    """
    torch.set_num_threads(1)
    regions = control_regions(context)
    bundle = load_bundle(context.directory.checkpoints / "tagger")
    written = []
    if context.config.calibration.joint.enabled:
        written += _joint_training(context, bundle, regions)
    final = context.directory.checkpoints / "tagger_final"
    written += save_bundle(bundle, final)
    written += score_datasets(context, bundle, context.directory.scores)
    calibration = _derive(context, regions)
    results = context.directory.results
    written += save_calibration(calibration, context.config.calibration.map, results / "map")
    write_json(results / "composition.json", composition_table(calibration))
    return [*written, results / "composition.json"]


def control_regions(context: RunContext) -> tuple[str, ...]:
    """Regions with both simulation and data, in the order of the cards."""
    simulated = dict.fromkeys(card.region for card in context.cards_for("simulation", "control"))
    observed = dict.fromkeys(card.region for card in context.cards_for("data", "control"))
    if unmatched := sorted(set(simulated) ^ set(observed)):
        raise ConfigError(
            f"control region(s) without both simulation and data: {', '.join(unmatched)}",
            where="data.cards",
            expected="one card or more of each role for every control region",
        )
    return tuple(simulated)


def composition_prior(
    context: RunContext, regions: tuple[str, ...], simulated: torch.Tensor
) -> CompositionPrior:
    """The cards' priors: central fractions renormalised to one, and their widths, (R, F)."""
    centre = simulated.clone()
    relative = torch.zeros_like(centre)
    for row, region in enumerate(regions):
        card = next(c for c in context.cards_for("data", "control") if c.region == region)
        assert card.composition is not None
        for column, name in enumerate(FLAVOURS):
            start = card.composition.fractions.get(name, float(simulated[row, column]))  # type: ignore[call-overload]
            centre[row, column] = max(start, 1e-4) * card.composition.scale.get(name, 1.0)  # type: ignore[call-overload]
            relative[row, column] = card.composition.relative_uncertainty
    centre = centre / centre.sum(1, keepdim=True)
    return CompositionPrior(centre, (relative * centre).clamp_min(FRACTION_UNCERTAINTY_MIN))


def _cards_of(context: RunContext, role: str, region: str) -> list[DataCard]:
    return [card for card in context.cards_for(role, "control") if card.region == region]


def _derive(context: RunContext, regions: tuple[str, ...]) -> Calibration:
    """Step 4, in a folder named by everything that decides its numbers."""
    config = context.config.calibration
    simulation, data = (
        {region: control_scores(context, role, region, (Fold.DERIVE,)) for region in regions}
        for role in ("simulation", "data")
    )
    frame = ScoreFrame.from_jets(concatenate(list(simulation.values())))
    sample, observed = build_sample(simulation, regions, frame), build_sample(data, regions, frame)
    prior = composition_prior(context, regions, simulated_fractions(sample, len(regions)))
    scratch = context.directory.checkpoints / "derivation"
    scratch.mkdir(parents=True, exist_ok=True)
    write_inputs(scratch, sample, observed, prior, config, context.config.seed)
    key = canonical_digest(
        [file_sha256(scratch / "inputs.safetensors"), config.model_dump(mode="json", exclude={"workers"})]
    )[:16]
    folder = scratch / key
    write_inputs(folder, sample, observed, prior, config, context.config.seed)
    tracker = context.progress("composition and maps", 2 * config.bootstraps + 3)
    derivation = derive(folder, config.workers, lambda done, total: tracker.update(done))
    return collect(derivation, regions, frame)


def composition_table(calibration: Calibration) -> dict[str, object]:
    """``composition.json``: prior, bulk fit and final fraction of every region and flavour."""
    rows = []
    for r, region in enumerate(calibration.regions):
        for f, flavour in enumerate(FLAVOURS):
            rows.append(
                {
                    "region": region,
                    "flavour": flavour,
                    "prior": float(calibration.prior.fractions[r, f]),
                    "prior_uncertainty": float(calibration.prior.uncertainty[r, f]),
                    "bulk": float(calibration.bulk_fractions[r, f]),
                    "fitted": float(calibration.fractions[r, f]),
                    "uncertainty": float(calibration.fraction_uncertainty[r, f]),
                    "truth": None,
                }
            )
    return {
        "regions": list(calibration.regions),
        "rows": rows,
        "condition_number": float(np.linalg.cond(calibration.fractions.numpy())),
    }


def _joint_training(context: RunContext, bundle: TaggerBundle, regions: tuple[str, ...]) -> list[Path]:
    """Steps 1 and 2: ``bundle.model`` is changed in place."""
    config = context.config
    tensors: dict[str, list[TensorJets]] = {"simulation": [], "data": [], "validation": []}
    scores: dict[str, dict[str, ScoredJets]] = {"simulation": {}, "data": {}}
    for region in regions:
        for role in ("simulation", "data"):
            parts: list[ScoredJets] = []
            for card in _cards_of(context, role, region):
                for jets in jets_in_fold(context, card, Fold.TRAIN):
                    kept = jets
                    if role == "simulation":
                        chosen = for_validation(jets, config.training.validation_fraction)
                        tensors["validation"].append(bundle.tensors(jets.select(chosen)))
                        kept = jets.select(~chosen)
                    tensors[role].append(bundle.tensors(kept))
                    parts.append(_scored(bundle, kept, region))
            scores[role][region] = join_datasets(parts)
    frame = ScoreFrame.from_jets(concatenate(list(scores["simulation"].values())))
    samples = {role: build_sample(scores[role], regions, frame) for role in scores}
    prior = composition_prior(context, regions, simulated_fractions(samples["simulation"], len(regions)))
    calibration = config.calibration
    start_tracker = context.progress("composition before joint training", calibration.composition.steps)
    start = fit_composition(
        samples["simulation"],
        samples["data"],
        prior,
        calibration.composition,
        calibration.map.displacement_scale,
        torch.Generator().manual_seed(config.seed),
        progress=start_tracker.update,
    )
    steps = calibration.joint.epochs * max(1, len(samples["simulation"]) // calibration.joint.batch_size)
    tracker = context.progress("joint training", steps)
    result = train_jointly(
        bundle.model,
        JointSample(join(tensors["simulation"]), samples["simulation"]),
        JointSample(join(tensors["data"]), samples["data"]),
        join(tensors["validation"]),
        frame,
        prior,
        start,
        calibration.joint,
        config.training,
        seed=config.seed,
        checkpoint=context.directory.checkpoints / "joint.safetensors",
        on_step=lambda done, total: tracker.update(done),
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
    fold = np.full(len(jets), Fold.TRAIN, dtype=np.int8)
    return scored(bundle, [jets], region, fold, labelled=jets.labelled)
