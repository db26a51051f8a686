"""Efficiencies per region, flavour and working point: data beside simulation, before and after the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import UNTRAINED, Fold
from selfcal.data.score_files import NOMINAL, detector_variants, scores_of, within_abs_eta
from selfcal.data.scored import ScoredJets
from selfcal.likelihood.templates import Binning
from selfcal.run.context import RunContext
from selfcal.study.closure_rule import judged
from selfcal.study.passing_shares import PassingShares
from selfcal.study.truth import best_truth
from selfcal.tagger.discriminants import discriminant_b
from selfcal.transport.calibration import Calibration

FAILURE_SIGMA = 3.0
"""A closure ratio farther than this from one, in its own uncertainty, is a failure of the calibration."""

JETS_MIN = 100
"""Flavours with fewer true jets in a region get no closure row."""


def discriminant_of(context: RunContext, jets: ScoredJets) -> NDArray[np.float64]:
    """D_b with the fractions of the run's tagger, (N,)."""
    tagger = context.config.tagger
    return discriminant_b(jets.log_probability, tagger.charm_fraction, tagger.tau_fraction)


def closure_table(context: RunContext, calibration: Calibration, binning: Binning) -> dict[str, Any]:
    """Efficiencies of every region, flavour and working point: data, simulation, calibrated simulation.

    Control regions use the simulation that did not train the tagger; held-out regions all of it. The map's
    uncertainty is the spread of its bootstrap replicas in quadrature with that of its seeds and with the
    difference to the stiff map; in a held-out region also with ``extrapolation``, how much regions may
    differ. Where the detector is inferred, ``corrected`` is the simulation with it and without map, and the
    uncertainty of its posterior is added to that of the map.
    """
    rows: list[dict[str, Any]] = []
    regions = dict.fromkeys(card.region for card in context.cards_for("simulation"))
    inferred = context.config.inference.enabled
    for region in regions:
        data = best_truth(context, region)
        if data is None:
            continue
        held_out = region not in calibration.regions
        cards = [
            c
            for c in context.cards_for("simulation")
            if c.region == region and c.use in ("control", "validation")
        ]
        if not cards:
            continue
        folds = tuple(Fold) if held_out else UNTRAINED
        nominal, simulation = (_simulated(context, cards, folds, variant) for variant in (NOMINAL, None))
        detector = detector_uncertainty(context, calibration, cards, binning)
        discriminant = partial(discriminant_of, context)
        of_region = region_rows(
            data, nominal, simulation, calibration, binning, discriminant, detector, held_out=held_out
        )
        for row in of_region:
            if not inferred:
                row |= {"efficiency_corrected": None, "ratio_corrected": None}
            rows.append({"region": region, "held_out": held_out, **row})
    summary = {**_summary(rows), "rule": judged(rows, context.config.closure)}
    return {"rows": rows, "summary": summary, "failures": failures(rows)}


