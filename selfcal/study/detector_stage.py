"""Systematic uncertainty of every scale factor of a finished run under three treatments of the detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.config.study import DetectorTreatmentsConfig
from selfcal.errors import ConfigError
from selfcal.likelihood.build import DETECTOR_VARIANCE_KEPT, build_templates, measure_fold
from selfcal.likelihood.coverage import coverage_table
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.shifts import independent_modes
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Templates
from selfcal.run.atomic import read_json, write_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest, file_sha256
from selfcal.study.closure import compare_with_truth, fill_truth, has_closure
from selfcal.study.detector_treatments import (
    Treated,
    Treatment,
    treat_guessed,
    treat_profiled,
    treated_toys,
)
from selfcal.study.detector_variations import prior_variations, run_centre
from selfcal.study.pseudo_stage import finished_run
from selfcal.transport.calibration import load_calibration

RESULTS, TEXT = "detector_treatments.json", "detector_treatments.txt"

Floats = NDArray[np.float64]


def run_detector_treatments(
    directory: Path, config: DetectorTreatmentsConfig, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write ``results/detector_treatments.json`` of the run in ``directory``, unless it is there.

    A run without inference has no treatment ``inferred``; the other two vary the simulation as it is.

    Raises
    ------
    DataError
        If the run is not finished.
    ConfigError
        If its scores came with its files: they cannot follow another detector.
    FitError
        If a fit does not converge.
    """
    context = finished_run(directory)
    if context.config.tagger.kind == "scores":
        raise ConfigError(
            "given scores cannot follow another detector",
            where="tagger.kind",
            expected="a run with a tagger of its own",
        )
    target = context.directory.results / RESULTS
    made_of = _made_of(context, config)
    if target.exists() and read_json(target).get("made_of") == made_of:
        return target
    torch.set_num_threads(1)
    found = treatments_of(context, say)
    truth = against_truth(context, found) if has_closure(context) else {}
    toys = {}
    for name, treated in found.items():
        if config.toys:
            say(f"detector treatments: {config.toys} likelihood toys, {name}")
            drawn = treated_toys(treated, config.toys, config.seed)
            toys[name] = coverage_table(drawn, treated.factors.ratios, treated.theta)
    table = treatments_json(found, truth, toys)
    write_json(target, {**table, "made_of": made_of})
    write_text(context.directory.results / TEXT, treatments_text(table))
    say(treatments_text({**table, "rows": []}))
    return target


def _made_of(context: RunContext, config: DetectorTreatmentsConfig) -> str:
    results = context.directory.results
    return canonical_digest(
        {
            "templates": file_sha256(results / "templates.json"),
            "fit": context.config.fit.model_dump(mode="json"),
            "inference": context.config.inference.model_dump(mode="json"),
            "treatments": config.model_dump(mode="json"),
        }
    )


def treatments_of(context: RunContext, say: Callable[[str], None]) -> dict[str, Treated]:
    """The fits of all treatments, from the same jets, maps and composition."""
    config, seed = context.config.fit, context.config.seed
    blind = not (config.unblind or has_closure(context))
    calibration = load_calibration(context.directory.results / "map")
    fold = measure_fold(context, calibration.regions)
    templates = build_templates(fold, calibration)

    def on_region(name: str) -> None:
        say(f"detector treatments: simulating one prior width of every parameter, {name}")

    varied = prior_variations(context, fold, calibration, run_centre(context), on_region)
    guessed = with_detector(templates, varied)
    found = {"guessed": treat_guessed(measure(guessed, config, seed, blind=blind), seed)}
    if templates.detector:
        found["inferred"] = treat_profiled("inferred", templates, config, seed, blind=blind)
    found["profiled"] = treat_profiled("profiled", guessed, config, seed, blind=blind)
    return found


def with_detector(templates: Templates, varied: Floats) -> Templates:
    """``varied`` (D, R, F, P, K) in place of the detector's templates, as independent modes."""
    modes = independent_modes(varied, templates.calibrated, DETECTOR_VARIANCE_KEPT)
    return replace(templates, detector={str(j): mode for j, mode in enumerate(modes)})


def against_truth(context: RunContext, found: Mapping[str, Treated]) -> dict[str, dict[str, Any]]:
    """Agreement of the scale factors of every treatment with those of the truth."""
    compared = {}
    for name, treated in found.items():
        factors = as_json(treated.factors, treated.layout, context.config.tagger.name)
        result = compare_with_truth(factors, fill_truth(context, factors, treated.layout.binning))
        pulls = np.array([row["pull"] for row in result["pulls"]])
        compared[name] = {
            "chi2": result["chi2"],
            "ndf": result["ndf"],
            "p_value": result["p_value"],
            "rows": len(pulls),
            "within_one_sigma": float((np.abs(pulls) < 1).mean()) if len(pulls) else None,
            "pull_rms": float(np.sqrt((pulls**2).mean())) if len(pulls) else None,
            "max_pull": result["max_pull"],
        }
    return compared


