"""Closure: what the calibration says beside what is true in pseudo-data.

Fills the truth into ``scale_factors.json`` and ``composition.json`` and writes
``closure.json`` (efficiencies per region, flavour and working point, before and after
the map) and ``scale_factors_against_truth.json``. With real data there is no truth,
and the composition is written without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.config.card import DataCard
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.score_files import NOMINAL, detector_variants, scores_of, within_abs_eta
from selfcal.data.scored import ScoredJets
from selfcal.likelihood.templates import Binning
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.study.truth import best_truth, has_truth, nominal_efficiency_jets, true_jets
from selfcal.tagger.discriminants import discriminant_b
from selfcal.transport.calibration import Calibration, load_calibration

PASSING_MIN = 25
"""Rows with fewer expected passing jets of their flavour are not compared: their errors are not Gaussian."""

VARIANCE_MIN = 1e-12
"""Directions with less than this part of the largest variance carry no information."""

FAILURE_SIGMA = 3.0
"""A closure ratio farther than this from one, in its own uncertainty, is a failure of the calibration."""

JETS_MIN = 100
"""Flavours with fewer true jets in a region get no closure row."""


@dataclass(frozen=True)
class PassingShares:
    """Efficiencies of S selections of discriminant bins, (S,), and their covariance (S, S)."""

    value: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        discriminant: NDArray[np.float64],
        weight: NDArray[np.float64],
        edges: Sequence[float],
        selections: Sequence[Sequence[int]] | None = None,
    ) -> PassingShares:
        """ε = A s with the bin shares s, and A (diag(s) - s sᵀ) Aᵀ / n with n = (Σw)² / Σw².

        Each selection is a set of bins; without any, the nested ones D >= edge for every edge.
        """
        bins = len(edges) + 1
        if selections is None:
            selections = [range(first, bins) for first in range(1, bins)]
        chosen = np.zeros((len(selections), bins))
        for row, selection in enumerate(selections):
            chosen[row, list(selection)] = 1.0
        total = weight.sum()
        share = np.bincount(np.digitize(discriminant, edges), weights=weight, minlength=bins) / total
        size = total**2 / (weight**2).sum()
        return cls(chosen @ share, chosen @ (np.diag(share) - np.outer(share, share)) @ chosen.T / size)

    def at(self, index: NDArray[np.integer]) -> PassingShares:
        """Some of the selections."""
        return PassingShares(self.value[index], self.covariance[np.ix_(index, index)])

    def ratio_covariance(self, below: PassingShares) -> NDArray[np.float64]:
        """Covariance of self / below, to first order."""
        ratio = self.value / below.value
        relative = self.covariance / np.outer(self.value, self.value)
        relative = relative + below.covariance / np.outer(below.value, below.value)
        return np.outer(ratio, ratio) * relative


def has_closure(context: RunContext) -> bool:
    """Whether all data of the control regions are pseudo-data with known truth."""
    return all(has_truth(context, card) for card in context.cards_for("data", "control"))


def run_closure(context: RunContext) -> list[Path]:
    """Write or complete the closure files; returns those that exist afterwards."""
    results = context.directory.results
    calibration = load_calibration(results / "map")
    composition = complete_composition(context, calibration, read_json(results / "composition_fitted.json"))
    write_json(results / "composition.json", composition)
    observed = [card for card in context.cards_for("data") if has_truth(context, card)]
    if not observed:
        return [results / "composition.json"]
    factors = read_json(results / "scale_factors.json")
    binning = Binning(
        tuple(factors["pt_gev_edges"]),
        tuple(factors["discriminant_edges"]),
        tuple(factors["working_points"]),
        tuple(factors["abs_eta_edges"]),
    )
    truth = fill_truth(context, factors, binning)
    write_json(results / "scale_factors.json", factors)
    comparison = compare_with_truth(factors, truth)
    write_json(results / "scale_factors_against_truth.json", comparison)
    closure = closure_table(context, calibration, binning)
    closure["summary"]["scale_factors"] = {
        key: value for key, value in comparison.items() if key not in ("rows_used", "pulls", "uncalibrated")
    }
    write_json(results / "closure.json", closure)
    names = ("composition.json", "scale_factors_against_truth.json", "closure.json")
    return [results / name for name in names]


def _discriminant(context: RunContext, jets: ScoredJets) -> NDArray[np.float64]:
    tagger = context.config.tagger
    return discriminant_b(jets.log_probability, tagger.charm_fraction, tagger.tau_fraction)


def fill_truth(context: RunContext, factors: dict[str, Any], binning: Binning) -> NDArray[np.float64]:
    """Put the true scale factors into ``factors``; returns their covariance over all rows.

    True SF = ε(data) / ε(nominal simulation), both of the flavour's reference region and of
    samples as large as there are; the error is the statistical one of both.
    """
    rows = factors["rows"]
    covariance = np.zeros((len(rows), len(rows)))
    for flavour, region in context.config.fit.reference_regions.items():
        data = best_truth(context, region)
        if data is None:
            continue
        samples = (data, nominal_efficiency_jets(context, region))
        places = [binning.kinematic_bins(jets.pt_gev, jets.abs_eta) for jets in samples]
        for p in range(binning.n_kinematic):
            kinematics = {"pt_gev": list(binning.pt_gev_range(p)), "abs_eta": list(binning.abs_eta_range(p))}
            here = {"flavour": flavour, **kinematics}
            where = [i for i, r in enumerate(rows) if all(r[key] == value for key, value in here.items())]
            parts = [
                jets.select((jets.flavour == FLAVOURS.index(flavour)) & inside & (kinematic_bin == p))
                for jets, (kinematic_bin, inside) in zip(samples, places, strict=True)
            ]
            if not where or not all(len(part) for part in parts):
                continue
            observed, nominal = (
                PassingShares.of(
                    _discriminant(context, part),
                    part.weight,
                    binning.discriminant_edges,
                    [_bins_of(rows[i], binning) for i in where],
                )
                for part in parts
            )
            known = np.flatnonzero((observed.value > 0) & (nominal.value > 0))
            where = [where[k] for k in known]
            observed, nominal = observed.at(known), nominal.at(known)
            block = observed.ratio_covariance(nominal)
            covariance[np.ix_(where, where)] = block
            for k, i in enumerate(where):
                value = float(observed.value[k] / nominal.value[k])
                # Where all jets pass, rounding can leave the variance a hair below zero.
                rows[i]["truth"] = {"value": value, "error": float(np.sqrt(max(block[k, k], 0.0)))}
    return covariance


def _bins_of(row: dict[str, Any], binning: Binning) -> Sequence[int]:
    """The discriminant bins that a scale-factor row counts."""
    if row["kind"] == "continuous":
        return (row["bin"],)
    return range(binning.working_points.index(row["working_point"]) + 1, binning.n_bins)


def compare_with_truth(factors: dict[str, Any], truth_covariance: NDArray[np.float64]) -> dict[str, Any]:
    """χ² = dᵀ (C + C_truth)⁻¹ d over working-point rows with ``PASSING_MIN`` expected passing jets.

    Beside it scale factors of one, the uncalibrated simulation, on the same rows: they have no
    uncertainty of their own, so their covariance is that of the truth alone.
    """
    rows = factors["rows"]
    place = {row: i for i, row in enumerate(factors["covariance"]["rows"])}
    used = [
        i
        for i, row in enumerate(rows)
        if row["kind"] == "working_point"
        and row["truth"] is not None
        and i in place
        and row["expected_passing"] >= PASSING_MIN
    ]
    measured = np.array(factors["covariance"]["matrix"])
    slots = [place[i] for i in used]
    known = truth_covariance[np.ix_(used, used)]
    truth = np.array([rows[i]["truth"]["value"] for i in used])
    value = np.array([rows[i]["value"] for i in used])
    result = _agreement(value - truth, measured[np.ix_(slots, slots)] + known, used)
    uncertain = np.flatnonzero(np.diag(known) > 0)
    uncalibrated = _agreement(
        (1.0 - truth)[uncertain], known[np.ix_(uncertain, uncertain)], [used[k] for k in uncertain]
    )
    return {**result, "uncalibrated": uncalibrated}


def _agreement(
    difference: NDArray[np.float64], covariance: NDArray[np.float64], rows: list[int]
) -> dict[str, Any]:
    if not rows:
        return {"chi2": 0.0, "ndf": 0, "p_value": None, "max_pull": None, "rows_used": [], "pulls": []}
    pulls = difference / np.sqrt(np.diag(covariance))
    variances, directions = np.linalg.eigh(covariance)
    # Rows of which one follows from the others (all jets pass) share a direction without variance.
    free = variances > VARIANCE_MIN * variances.max()
    ndf = int(free.sum())
    chi2 = float(((difference @ directions[:, free]) ** 2 / variances[free]).sum())
    return {
        "chi2": chi2,
        "ndf": ndf,
        "mean_absolute_deviation": float(np.abs(difference).mean()),
        "p_value": float(stats.chi2.sf(chi2, ndf)),
        "max_pull": float(np.abs(pulls).max()),
        "rows_used": rows,
        "pulls": [{"row": row, "pull": float(pull)} for row, pull in zip(rows, pulls, strict=True)],
    }


def closure_table(context: RunContext, calibration: Calibration, binning: Binning) -> dict[str, Any]:
    """Efficiencies of every region, flavour and working point: data, simulation, calibrated simulation.

    Control regions use the measure fold of the simulation; held-out regions all of it. The map's
    uncertainty is the spread of its bootstrap replicas in quadrature with the difference to the stiff map.
    Where the detector is inferred, ``corrected`` is the simulation with it and without map, and the
    uncertainty of its posterior, from the measure fold, is added to that of the map.
    """
    rows: list[dict[str, Any]] = []
    regions = dict.fromkeys(card.region for card in context.cards_for("simulation"))
    inferred = context.config.inference.enabled
    for region in regions:
        data = best_truth(context, region)
        if data is None:
            continue
        held_out = region not in calibration.regions
        cards = [c for c in context.cards_for("simulation") if c.region == region and c.use != "truth"]
        if not cards:
            continue
        folds = tuple(Fold) if held_out else (Fold.MEASURE,)
        nominal, simulation = (_simulated(context, cards, folds, variant) for variant in (NOMINAL, None))
        detector = detector_uncertainty(context, calibration, cards, binning)
        of_region = region_rows(
            data, nominal, simulation, calibration, binning, partial(_discriminant, context), detector
        )
        for row in of_region:
            if not inferred:
                row |= {"efficiency_corrected": None, "ratio_corrected": None}
            rows.append({"region": region, "held_out": held_out, **row})
    return {"rows": rows, "summary": _summary(rows), "failures": failures(rows)}


def region_rows(
    data: ScoredJets,
    nominal: ScoredJets,
    simulation: ScoredJets,
    calibration: Calibration,
    binning: Binning,
    discriminant: Callable[[ScoredJets], NDArray[np.float64]],
    detector: NDArray[np.float64],
) -> list[dict[str, Any]]:
    """Efficiencies of labelled ``data``, ``nominal``, and ``simulation`` without and with the map.

    ``detector`` (F, S) is the relative uncertainty of each efficiency beside the map's own.
    """
    rows: list[dict[str, Any]] = []
    moved = calibration.apply(simulation, calibration.nominal)
    stiff = calibration.apply(simulation, calibration.stiff)
    replicas = [calibration.apply(simulation, maps) for maps in calibration.replicas]
    d_data, d_nominal, d_sim, d_moved, d_stiff, *d_replicas = (
        discriminant(jets) for jets in (data, nominal, simulation, moved, stiff, *replicas)
    )
    for index, flavour in enumerate(FLAVOURS):
        of_data, of_sim = data.flavour == index, simulation.flavour == index
        if of_data.sum() < JETS_MIN or of_sim.sum() < JETS_MIN:
            continue
        w_data, w_sim = data.weight[of_data], simulation.weight[of_sim]
        true = PassingShares.of(d_data[of_data], w_data, binning.discriminant_edges)
        before, corrected, after, other, *varied = (
            PassingShares.of(d[of_sim], w_sim, binning.discriminant_edges)
            for d in (d_nominal, d_sim, d_moved, d_stiff, *d_replicas)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(np.diag(true.ratio_covariance(after)))
            spread = np.hypot(
                np.std([true.value / replica.value for replica in varied], axis=0, ddof=1),
                true.value / other.value - true.value / after.value,
            )
            spread = np.hypot(spread, true.value / after.value * detector[index])
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
                }
            )
    return rows


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
        calibration.apply(_simulated(context, cards, (Fold.MEASURE,), variant), calibration.nominal)
        for variant in (None, *variants)
    )
    for index in range(len(FLAVOURS)):
        if not (central.flavour == index).any():
            continue
        start, *moved = (
            PassingShares.of(
                _discriminant(context, jets)[jets.flavour == index],
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


def complete_composition(
    context: RunContext, calibration: Calibration, fitted: dict[str, Any]
) -> dict[str, Any]:
    """The fitted fractions with the true ones of the derive fold's data beside them, where known."""
    table = copy.deepcopy(fitted)
    for region in calibration.regions:
        cards = [card for card in context.cards_for("data", "control") if card.region == region]
        if not all(has_truth(context, card) for card in cards):
            continue
        jets = true_jets(context, cards, (Fold.DERIVE,))
        total = np.bincount(jets.flavour, weights=jets.weight, minlength=len(FLAVOURS))
        for row in table["rows"]:
            if row["region"] == region:
                row["truth"] = float(total[FLAVOURS.index(row["flavour"])] / total.sum())
    return table
