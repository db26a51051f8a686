"""Families of calibration maps and classic references side by side, on pseudo-data with known truth.

``results/evaluation/<name>.json`` holds the measures of one of them and is kept as long as nothing that
decides its numbers has changed; ``results/evaluation.json`` holds all. Maps of families other than the
one in use are derived in ``checkpoints/evaluation/``, without the truth, from the same scores, fractions,
densities and seed. Nothing here goes back into any fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

import selfcal
from selfcal.config.card import DataCard
from selfcal.config.evaluation import Reference
from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.folds import UNTRAINED, Fold
from selfcal.data.score_files import NOMINAL, control_scores, scores_of, scores_path, within_abs_eta
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.errors import DataError
from selfcal.likelihood.build import working_point_binning
from selfcal.likelihood.templates import Binning
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest, file_sha256
from selfcal.study.closure_rows import discriminant_of
from selfcal.study.evaluation_measures import (
    FlavourJets,
    efficiency_measures,
    histogram_chi2,
    null_measures,
    rejection_measures,
    separations,
    wasserstein,
)
from selfcal.study.evaluation_summary import summarise
from selfcal.study.reference_maps import Transported, apply_reference, learn_reference
from selfcal.study.truth import best_truth, has_truth, true_jets
from selfcal.training.calibrate_stage import prepare_derivation
from selfcal.transport.calibration import Calibration, load_calibration
from selfcal.transport.choice import family_of
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.control_regions import cards_of
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import derive
from selfcal.transport.families import derive_families
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.optimality import displacement_table

JETS_MIN = 200
"""Flavours with fewer true jets or fewer simulated ones in a region are not compared."""

Apply = Callable[[ScoredJets], ScoredJets]


@dataclass(frozen=True)
class Candidate:
    """One calibration to be judged: what it makes of simulated jets, and its replicas.

    ``variant`` is the simulation that it starts from (None: the one that the map is fitted on).
    """

    name: str
    kind: str
    apply: Apply
    replicas: tuple[Apply, ...] = ()
    in_use: bool = False
    variant: str | None = None
    maps: FlavourMaps | None = None


@dataclass(frozen=True)
class RegionJets:
    """What one region is compared with: data with true flavours, simulation nominal and to be moved."""

    region: str
    held_out: bool
    data: ScoredJets
    nominal: ScoredJets
    simulation: ScoredJets


def run_evaluation(context: RunContext) -> dict[str, Any]:
    """Derive, measure and summarise; returns the content of ``results/evaluation.json``.

    Raises
    ------
    DataError
        If the true flavours of no region's data are known.
    FitError
        If the map of a family does not converge.
    """
    torch.set_num_threads(1)
    if not all(has_truth(context, card) for card in context.cards_for("data", "control")):
        raise DataError(
            "maps can only be judged where the true flavours of the control regions' data are known",
            where=str(context.directory.path),
            expected="pseudo-data with closure truth",
            fix="leave out --evaluate: closure of real data is seen in the fit alone",
        )
    calibration = load_calibration(context.directory.results / "map")
    folder, frame = prepare_derivation(context, calibration.regions)
    derivation = derive(folder, context.config.calibration.workers, lambda done, total: None)
    candidates = [
        *family_candidates(context, calibration, derivation),
        *reference_candidates(context, calibration),
    ]
    binning = _binning(context)
    regions = list(_regions(context, calibration))
    common = _common_facts(context, derivation)
    null = _kept(context, "null", common, lambda: _null(context, regions, binning, frame))
    tracker = context.progress("maps side by side", len(candidates))
    files = []
    for number, candidate in enumerate(candidates, start=1):
        measure = partial(_measure, context, candidate, calibration, regions, binning)
        facts = {**common, "kind": candidate.kind, "in_use": candidate.in_use}
        files.append(_kept(context, candidate.name, facts, measure))
        tracker.update(number)
    content = {
        "seed": context.config.seed,
        "working_points": list(binning.working_points),
        "reference_regions": dict(context.config.fit.reference_regions),
        "null": null["rows"],
        "candidates": [{key: value for key, value in one.items() if key != "facts"} for one in files],
    }
    content["summary"] = summarise(content)
    write_json(context.directory.results / "evaluation.json", content)
    return content


def family_candidates(
    context: RunContext, calibration: Calibration, derivation: Derivation
) -> list[Candidate]:
    """The map in use, and those of the other families; the simulation as it is where that is another one."""
    config = context.config.evaluation
    in_use = family_of(derivation.config.map)

    def candidate(name: str, maps: FlavourMaps, replicas: Sequence[FlavourMaps], used: bool) -> Candidate:
        applied = [partial(calibration.apply, maps=one) for one in (maps, *replicas)]
        return Candidate(name, "family", applied[0], tuple(applied[1:]), used, maps=maps)

    wanted = [name for name in config.families if name != in_use]
    tasks = derivation.config.bootstraps + 1 + min(config.replicas, derivation.config.bootstraps)
    tracker = context.progress("maps of other families", len(wanted) * tasks)
    scratch = context.directory.checkpoints / "evaluation"
    derived = derive_families(
        derivation, scratch, wanted, config.replicas, config.workers, lambda done, _: tracker.update(done)
    )
    found = [candidate(in_use or "in_use", calibration.nominal, calibration.replicas, used=True)]
    for name, family in derived.items():
        count = min(config.replicas, derivation.config.bootstraps)
        replicas = [family.mixture(f"replica-{index}").maps for index in range(count)]
        found.append(candidate(name, family.mixture().maps, replicas, used=False))
    order = [*config.families]
    found.sort(key=lambda one: order.index(one.name) if one.name in order else -1)
    if context.config.inference.enabled:
        found.insert(0, Candidate("uncalibrated", "simulation", lambda jets: jets, variant=NOMINAL))
    return found


def reference_candidates(context: RunContext, calibration: Calibration) -> list[Candidate]:
    """References learnt on the derive fold of every flavour's reference region, with its truth."""
    config, binning = context.config, _binning(context)
    of_flavour = partial(_flavour_jets, context, binning, calibration.frame)

    @cache
    def samples() -> dict[int, tuple[FlavourJets, FlavourJets]]:
        found = {}
        for flavour, region in config.fit.reference_regions.items():
            index = FLAVOURS.index(flavour)
            data = of_flavour(true_jets(context, cards_of(context, "data", region), (Fold.DERIVE,)), index)
            simulation = of_flavour(control_scores(context, "simulation", region, (Fold.DERIVE,)), index)
            if min(len(data), len(simulation)) >= JETS_MIN:
                found[index] = (simulation, data)
        return found

    @cache
    def learnt(name: Reference) -> dict[int, Transported]:
        return {
            index: learn_reference(name, *pair, config.evaluation, config.seed)
            for index, pair in samples().items()
        }

    def apply(name: Reference, jets: ScoredJets) -> ScoredJets:
        return apply_reference(jets, learnt(name), of_flavour, calibration.frame)

    return [Candidate(name, "reference", partial(apply, name)) for name in config.evaluation.references]


