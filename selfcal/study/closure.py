"""Closure: what the calibration says beside what is true in pseudo-data.

Fills the truth into ``scale_factors.json`` and ``composition.json`` and writes
``closure.json`` (efficiencies per region, flavour and working point, before and after
the map) and ``scale_factors_against_truth.json``. With real data there is no truth,
and nothing is written.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.data.score_files import scores_of
from selfcal.data.scored import ScoredJets
from selfcal.likelihood.templates import Binning
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.study.truth import best_truth, has_truth, nominal_efficiency_jets, true_jets
from selfcal.tagger.discriminants import discriminant_b
from selfcal.transport.calibration import Calibration, load_calibration

PASSING_MIN = 25
"""Rows with fewer expected passing jets of their flavour are not compared: their errors are not Gaussian."""

JETS_MIN = 100
"""Flavours with fewer true jets in a region get no closure row."""


@dataclass(frozen=True)
class PassingShares:
    """Efficiencies of nested selections (S,), tightest last, and their covariance (S, S)."""

    value: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls, discriminant: NDArray[np.float64], weight: NDArray[np.float64], edges: Sequence[float]
    ) -> PassingShares:
        """cov(ε_i, ε_j) = ε_tighter (1 - ε_looser) / n with n = (Σw)² / Σw²."""
        total = weight.sum()
        value = np.array([weight[discriminant >= edge].sum() / total for edge in edges])
        size = total**2 / (weight**2).sum()
        tighter, looser = np.minimum.outer(value, value), np.maximum.outer(value, value)
        return cls(value, tighter * (1 - looser) / size)

    def ratio_covariance(self, below: PassingShares) -> NDArray[np.float64]:
        """Covariance of self / below, to first order."""
        ratio = self.value / below.value
        relative = self.covariance / np.outer(self.value, self.value)
        relative = relative + below.covariance / np.outer(below.value, below.value)
        return np.outer(ratio, ratio) * relative


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
        tuple(factors["pt_gev_edges"]), tuple(factors["discriminant_edges"]), tuple(factors["working_points"])
    )
    truth = fill_truth(context, factors, binning)
    write_json(results / "scale_factors.json", factors)
    write_json(results / "scale_factors_against_truth.json", compare_with_truth(factors, truth))
    write_json(results / "closure.json", closure_table(context, calibration, binning))
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
        simulation = nominal_efficiency_jets(context, region)
        index = FLAVOURS.index(flavour)
        for low, high in zip(binning.pt_gev_edges[:-1], binning.pt_gev_edges[1:], strict=True):
            chosen = [
                (i, row)
                for i, row in enumerate(rows)
                if row["flavour"] == flavour
                and row["kind"] == "working_point"
                and row["pt_gev"] == [low, high]
            ]
            shares = [
                PassingShares.of(_discriminant(context, part), part.weight, binning.discriminant_edges)
                for jets in (data, simulation)
                for part in [
                    jets.select((jets.flavour == index) & (jets.pt_gev >= low) & (jets.pt_gev < high))
                ]
                if len(part)
            ]
            if len(shares) < 2 or not (shares[0].value > 0).all() or not (shares[1].value > 0).all():
                continue
            place = [binning.working_points.index(row["working_point"]) for _, row in chosen]
            block = shares[0].ratio_covariance(shares[1])[np.ix_(place, place)]
            where = [i for i, _ in chosen]
            covariance[np.ix_(where, where)] = block
            for (_, row), slot in zip(chosen, place, strict=True):
                value = shares[0].value[slot] / shares[1].value[slot]
                error = shares[0].ratio_covariance(shares[1])[slot, slot] ** 0.5
                row["truth"] = {"value": float(value), "error": float(error)}
    return covariance


def compare_with_truth(factors: dict[str, Any], truth_covariance: NDArray[np.float64]) -> dict[str, Any]:
    """χ² = dᵀ (C + C_truth)⁻¹ d over working-point rows with ``PASSING_MIN`` expected passing jets.

    Beside it the same for scale factors of one, the uncalibrated simulation.
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
    covariance = measured[np.ix_(slots, slots)] + truth_covariance[np.ix_(used, used)]
    truth = np.array([rows[i]["truth"]["value"] for i in used])
    value = np.array([rows[i]["value"] for i in used])
    result = _agreement(value - truth, covariance, used)
    return {**result, "uncalibrated": _agreement(1.0 - truth, covariance, used)}


def _agreement(
    difference: NDArray[np.float64], covariance: NDArray[np.float64], rows: list[int]
) -> dict[str, Any]:
    if not rows:
        return {"chi2": 0.0, "ndf": 0, "p_value": None, "max_pull": None, "rows_used": [], "pulls": []}
    chi2 = float(difference @ np.linalg.solve(covariance, difference))
    pulls = difference / np.sqrt(np.diag(covariance))
    return {
        "chi2": chi2,
        "ndf": len(rows),
        "p_value": float(stats.chi2.sf(chi2, len(rows))),
        "max_pull": float(np.abs(pulls).max()),
        "rows_used": rows,
        "pulls": [{"row": row, "pull": float(pull)} for row, pull in zip(rows, pulls, strict=True)],
    }


def closure_table(context: RunContext, calibration: Calibration, binning: Binning) -> dict[str, Any]:
    """Efficiencies of every region, flavour and working point: data, simulation, calibrated simulation.

    Control regions use the measure fold of the simulation; held-out regions all of it.
    """
    rows: list[dict[str, Any]] = []
    regions = dict.fromkeys(card.region for card in context.cards_for("simulation"))
    for region in regions:
        data = best_truth(context, region)
        if data is None:
            continue
        held_out = region not in calibration.regions
        cards = [c for c in context.cards_for("simulation") if c.region == region and c.use != "truth"]
        simulation = scores_of(context, cards, tuple(Fold) if held_out else (Fold.MEASURE,))
        moved = calibration.apply(simulation, calibration.nominal)
        replicas = [calibration.apply(simulation, maps) for maps in calibration.replicas]
        d_data, d_sim, d_moved, *d_replicas = (
            _discriminant(context, jets) for jets in (data, simulation, moved, *replicas)
        )
        for index, flavour in enumerate(FLAVOURS):
            of_data, of_sim = data.flavour == index, simulation.flavour == index
            if of_data.sum() < JETS_MIN or of_sim.sum() < JETS_MIN:
                continue
            w_data, w_sim = data.weight[of_data], simulation.weight[of_sim]
            true = PassingShares.of(d_data[of_data], w_data, binning.discriminant_edges)
            before, after, *varied = (
                PassingShares.of(d[of_sim], w_sim, binning.discriminant_edges)
                for d in (d_sim, d_moved, *d_replicas)
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                error = np.sqrt(np.diag(true.ratio_covariance(after)))
                spread = np.std([true.value / replica.value for replica in varied], axis=0, ddof=1)
            for slot, point in enumerate(binning.working_points):
                if min(before.value[slot], after.value[slot], true.value[slot]) <= 0:
                    continue
                rows.append(
                    {
                        "region": region,
                        "held_out": held_out,
                        "flavour": flavour,
                        "working_point": point,
                        "efficiency_data": float(true.value[slot]),
                        "efficiency_simulation": float(before.value[slot]),
                        "efficiency_calibrated": float(after.value[slot]),
                        "ratio_uncalibrated": float(true.value[slot] / before.value[slot]),
                        "ratio_calibrated": float(true.value[slot] / after.value[slot]),
                        "error": float(error[slot]),
                        "map_uncertainty": float(spread[slot]) if np.isfinite(spread[slot]) else None,
                    }
                )
    return {"rows": rows, "summary": _summary(rows)}


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
