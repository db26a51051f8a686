"""The fit stage: templates of the measure fold in, scale factors with one covariance out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfcal.config.fit import FitConfig
from selfcal.errors import ConfigError, FitError
from selfcal.likelihood.alternative_tables import generators_json, high_pt_json
from selfcal.likelihood.asimov import blinded_templates
from selfcal.likelihood.build import MeasureFold, build_templates, measure_fold, write_discriminants
from selfcal.likelihood.external import with_external
from selfcal.likelihood.fit import FitResult, expected_and_jacobian, fit, goodness_of_fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.identifiability import (
    Identifiability,
    identifiability,
    prior_dominated,
    require_identifiable,
)
from selfcal.likelihood.impacts import impacts, impacts_json, refitted_impacts, strongest
from selfcal.likelihood.layout import Layout, make_layout
from selfcal.likelihood.profile import scan
from selfcal.likelihood.pyhf_check import confirm_with_pyhf
from selfcal.likelihood.residual_scale import ResidualScale, as_configured, residual_scale
from selfcal.likelihood.same_sign import subtract_same_sign
from selfcal.likelihood.scale_factors import ScaleFactors, as_json, scale_factors
from selfcal.likelihood.templates import Templates, read_templates, templates_json
from selfcal.likelihood.toy_fits import toy_goodness
from selfcal.likelihood.two_jets import FractionWidths, expected_counts, pair_counts, two_jets_json
from selfcal.likelihood.two_roads import MapFactors, agreement, map_factors, two_roads_json
from selfcal.likelihood.workspace import SAME_SIGN, build_workspace, treated_shifts
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.transport.calibration import Calibration, load_calibration

DISCRIMINANTS = "discriminants.safetensors"


@dataclass(frozen=True)
class Measurement:
    """Everything one fit of templates yields."""

    templates: Templates
    layout: Layout
    workspace: dict[str, Any]
    model: HistFactory
    verdict: Identifiability
    result: FitResult
    factors: ScaleFactors
    of_map: MapFactors
    residual_scale: ResidualScale
    blinded: bool = False


def measure(templates: Templates, config: FitConfig, seed: int = 1, *, blind: bool = False) -> Measurement:
    """Build the likelihood, refuse it if it is degenerate, fit it and derive the scale factors.

    ``blind``: of templates and data from which everything that data say of the discriminant was taken out;
    the widths of the residuals are then the configured ones.

    Raises
    ------
    FitError
        If the model has null directions, or the fit does not converge and ``config.force`` is not set.
    DataError
        If the templates cannot be used.
    """
    templates = with_external(templates, config)
    templates = blinded_templates(templates, config) if blind else templates
    templates = subtract_same_sign(templates, config)
    layout = make_layout(templates, config)
    workspace = build_workspace(templates, layout, config)
    model = HistFactory(workspace)
    verdict = identifiability(model, layout.binning)
    require_identifiable(verdict)
    scale = as_configured(layout)
    if config.residual_width_worth is not None and not blind:
        scale = residual_scale(templates, layout, config, config.residual_width_worth, seed)
        workspace = build_workspace(templates, layout, config, scale.factor)
        model = HistFactory(workspace)
    result = fit(model, seed=seed, force=config.force)
    factors = scale_factors(templates, layout, model, result)
    of_map = map_factors(templates, layout, model, factors)
    return Measurement(
        templates=templates,
        layout=layout,
        workspace=workspace,
        model=model,
        verdict=verdict,
        result=result,
        factors=factors,
        of_map=of_map,
        residual_scale=scale,
        blinded=blind,
    )


def measurement_of(results: Path, config: FitConfig, seed: int = 1) -> Measurement:
    """The measurement that wrote the files of ``results``, made again from its templates.

    Raises
    ------
    DataError, ConfigError, FitError
        As :func:`measure` and :func:`selfcal.likelihood.templates.read_templates`.
    """
    blind = bool(read_json(results / "scale_factors.json")["blinded"])
    return measure(read_templates(results / "templates.json"), config, seed, blind=blind)


def run_fit(context: RunContext, *, blind: bool) -> list[Path]:
    """Write workspace, templates, fit, scale factors, impacts, the two roads and discriminants.

    Nothing is written if the fit is refused or does not converge (unless ``fit.force`` is set), or if pyhf
    disagrees. A blinded run shows no discriminants: ``discriminants.safetensors`` of an earlier fit is
    removed.
    """
    torch.set_num_threads(1)
    config, results = context.config, context.directory.results
    calibration = load_calibration(results / "map")
    fold = measure_fold(context, calibration.regions)
    measured = measure(build_templates(fold, calibration), config.fit, config.seed, blind=blind)
    confirmation = confirm_with_pyhf(measured.workspace, measured.model, measured.result)
    factors = as_json(
        measured.factors,
        measured.layout,
        config.tagger.name,
        blinded=blind,
        forced=not measured.result.certificate["converged"],
    )
    contents: dict[str, Any] = {
        "workspace.json": measured.workspace,
        "fit.json": {
            **fit_json(measured, confirmation, config.fit.goodness_toys, config.seed),
            "residual_scale": measured.residual_scale.as_json(measured.layout.flavours),
            "variations": treated_shifts(measured.templates, measured.layout, config.fit)[2],
        },
        "templates.json": templates_json(measured.templates),
        "scale_factors.json": factors,
        "impacts.json": impact_table(measured, config.fit),
        "two_roads.json": two_roads(measured),
    }
    if config.fit.two_jet_region is not None:
        contents["two_jets.json"] = two_jets(fold, calibration, config.fit, blind=blind)
    if config.fit.scanned_working_points:
        contents["scans.json"] = scans(measured, config.fit)
    if fold.alternatives:
        contents["generators.json"] = generators_json(fold, config.fit)
    if config.fit.high_pt_gev_edges:
        contents["high_pt.json"] = high_pt_json(fold, measured.factors, config.fit, blinded=blind)
    for name, content in contents.items():
        write_json(results / name, content)
    goodness = goodness_of_fit(measured.model, measured.result)
    context.say(
        f"fit: {len(measured.model.observed)} bins, {len(measured.model.parameters)} parameters, "
        f"goodness of fit p = {goodness['p_value']:.2f}, {len(measured.factors.measured)} scale factors"
    )
    if not measured.result.certificate["converged"]:
        context.say("WARNING: the fit did not converge; its results are written because of 'fit.force'")
    if not measured.residual_scale.settled:
        context.say("WARNING: the widths of the residuals did not settle; see 'residual_scale' in fit.json")
    if blind:
        context.say("blinded: expected results of simulation; 'fit.unblind: true' shows those of data")
        (results / DISCRIMINANTS).unlink(missing_ok=True)
        return [results / name for name in contents]
    histograms = write_discriminants(fold, calibration, results / DISCRIMINANTS)
    return [*(results / name for name in contents), histograms]


def fit_json(
    measured: Measurement, confirmation: dict[str, Any], toys: int = 0, seed: int = 1
) -> dict[str, Any]:
    """The content of ``fit.json``, with the goodness of fit of ``toys`` toy experiments."""
    model, result = measured.model, measured.result
    goodness: dict[str, Any] = {**goodness_of_fit(model, result), "toys": None}
    if toys:
        goodness["toys"] = toy_goodness(model, result, toys, seed)
    return {
        "schema_version": 1,
        "blinded": measured.blinded,
        "parameters": [
            {"name": p.name, "value": float(value), "uncertainty": float(sigma), "constrained": bool(p.width)}
            for p, value, sigma in zip(model.parameters, result.best_fit, result.uncertainty, strict=True)
        ],
        "covariance": result.covariance.tolist(),
        "twice_nll": result.twice_nll,
        "certificate": {**result.certificate, "pyhf": confirmation},
        "goodness_of_fit": goodness,
        "identifiability": {
            **measured.verdict.as_json(),
            "prior_dominated": prior_dominated(model, result),
        },
        "pulls": pulls(model, result),
        "channels": postfit_yields(measured),
    }


def impact_table(measured: Measurement, config: FitConfig) -> dict[str, Any]:
    """The content of ``impacts.json``."""
    model, result, factors = measured.model, measured.result, measured.factors
    found = impacts(model, result, factors)
    chosen = strongest(found, factors, config.impacts_refitted)
    refitted = refitted_impacts(model, result, factors, chosen)
    return impacts_json(found, refitted, factors, config.impacts_listed)


def two_jets(
    fold: MeasureFold, calibration: Calibration, config: FitConfig, *, blind: bool
) -> dict[str, Any]:
    """The content of ``two_jets.json``: b scale factors from the pairs of jets of ``two_jet_region``.

    Raises
    ------
    ConfigError
        If there is no such region.
    DataError, FitError
        If there are no pairs, or their fit does not converge.
    """
    region = config.two_jet_region
    if region not in fold.data:
        raise ConfigError(
            f"no region '{region}'",
            where="fit.two_jet_region",
            expected=f"a region among {', '.join(fold.data)}",
        )
    data, simulation = fold.data[region], fold.simulation[region]
    samples = (data, calibration.apply(simulation, calibration.nominal), fold.nominal[region])
    one, two, three = (fold.discriminant(jets) for jets in samples)
    counts = pair_counts(*samples, (one, two, three), fold.binning, config.residual_width["light"])
    widths = FractionWidths(config.two_jet_mixed_width, config.two_jet_neither_width)
    if blind:
        counts = replace(counts, observed=expected_counts(counts, widths))
    return two_jets_json(counts, widths, blinded=blind)


def scans(measured: Measurement, config: FitConfig) -> dict[str, Any]:
    """The content of ``scans.json``: profile likelihoods of the scale factors at the working points scanned.

    ``rise`` is twice the rise of −ln L at ``points``; ``interval`` is where it is one, null where not
    reached. The part of σ that comes from the nominal simulation alone is outside of the likelihood.
    """
    factors, found = measured.factors, []
    for s, index in enumerate(factors.measured):
        if factors.rows[index].working_point not in config.scanned_working_points:
            continue

        def value(theta: Tensor, place: int = s) -> Tensor:
            return factors.ratios.values(theta)[place]

        try:
            profiled = scan(measured.model, measured.result, value)
        except FitError as error:
            found.append({"row": int(index), "error": str(error)})
            continue
        found.append(
            {
                "row": int(index),
                "points": profiled.points.tolist(),
                "rise": profiled.rise.tolist(),
                "best": profiled.best,
                "sigma": profiled.sigma,
                "interval": [float(end) if np.isfinite(end) else None for end in profiled.interval()],
            }
        )
    return {"schema_version": 1, "scans": found}


def two_roads(measured: Measurement) -> dict[str, Any]:
    """The content of ``two_roads.json``: the map's scale factors beside the fit's."""
    factors, of_map = measured.factors, measured.of_map
    found = agreement(measured.layout, measured.model, measured.result, factors, of_map)
    return two_roads_json(factors, of_map, found)


def pulls(model: HistFactory, result: FitResult) -> list[dict[str, Any]]:
    """Of every constrained parameter: best fit and uncertainty in units of the constraint."""
    return [
        {
            "name": p.name,
            "value": float((value - p.centre) / p.width),
            "uncertainty": float(sigma / p.width),
        }
        for p, value, sigma in zip(model.parameters, result.best_fit, result.uncertainty, strict=True)
        if p.width is not None and p.centre is not None and not p.fixed
    ]


def postfit_yields(measured: Measurement) -> list[dict[str, Any]]:
    """Per channel: data, fitted total with its uncertainty, and fitted yields per flavour and bin."""
    layout, model, result = measured.layout, measured.model, measured.result
    theta = torch.from_numpy(result.best_fit)
    rates = model.rates(theta).numpy()
    expected, jacobian = expected_and_jacobian(model, theta)
    slope = jacobian.numpy()
    error = np.sqrt(np.einsum("bi,ij,bj->b", slope, result.covariance, slope).clip(min=0))
    yields: dict[tuple[str, str], list[float]] = {}
    for cell, rate in zip(model.cells, rates, strict=True):
        flavour = cell.sample.removesuffix(f"_bin{cell.bin}")
        yields.setdefault((cell.channel, flavour), [0.0] * layout.binning.n_bins)[cell.bin] += float(rate)
    channels = []
    for r, region in enumerate(layout.regions):
        for p in range(layout.binning.n_kinematic):
            name = layout.channel(r, p)
            if name not in model.channels:
                continue
            bins = model.channels[name]
            flavours = {f: yields[name, f] for f in (*layout.flavours, SAME_SIGN) if (name, f) in yields}
            channels.append(
                {
                    "name": name,
                    "region": region,
                    "pt_gev": list(layout.binning.pt_gev_range(p)),
                    "abs_eta": list(layout.binning.abs_eta_range(p)),
                    "data": model.observed[bins].tolist(),
                    "total": expected[bins].tolist(),
                    "total_uncertainty": error[bins].tolist(),
                    "flavours": flavours,
                }
            )
    return channels