def region_rows(
    data: ScoredJets,
    nominal: ScoredJets,
    simulation: ScoredJets,
    calibration: Calibration,
    binning: Binning,
    discriminant: Callable[[ScoredJets], NDArray[np.float64]],
    detector: NDArray[np.float64],
    *,
    held_out: bool = False,
) -> list[dict[str, Any]]:
    """Efficiencies of labelled ``data``, ``nominal``, and ``simulation`` without and with the map.

    ``detector`` (F, S) is the relative uncertainty of each efficiency beside the map's own.
    """
    rows: list[dict[str, Any]] = []
    moved = calibration.apply(simulation, calibration.nominal)
    stiff = calibration.apply(simulation, calibration.stiff)
    replicas = [calibration.apply(simulation, maps) for maps in calibration.replicas]
    seeds = [calibration.apply(simulation, maps) for maps in calibration.seeds]
    d_data, d_nominal, d_sim, d_moved, d_stiff, *d_varied = (
        discriminant(jets) for jets in (data, nominal, simulation, moved, stiff, *replicas, *seeds)
    )
    elsewhere = extrapolation(moved, calibration, binning, discriminant, held_out=held_out)
    for index, flavour in enumerate(FLAVOURS):
        of_data, of_sim = data.flavour == index, simulation.flavour == index
        if of_data.sum() < JETS_MIN or of_sim.sum() < JETS_MIN:
            continue
        w_data, w_sim = data.weight[of_data], simulation.weight[of_sim]
        true = PassingShares.of(d_data[of_data], w_data, binning.discriminant_edges)
        # A simulation that was made anew need not have the jets of the nominal one.
        of_nominal = nominal.flavour == index
        before = PassingShares.of(
            d_nominal[of_nominal], nominal.weight[of_nominal], binning.discriminant_edges
        )
        corrected, after, other, *varied = (
            PassingShares.of(d[of_sim], w_sim, binning.discriminant_edges)
            for d in (d_sim, d_moved, d_stiff, *d_varied)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(np.diag(true.ratio_covariance(after)))
            ratio = true.value / after.value
            of_replicas = np.stack([true.value / one.value for one in varied[: len(replicas)]])
            # Seeds have the nominal fit among them: all are draws of the same.
            of_seeds = np.stack([ratio, *(true.value / one.value for one in varied[len(replicas) :])])
            parts = (
                of_replicas.std(axis=0, ddof=1),
                of_seeds.std(axis=0, ddof=1) if len(of_seeds) > 1 else np.zeros_like(ratio),
                true.value / other.value - ratio,
                ratio * detector[index],
                ratio * elsewhere[index],
            )
            spread = np.sqrt(sum(part**2 for part in parts))
            without_map = true.value / corrected.value
        for slot, point in enumerate(binning.working_points):
            if min(before.value[slot], after.value[slot], true.value[slot]) <= 0:
                continue
            rows.append(
                {
                    "flavour": flavour,
                    "working_point": point,
                    "efficiency_data": float(true.value[slot]),
                    "efficiency_simulation": float(before.value[slot]),
                    "efficiency_corrected": float(corrected.value[slot]),
                    "efficiency_calibrated": float(after.value[slot]),
                    "ratio_uncalibrated": float(true.value[slot] / before.value[slot]),
                    "ratio_corrected": _or_none(without_map[slot]),
                    "ratio_calibrated": float(true.value[slot] / after.value[slot]),
                    "error": float(error[slot]),
                    "map_uncertainty": _or_none(spread[slot]),
                    "extrapolation": float(ratio[slot] * elsewhere[index, slot]),
                }
            )
    return rows


def extrapolation(
    moved: ScoredJets,
    calibration: Calibration,
    binning: Binning,
    discriminant: Callable[[ScoredJets], NDArray[np.float64]],
    *,
    held_out: bool,
) -> NDArray[np.float64]:
    """Relative uncertainty of the efficiencies because regions differ, (F, S); zero in control regions.

    sqrt(Σ_d (ε₊ - ε₋)² / 4) / ε over the coordinates d, ``moved`` shifted by ``Calibration.region_scale``.
    """
    total = np.zeros((len(FLAVOURS), len(binning.working_points)))
    if not held_out:
        return total
    edges = binning.discriminant_edges
    shifted = [tuple(discriminant(jets) for jets in pair) for pair in calibration.elsewhere(moved)]
    centre = discriminant(moved)
    for index in range(len(FLAVOURS)):
        own = moved.flavour == index
        if not own.any():
            continue
        weight = moved.weight[own]
        middle = PassingShares.of(centre[own], weight, edges).value
        for above, below in shifted:
            up, down = (PassingShares.of(d[own], weight, edges).value for d in (above, below))
            change = np.divide(up - down, 2.0 * middle, out=np.zeros_like(middle), where=middle > 0)
            total[index] = np.hypot(total[index], change)
    return total


def failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the calibration's own uncertainty does not explain: |ratio - 1| > ``FAILURE_SIGMA`` σ.

    σ is the statistical error in quadrature with the map's uncertainty. Each flavour counts for itself:
    a mixture can close while its flavours do not.
    """
    found = []
    for row in rows:
        sigma = float(np.hypot(row["error"], row["map_uncertainty"] or 0.0))
        if abs(row["ratio_calibrated"] - 1.0) > FAILURE_SIGMA * sigma:
            place = {key: row[key] for key in ("region", "flavour", "working_point", "ratio_calibrated")}
            found.append({**place, "pull": float((row["ratio_calibrated"] - 1.0) / sigma)})
    return found


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _simulated(
    context: RunContext, cards: Sequence[DataCard], folds: Sequence[Fold], variant: str | None
) -> ScoredJets:
    return within_abs_eta(scores_of(context, cards, folds, variant), context.config.fit.abs_eta_edges)


def detector_uncertainty(
    context: RunContext, calibration: Calibration, cards: Sequence[DataCard], binning: Binning
) -> NDArray[np.float64]:
    """Relative uncertainty of each flavour's efficiency at each working point by the detector, (F, S).

    sqrt(Σ_j (ε_j/ε - 1)²) over the directions of the posterior, with the calibration map on top.
    """
    total = np.zeros((len(FLAVOURS), len(binning.working_points)))
    variants = detector_variants(context)
    if not variants:
        return total
    central, *varied = (
        calibration.apply(_simulated(context, cards, UNTRAINED, variant), calibration.nominal)
        for variant in (None, *variants)
    )
    for index in range(len(FLAVOURS)):
        if not (central.flavour == index).any():
            continue
        start, *moved = (
            PassingShares.of(
                discriminant_of(context, jets)[jets.flavour == index],
                jets.weight[jets.flavour == index],
                binning.discriminant_edges,
            ).value
            for jets in (central, *varied)
        )
        for other in moved:
            ratio = np.divide(other, start, out=np.ones_like(start), where=start > 0)
            total[index] = np.hypot(total[index], ratio - 1)
    return total


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per flavour, over held-out rows: mean |ratio - 1| before and after, and how many rows are within 2σ."""
    summary = {}
    for flavour in FLAVOURS:
        chosen = [row for row in rows if row["flavour"] == flavour and row["held_out"]]
        if not chosen:
            continue
        total = [float(np.hypot(row["error"], row["map_uncertainty"] or 0.0)) for row in chosen]
        summary[flavour] = {
            "rows": len(chosen),
            "mean_deviation_uncalibrated": float(np.mean([abs(r["ratio_uncalibrated"] - 1) for r in chosen])),
            "mean_deviation_calibrated": float(np.mean([abs(r["ratio_calibrated"] - 1) for r in chosen])),
            "within_two_sigma": sum(
                abs(row["ratio_calibrated"] - 1) <= 2 * sigma
                for row, sigma in zip(chosen, total, strict=True)
            ),
        }
    return summary