def treatments_json(
    found: Mapping[str, Treated],
    truth: Mapping[str, dict[str, Any]],
    toys: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``detector_treatments.json``; ``detector`` and ``total`` are standard deviations.

    Treatments that the run has not are null in ``toys`` and ``summary``.
    """
    first = found["guessed"].factors
    # A row that counts the same bins as another one, or hardly any jets, is shown and not summed up.
    judged = {row["row"]: row["judged"] for row in toys["guessed"]["rows"]} if toys else {}
    binning, rows = found["guessed"].layout.binning, []
    for s, index in enumerate(first.measured):
        row = first.rows[index]
        rows.append(
            {
                "row": int(index),
                **row.place(binning),
                "status": row.status,
                "judged": judged.get(int(index), row.kind == "working_point" and row.status == "measured"),
                **{
                    name: {
                        "value": float(treated.factors.value[s]),
                        "detector": float(np.sqrt(max(treated.detector[s], 0.0))),
                        "total": float(np.sqrt(treated.factors.covariance[s, s])),
                    }
                    for name, treated in found.items()
                },
            }
        )
    absent: dict[str, Any] = {name: None for name in get_args(Treatment) if name not in found}
    return {
        "schema_version": 1,
        "treatments": list(found),
        "rows": rows,
        "against_truth": dict(truth),
        "toys": {**absent, **{name: table["summary"] for name, table in toys.items()}},
        "summary": {
            flavour: {**absent, **ratios(rows, flavour, [name for name in found if name != "guessed"])}
            for flavour in ("all", *dict.fromkeys(row["flavour"] for row in rows))
        },
    }


def ratios(rows: Sequence[Mapping[str, Any]], flavour: str, names: Sequence[str]) -> dict[str, Any]:
    """Over the judged rows of a flavour (``all``: of each): root mean square of the relative detector parts,
    medians of the parts relative to the guessed ones, and share of rows with a part 30 % smaller."""
    chosen = [row for row in rows if row["judged"] and flavour in ("all", row["flavour"])]
    result: dict[str, Any] = {"rows": len(chosen)}
    if not chosen:
        return result
    parts = {
        name: np.array([[row[name]["detector"], row[name]["total"], row[name]["value"]] for row in chosen])
        for name in ("guessed", *names)
    }
    guessed = np.maximum(parts["guessed"], 1e-12)
    for name, part in parts.items():
        result[name] = {
            "detector_rms": float(np.sqrt(np.mean((part[:, 0] / np.maximum(part[:, 2], 1e-12)) ** 2))),
            "detector_ratio": float(np.median(part[:, 0] / guessed[:, 0])),
            "total_ratio": float(np.median(part[:, 1] / guessed[:, 1])),
            "smaller_by_30_percent": float((part[:, 0] <= 0.7 * guessed[:, 0]).mean()),
        }
    return result


def treatments_text(table: Mapping[str, Any]) -> str:
    """The table for people."""
    names = table["treatments"]
    lines = []
    if table["rows"]:
        header = "".join(f"{name + ': value':>18}{'detector':>10}{'total':>9}" for name in names)
        lines.append(f"{'flavour':8}{'bins':10}{'pT [GeV]':>12}{header}")
    for row in table["rows"]:
        point = row["working_point"]
        what = f"bin {row['bin']}" if point is None else f"{100 * point:.0f} %"
        where = f"{row['pt_gev'][0]:g}-{row['pt_gev'][1]:g}"
        numbers = "".join(
            f"{row[name]['value']:18.3f}{row[name]['detector']:10.4f}{row[name]['total']:9.4f}"
            for name in names
        )
        lines.append(f"{row['flavour']:8}{what:10}{where:>12}{numbers}")
    lines.append(
        "detector part: rms relative to the value; medians relative to guessed, of the part and of the total"
    )
    for flavour, found in table["summary"].items():
        lines += [
            f"  {flavour:6} {name:9} {found['rows']:4d} rows  rms {one['detector_rms']:.4f}  "
            f"detector {one['detector_ratio']:.3f}  total {one['total_ratio']:.3f}  "
            f"30 % smaller in {100 * one['smaller_by_30_percent']:.0f} %"
            for name in names
            if (one := found.get(name))
        ]
    for name, one in table["toys"].items():
        if one is None:
            continue
        lines.append(
            f"toys {name}: 68 % covers {one['average_68']:.3f} on average, {one['flagged_count']} of "
            f"{one['judged']} rows beyond a limit, {one['failed']} failed"
        )
    for name, one in table["against_truth"].items():
        lines.append(
            f"truth {name}: chi2 {one['chi2']:.1f}/{one['ndf']}, pulls rms {one['pull_rms']:.2f}, within one "
            f"sigma {one['within_one_sigma']:.2f}, largest {one['max_pull']:.1f}"
        )
    return "\n".join(lines) + "\n"