def _flavour_jets(
    context: RunContext, binning: Binning, frame: ScoreFrame, jets: ScoredJets, flavour: int
) -> FlavourJets:
    return FlavourJets.of(jets, flavour, frame, binning, discriminant_of(context, jets))


def _binning(context: RunContext) -> Binning:
    """The bins that the fit uses."""
    fit = context.config.fit
    jets = control_scores(context, "simulation", fit.working_point_region, UNTRAINED, NOMINAL)
    return working_point_binning(within_abs_eta(jets, fit.abs_eta_edges), fit, context.config.tagger)


def _regions(context: RunContext, calibration: Calibration) -> Iterator[RegionJets]:
    """Regions with truth: control regions without the jets that shaped the maps, held-out ones whole."""
    edges = context.config.fit.abs_eta_edges
    for region in dict.fromkeys(card.region for card in context.cards_for("simulation")):
        held_out = region not in calibration.regions
        folds = tuple(Fold) if held_out else (Fold.MEASURE,)
        data = best_truth(context, region, control_folds=(Fold.MEASURE,))
        cards = [c for c in context.cards_for("simulation") if c.region == region and c.use != "truth"]
        if data is None or not cards:
            continue
        nominal, simulation = (
            within_abs_eta(scores_of(context, cards, folds, variant), edges) for variant in (NOMINAL, None)
        )
        yield RegionJets(region, held_out, data, nominal, simulation)


def _common_facts(context: RunContext, derivation: Derivation) -> dict[str, Any]:
    """What decides the numbers of every candidate."""

    def digests(card: DataCard) -> list[str]:
        paths = {scores_path(context, card), scores_path(context, card, NOMINAL)}
        return [file_sha256(path) for path in sorted(paths)]

    config = context.config
    excluded = {"families", "references", "workers"}
    return {
        "version": selfcal.__version__,
        "seed": config.seed,
        "derivation": derivation.folder.name,
        "scores": {card.name: digests(card) for card in context.cards},
        "fit": config.fit.model_dump(
            mode="json",
            include={
                "working_points", "working_point_region", "pt_gev_edges", "abs_eta_edges", "reference_regions"
            },
        ),
        "evaluation": config.evaluation.model_dump(mode="json", exclude=excluded),
    }  # fmt: skip


