"""Closure: what the calibration says beside what is true in pseudo-data.

Fills the truth into ``scale_factors.json`` and ``composition.json`` and writes
``closure.json`` (efficiencies per region, flavour and working point, before and after
the map) and ``scale_factors_against_truth.json``. With real data there is no truth,
and the composition is written without.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold
from selfcal.likelihood.templates import Binning
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.study.closure_rows import closure_table, discriminant_of
from selfcal.study.passing_shares import PassingShares
from selfcal.study.truth import best_truth, has_truth, nominal_efficiency_jets, true_jets
from selfcal.transport.calibration import Calibration, load_calibration

PASSING_MIN = 25
"""Rows with fewer expected passing jets of their flavour are not compared: their errors are not Gaussian."""

FRACTION_MIN = 0.01
"""Fractions below it, in the prior, are not judged: their widths are floors, not measurements ..."""
MAIN_MIN = 0.2
"""... and flavours with this part of a region or more are its main ones."""

VARIANCE_MIN = 1e-12
"""Directions with less than this part of the largest variance carry no information."""


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


def fill_truth(context: RunContext, factors: dict[str, Any], binning: Binning) -> NDArray[np.float64]:
    """Put the true scale factors into ``factors``; returns their covariance (S, S) over all rows.

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
                    discriminant_of(context, part),
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


def complete_composition(
    context: RunContext, calibration: Calibration, fitted: dict[str, Any]
) -> dict[str, Any]:
    """The fitted fractions with the true ones of the derive fold's data beside them, where known.

    Where some are known, ``summary`` says how far off they are (:func:`fraction_summary`).
    """
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
    if known := [row for row in table["rows"] if row["truth"] is not None]:
        table["summary"] = fraction_summary(known)
    return table


def fraction_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Fitted fractions in units of their own σ from the true ones, and the σ of main flavours.

    Those with a prior of ``FRACTION_MIN`` or more count; main flavours have ``MAIN_MIN`` of a region or more.
    """
    pulls = np.array(
        [
            abs(row["fitted"] - row["truth"]) / row["uncertainty"]
            for row in rows
            if row["prior"] >= FRACTION_MIN
        ]
    )
    main = [row["uncertainty"] / row["fitted"] for row in rows if row["truth"] >= MAIN_MIN]
    return {
        "fractions": len(pulls),
        "within_1_5_sigma": float((pulls < 1.5).mean()),
        "largest_pull": float(pulls.max()),
        "main_relative_uncertainty": float(max(main)),
    }
