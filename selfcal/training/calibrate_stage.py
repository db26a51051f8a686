"""The ``calibrate`` stage: joint training, scores of all datasets, then composition and maps.

Order (train fold first, then a fold that the tagger has not seen):

With ``tagger.kind: scores`` the first two are left out: the scores are in the files.

1. train fold: fractions and stiff maps with the tagger of stage 0 frozen;
2. train fold: joint training of tagger, maps and fractions;
3. all datasets are scored with the tagger, which is never changed again;
4. derive fold: fractions, densities, maps by likelihood, and bootstrap replicas of all.

Where the detector is inferred, the simulation of all of them is the corrected one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.samples import Correction, jets_in
from selfcal.data.score_files import control_scores, scores_of
from selfcal.data.scored import concatenate
from selfcal.run.atomic import write_arrays, write_json
from selfcal.run.context import RunContext
from selfcal.sbi.correction import load_correction
from selfcal.tagger.bundle import TaggerBundle, load_bundle, save_bundle
from selfcal.training.joint_stage import run_joint_training
from selfcal.training.roc_comparison import compare_rejections
from selfcal.training.scores_stage import Scorer, given_scores, score_datasets, scorer_of
from selfcal.transport.calibration import Calibration, collect, save_calibration
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.control_regions import cards_of, composition_prior, control_regions
from selfcal.transport.derivation import FOLDER, write_inputs
from selfcal.transport.derivation_tasks import derive, files_of, number_of_tasks
from selfcal.transport.optimality import displacement_table
from selfcal.transport.sample import build_sample, simulated_fractions
from selfcal.transport.support import QUANTILE, Support

REGION_DEPENDENCE_ALARM = 0.01
"""p-value below which differences between regions are warned of."""


def run_calibrate(context: RunContext) -> list[Path]:
    """Do all four steps; a killed stage continues where it was.

    Writes ``checkpoints/tagger_final/``, ``checkpoints/derivation/``, ``scores/<card>.safetensors``,
    ``results/map/``, ``results/composition_fitted.json``, ``results/displacement.json``,
    ``results/support.json``, ``results/identifiability.json``, ``results/region_dependence.json``,
    ``results/joint.json`` and ``results/roc_before_after.safetensors``.

    Raises
    ------
    ConfigError
        If a control region has simulation but no data, or the reverse.
    FitError
        If a fit does not converge.
    """
    torch.set_num_threads(1)
    regions = control_regions(context)
    results = context.directory.results
    written: list[Path] = []
    scorer: Scorer = given_scores
    correction, directions = load_correction(context)
    if context.config.tagger.kind != "scores":
        bundle, written = final_tagger(context, regions, correction)
        scorer = scorer_of(bundle)
    written += score_datasets(context, scorer, correction, directions)
    calibration, derived_files = derive_calibration(context, regions)
    # Pseudo-experiments fit them again: a run that takes this calibration over needs them, too.
    written += derived_files
    written += save_calibration(calibration, context.config.calibration_in_use.map, results / "map")
    write_json(results / "composition_fitted.json", composition_table(calibration))
    derived = [control_scores(context, "simulation", region, (Fold.DERIVE,)) for region in regions]
    displacement = displacement_table(
        calibration.nominal, calibration.frame, concatenate(derived), context.config.seed
    )
    write_json(results / "displacement.json", {"rows": displacement})
    written += write_support(context, calibration)
    names = ("composition_fitted.json", "displacement.json", "identifiability.json", "region_dependence.json")
    return [*written, *(results / name for name in names)]


def write_support(context: RunContext, calibration: Calibration) -> list[Path]:
    """``map/support.safetensors`` flags single jets; ``support.json`` counts the flagged ones."""
    folder, rows = context.directory.results, []
    regions = calibration.regions
    derived = {region: control_scores(context, "simulation", region, (Fold.DERIVE,)) for region in regions}
    sample = build_sample(derived, regions, calibration.frame)
    support = Support.of(sample, context.config.seed)
    for region in dict.fromkeys(card.region for card in context.cards_for("simulation")):
        cards = [
            c
            for c in context.cards_for("simulation")
            if c.region == region and c.use in ("control", "validation")
        ]
        if not cards:
            continue
        jets = scores_of(context, cards, (Fold.MEASURE,))
        if len(jets) < 2:
            continue
        beyond = support.beyond(build_sample({region: jets}, (region,), calibration.frame))
        rows += [
            {
                "region": region,
                "control": region in regions,
                "flavour": flavour,
                "jets": int((jets.flavour == index).sum()),
                "beyond": int(beyond[jets.flavour == index].sum()),
            }
            for index, flavour in enumerate(FLAVOURS)
        ]
    support.save(folder / "map" / "support.safetensors")
    write_json(folder / "support.json", {"expected_share": 1.0 - QUANTILE, "rows": rows})
    return [folder / "map" / "support.safetensors", folder / "support.json"]


def final_tagger(
    context: RunContext, regions: tuple[str, ...], correction: Correction | None
) -> tuple[TaggerBundle, list[Path]]:
    """Steps 1 and 2: the tagger that scores all datasets, and the files written."""
    before, bundle = (load_bundle(context.directory.checkpoints / "tagger") for _ in range(2))
    written: list[Path] = []
    if context.config.joint_training:
        written += run_joint_training(context, bundle, regions, correction)
        measure = [
            jets
            for region in regions
            for card in cards_of(context, "simulation", region)
            for jets in jets_in(context, card, (Fold.MEASURE,), correction)
        ]
        roc = context.directory.results / "roc_before_after.safetensors"
        write_arrays(roc, compare_rejections(before, bundle, measure, context.config.tagger))
        written.append(roc)
    return bundle, [*written, *save_bundle(bundle, context.directory.checkpoints / "tagger_final")]


def prepare_derivation(context: RunContext, regions: tuple[str, ...]) -> tuple[Path, ScoreFrame]:
    """The folder of step 4, named by everything that decides its numbers, and the frame of its scores."""
    config = context.config.calibration_in_use
    simulation, data = (
        {region: control_scores(context, role, region, (Fold.DERIVE,)) for region in regions}
        for role in ("simulation", "data")
    )
    frame = ScoreFrame.from_jets(concatenate(list(simulation.values())))
    sample, observed = build_sample(simulation, regions, frame), build_sample(data, regions, frame)
    prior = composition_prior(context, regions, simulated_fractions(sample, len(regions)))
    scratch = context.directory.checkpoints / FOLDER
    return write_inputs(scratch, sample, observed, prior, config, context.config.seed), frame


def derive_calibration(context: RunContext, regions: tuple[str, ...]) -> tuple[Calibration, list[Path]]:
    """Step 4, and the files of its tasks."""
    config = context.config.calibration_in_use
    folder, frame = prepare_derivation(context, regions)
    tracker = context.progress("composition and maps", number_of_tasks(config))
    derivation = derive(folder, config.workers, lambda done, _: tracker.update(done))
    calibration = collect(derivation, regions, frame)
    write_json(
        context.directory.results / "identifiability.json", derivation.identifiability().table(regions)
    )
    dependence = derivation.region_dependence()
    write_json(context.directory.results / "region_dependence.json", dependence.table(regions))
    if dependence.p_value < REGION_DEPENDENCE_ALARM:
        context.say(
            f"WARNING: flavours do not move alike in all control regions (p = {dependence.p_value:.1e}): "
            "see region_dependence.json, and do not use the map elsewhere without its uncertainty there"
        )
    for flavour in calibration.extrapolated:
        context.say(
            f"calibrate: no control region determines how {flavour} jets differ from data; they keep the "
            "simulation's scores, with the uncertainty of half the nearest flavour's shift (extrapolated)"
        )
    return calibration, files_of(derivation)


def composition_table(calibration: Calibration) -> dict[str, object]:
    """``composition_fitted.json``: prior, bulk fit and final fraction of every region and flavour."""
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