def _kept(
    context: RunContext, name: str, facts: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The content of ``evaluation/<name>.json``, measured anew if it is of other ``facts``."""
    path = context.directory.results / "evaluation" / f"{name}.json"
    digest = canonical_digest(facts)
    if path.exists():
        try:
            content: dict[str, Any] = read_json(path)
            if content["facts"] == digest:
                return content
        except (DataError, KeyError):
            context.say(f"evaluation: {path.name} is damaged and made again")
    content = {"facts": digest, "name": name, **measure()}
    write_json(path, content)
    return content


def _compared(jets: RegionJets, flavour: int) -> bool:
    return all(int((part.flavour == flavour).sum()) >= JETS_MIN for part in (jets.data, jets.simulation))


def _classifier_jets(context: RunContext, jets: RegionJets, flavour: int) -> int:
    """As many of data as of simulation, and half the simulation at most, so that the null has as many."""
    counts = [int((part.flavour == flavour).sum()) for part in (jets.data, jets.simulation)]
    return min(context.config.evaluation.classifier_jets, counts[0], counts[1] // 2)


def _seed(context: RunContext, region: str, flavour: int) -> list[int]:
    return [context.config.seed, flavour, *region.encode()]


def _null(
    context: RunContext, regions: Sequence[RegionJets], binning: Binning, frame: ScoreFrame
) -> dict[str, Any]:
    rows = []
    for jets in regions:
        for index, flavour in enumerate(FLAVOURS):
            if not _compared(jets, index):
                continue
            simulation = _flavour_jets(context, binning, frame, jets.simulation, index)
            count = _classifier_jets(context, jets, index)
            repeats = context.config.evaluation.classifier_repeats
            measured = null_measures(simulation, count, repeats, _seed(context, jets.region, index))
            rows.append({"region": jets.region, "flavour": flavour, **measured})
    return {"rows": rows}


def _measure(
    context: RunContext,
    candidate: Candidate,
    calibration: Calibration,
    regions: Sequence[RegionJets],
    binning: Binning,
) -> dict[str, Any]:
    """Everything about one candidate, in every region and flavour."""
    begin = time.perf_counter()
    rows = []
    for jets in regions:
        rows += _region_rows(context, candidate, calibration.frame, jets, binning)
    moved = None
    if candidate.maps is not None:
        derived = [control_scores(context, "simulation", r, (Fold.DERIVE,)) for r in calibration.regions]
        moved = displacement_table(
            candidate.maps, calibration.frame, concatenate(derived), context.config.seed
        )
    return {
        "kind": candidate.kind,
        "in_use": candidate.in_use,
        "rows": rows,
        "displacement": moved,
        "seconds": time.perf_counter() - begin,
    }


def _region_rows(
    context: RunContext, candidate: Candidate, frame: ScoreFrame, jets: RegionJets, binning: Binning
) -> list[dict[str, Any]]:
    config = context.config.evaluation
    start = jets.nominal if candidate.variant == NOMINAL else jets.simulation
    samples = (jets.data, jets.nominal, candidate.apply(start), *(one(start) for one in candidate.replicas))
    compared = [index for index in range(len(FLAVOURS)) if _compared(jets, index)]
    of_flavour = {
        index: [_flavour_jets(context, binning, frame, part, index) for part in samples] for index in compared
    }
    factors = {}
    for index in compared:
        # The same resampling for every candidate: their differences are known better than themselves.
        random = np.random.default_rng(_seed(context, jets.region, index))
        data, simulation = (of_flavour[index][place].bootstrap(config.bootstraps, random) for place in (0, 2))
        factors[index] = (data, simulation)
    rows = []
    for index in compared:
        observed, _, moved, *replicas = of_flavour[index]
        weighted = moved.like(observed)
        chi2, ndf = histogram_chi2(observed, moved, binning)
        w1 = wasserstein(observed, weighted, *factors[index])
        count, repeats = _classifier_jets(context, jets, index), config.classifier_repeats
        areas = separations(observed, weighted, count, repeats, [*_seed(context, jets.region, index), 4])
        row: dict[str, Any] = {
            "region": jets.region,
            "held_out": jets.held_out,
            "flavour": FLAVOURS[index],
            "jets_data": len(observed),
            "jets_simulation": len(moved),
            **efficiency_measures(observed, moved, replicas, factors[index], binning),
            "auc": float(areas.mean()),
            "auc_spread": float(areas.std(ddof=1)),
            "chi2": chi2,
            "ndf": ndf,
            "w1": w1[0].tolist(),
            "w1_error": w1[1:].std(axis=0, ddof=1).tolist(),
            "rejection": [],
        }
        if index != B and B in compared:
            row["rejection"] = rejection_measures(
                of_flavour[B][:3],
                of_flavour[index][:3],
                [(factors[B][place], factors[index][place]) for place in (0, 1, 1)],
                binning.working_points,
            )
        rows.append(row)
    return rows
