"""The simulated jets that teach and judge an efficiency map, with the working points that they pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.folds import UNTRAINED, Fold
from selfcal.data.reading import read_dataset
from selfcal.data.samples import in_use, wanted_of
from selfcal.data.score_files import NOMINAL, load_scores, scores_path
from selfcal.efficiency.event_jets import EventJets, joined, sorted_by_event
from selfcal.errors import DataError
from selfcal.run.context import RunContext
from selfcal.tagger.discriminants import discriminant_b
from selfcal.transport.calibration import Calibration, load_calibration


@dataclass(frozen=True)
class EfficiencySamples:
    """``learning`` teaches the networks; ``closure`` holds other events, by region, and whether held out.

    A held-out region teaches nothing, and all of it is in ``closure``.
    """

    learning: EventJets
    closure: dict[str, EventJets]
    held_out: dict[str, bool]


def read_samples(context: RunContext, discriminant_edges: Sequence[float]) -> EfficiencySamples:
    """Simulation that did not train the tagger: control regions and truth samples, and held-out regions.

    Where the map is applied (``simulation: calibrated``), only the measure fold of the control regions: the
    derive fold shaped the map, and truth samples are never corrected.

    Raises
    ------
    DataError
        If there is no such simulation, or its files do not say φ.
    """
    config = context.config.efficiency_map
    calibrated = config.simulation == "calibrated"
    calibration = load_calibration(context.directory.results / "map") if calibrated else None
    uses = {"control", "validation"} if calibrated else {"control", "truth", "validation"}
    cards = [card for card in context.cards_for("simulation") if card.use in uses]
    control = (Fold.MEASURE,) if calibrated else UNTRAINED
    size = sum(len(load_scores(scores_path(context, card), card.region)) for card in cards)
    rng = np.random.default_rng([context.config.seed, 1])
    learning: list[EventJets] = []
    closure: dict[str, list[EventJets]] = {}
    held_out: dict[str, bool] = {}
    for card in cards:
        folds = control if card.use == "control" else tuple(Fold)
        jets = card_events(context, card, folds, discriminant_edges, calibration)
        jets = jets.events(rng.random(jets.n_events) < config.jets_max / max(size, 1))
        held_out[card.region] = card.use == "validation"
        judged = rng.random(jets.n_events) < (1.0 if held_out[card.region] else config.closure_share)
        learning.append(jets.events(~judged))
        closure.setdefault(card.region, []).append(jets.events(judged))
    taught = joined(learning) if learning else None
    if taught is None or not len(taught):
        raise DataError(
            "no simulated jets to learn efficiencies from",
            where="efficiency_map",
            expected="simulation of the control regions in the folds that did not train the tagger",
        )
    return EfficiencySamples(taught, {region: joined(parts) for region, parts in closure.items()}, held_out)


def card_events(
    context: RunContext,
    card: DataCard,
    folds: Sequence[Fold],
    discriminant_edges: Sequence[float],
    calibration: Calibration | None,
) -> EventJets:
    """The jets of a card in ``folds``; ``calibration`` moves their scores, else they are the simulation's.

    Raises
    ------
    DataError
        If scores and files do not belong together, or the files do not say φ.
    """
    scored = load_scores(scores_path(context, card, None if calibration else NOMINAL), card.region)
    eta, phi = directions(context, card)
    if len(eta) != len(scored):
        raise DataError(
            f"{len(eta)} jets in the files for {len(scored)} scored jets",
            where=f"dataset '{card.name}'",
            fix="run 'selfcal calibrate' again: the scores are of other files",
        )
    if calibration is not None:
        scored = calibration.apply(scored, calibration.nominal)
    tagger = context.config.tagger
    discriminant = discriminant_b(scored.log_probability, tagger.charm_fraction, tagger.tau_fraction)
    chosen = np.isin(scored.fold, [int(fold) for fold in folds])
    return sorted_by_event(
        scored.pt_gev[chosen],
        eta[chosen],
        phi[chosen],
        scored.flavour[chosen],
        np.digitize(discriminant, discriminant_edges)[chosen],
        scored.weight[chosen],
        scored.event[chosen],
    )


def directions(context: RunContext, card: DataCard) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """η and φ (N,) of the jets in use, in the order of their scores.

    Raises
    ------
    DataError
        If the files do not say φ: nobody knows then which jets are neighbours.
    """
    eta, phi = [], []
    for jets in read_dataset(card, context.dataset_path(card), wanted_of(context, card, tracks=False)):
        if jets.phi is None:
            raise DataError(
                "the jets have no φ, which says what stands beside them",
                where=f"dataset '{card.name}'",
                expected="a field 'phi' of the jets",
                fix="name it in the data card (fields.phi); a generated dataset of an earlier version: "
                "delete its file and run 'selfcal generate' again",
            )
        chosen = in_use(jets, context.config.data)
        eta.append(jets.eta[chosen])
        phi.append(jets.phi[chosen])
    return np.concatenate(eta), np.concatenate(phi)
