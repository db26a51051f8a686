"""The options of the composition side by side, on pseudo-data of a run with a tagger: fractions and truth.

    python -m bench.composition_options RUN --out FOLDER --set calibration.map.steps=150 \\
        --prior low 0.75 1.3 --prior high 1.3 0.75 --option default --option separators

RUN has a tagger (``selfcal train``), and with ``inference.enabled`` a detector (``selfcal infer``). The jets
of the derive fold are scored once by the tagger alone, without joint training; then fractions and maps are
derived for every prior (factors of charm and light) and option, with the derivation's own tasks and seeds,
but without those that no fraction depends on. Densities are shared: they are the simulation's. What
is finished is kept in FOLDER, one file per prior and option.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.command_line import run_script
from selfcal.config.calibration import CalibrationConfig
from selfcal.config.loading import load_run
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.score_files import join_datasets
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import SilentReporter
from selfcal.sbi.correction import load_correction
from selfcal.study.closure import fraction_summary
from selfcal.study.execution import context_of
from selfcal.study.truth import true_flavours
from selfcal.tagger.bundle import load_bundle
from selfcal.training.scores_stage import score_card, scorer_of
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.control_regions import cards_of, composition_prior, control_regions
from selfcal.transport.derivation import LAYOUT, Derivation, write_inputs
from selfcal.transport.derivation_tasks import run_task
from selfcal.transport.sample import Sample, build_sample, simulated_fractions

SEPARATORS = ["displaced_tracks", "mirrored_tracks", "displaced_mass"]
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "separators": {"composition": {"separators": SEPARATORS}},
    "pt_spline": {"composition": {"pt_knots": 3}},
    "splines_only": {"map": {"displacement_on": "splines"}},
    "likelihood": {"composition": {"by": "likelihood"}},
    "together": {
        "composition": {"separators": SEPARATORS, "pt_knots": 3},
        "map": {"displacement_on": "splines"},
    },
}


def context_of_run(run: Path, assignments: Sequence[str]) -> RunContext:
    """A run with some values of its configuration changed; nothing is written."""
    loaded = load_run((str(RunDirectory(run).resolved_config),), tuple(assignments))
    return context_of(loaded, run, SilentReporter())


def scored_regions(context: RunContext) -> dict[str, dict[str, ScoredJets]]:
    """The control regions' jets of the derive fold by role and region, with separators."""
    scorer = scorer_of(load_bundle(context.directory.checkpoints / "tagger"))
    correction, _ = load_correction(context)

    def scored(role: str, region: str) -> ScoredJets:
        cards = cards_of(context, role, region)
        return join_datasets([score_card(context, scorer, c, correction, (Fold.DERIVE,)) for c in cards])

    regions = control_regions(context)
    return {role: {region: scored(role, region) for region in regions} for role in ("simulation", "data")}


def with_option(config: CalibrationConfig, option: str) -> CalibrationConfig:
    """``config`` with the keys of an option."""
    changed = {
        part: getattr(config, part).model_validate({**getattr(config, part).model_dump(), **keys})
        for part, keys in OPTIONS[option].items()
    }
    return config.model_copy(update=changed)


def derived_fractions(
    context: RunContext, samples: Mapping[str, Sample], option: str, scratch: Path, densities: Path
) -> Derivation:
    """A derivation as far as its fractions; ``densities`` is made, or taken over where it exists."""
    config = with_option(context.config.calibration_in_use, option)
    if not config.composition.separators:
        samples = {role: replace(sample, separators=None) for role, sample in samples.items()}
    simulation, data = samples["simulation"], samples["data"]
    count = int(simulation.region.max()) + 1
    prior = composition_prior(context, control_regions(context), simulated_fractions(simulation, count))
    folder = write_inputs(scratch, simulation, data, prior, config, context.config.seed)
    replicas = range(config.bootstraps)
    if densities.exists():
        shutil.copy2(densities, folder / "densities.safetensors")
    before = ["composition", "densities", "identifiability", *(f"bulk-{i}" for i in replicas)]
    for task in (*before, "mixture", *(f"replica-{i}" for i in replicas)):
        if not (folder / f"{task}.safetensors").exists():
            run_task(folder, task)
    if not densities.exists():
        shutil.copy2(folder / "densities.safetensors", densities)
    return Derivation.open(folder)


def table(context: RunContext, derivation: Derivation) -> dict[str, Any]:
    """Fractions with their uncertainties beside the true ones, and how far off they are."""
    rows = []
    fitted, sigma = derivation.mixture().fractions, derivation.final_uncertainty()
    bulk = derivation.composition().fractions
    for r, region in enumerate(control_regions(context)):
        labels = [true_flavours(context, card) for card in cards_of(context, "data", region)]
        derived = np.concatenate([flavour[fold == Fold.DERIVE] for flavour, fold in labels])
        total = np.bincount(derived, minlength=len(FLAVOURS))
        for f, flavour in enumerate(FLAVOURS):
            rows.append(
                {
                    "region": region,
                    "flavour": flavour,
                    "prior": float(derivation.prior.fractions[r, f]),
                    "bulk": float(bulk[r, f]),
                    "fitted": float(fitted[r, f]),
                    "uncertainty": float(sigma[r, f]),
                    "truth": float(total[f] / total.sum()),
                }
            )
    return {"summary": fraction_summary(rows), "rows": rows}


def main() -> None:
    """Read the command line, fit, print one line per prior and option."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--prior", nargs=3, action="append", required=True, metavar=("NAME", "C", "LIGHT"))
    parser.add_argument("--option", action="append", required=True, choices=sorted(OPTIONS))
    arguments = parser.parse_args()
    names = json.dumps(SEPARATORS)
    base = [*arguments.assignments, f"calibration.composition.separators={names}"]
    samples: dict[str, Sample] = {}
    for name, charm, light in arguments.prior:
        scale = json.dumps({"c": float(charm), "light": float(light)})
        changed = [*arguments.assignments, f"data.changes.data_*.composition.scale={scale}"]
        for option in arguments.option:
            target = arguments.out / f"{name}-{option}.json"
            if not target.exists():
                context = context_of_run(arguments.run, changed)
                if not samples:
                    jets = scored_regions(context_of_run(arguments.run, base))
                    frame = ScoreFrame.from_jets(concatenate(list(jets["simulation"].values())))
                    regions = control_regions(context)
                    samples = {role: build_sample(parts, regions, frame) for role, parts in jets.items()}
                scratch = arguments.out / "scratch"
                densities = arguments.out / f"densities-{LAYOUT}.safetensors"
                derivation = derived_fractions(context, samples, option, scratch, densities)
                write_json(target, table(context, derivation))
            found = read_json(target)["summary"]
            print(
                f"{name:8s} {option:14s} within 1.5 sigma {found['within_1_5_sigma']:.2f} of "
                f"{found['fractions']}, largest pull {found['largest_pull']:.2f}, largest sigma/fraction "
                f"of a main flavour {found['main_relative_uncertainty']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    run_script(main)
