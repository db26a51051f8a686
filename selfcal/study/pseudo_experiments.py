"""Full pseudo-experiments: world, events, detector, composition, map, templates and fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters
from selfcal.config.study import PseudoExperimentsConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import UNTRAINED, Fold
from selfcal.data.score_files import join_datasets
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.likelihood.build import (
    DETECTOR_VARIANCE_KEPT,
    MeasureFold,
    build_templates,
    working_point_binning,
)
from selfcal.likelihood.fit import fit
from selfcal.likelihood.scale_factors import ScaleFactors, group_of, scale_factors
from selfcal.likelihood.shifts import independent_modes, relative_shift
from selfcal.likelihood.stage import Measurement, measure
from selfcal.likelihood.templates import Binning, Templates, count_by_flavour
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.context import RunContext
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.stage import region_tracks, thinned
from selfcal.study.joint_deviation import joint_deviation
from selfcal.study.population import RegionPopulation, SampleSizes, read_population, sample_sizes
from selfcal.study.pseudo_data import World, draw_world
from selfcal.study.pseudo_inference import DetectorInference, prepare_inference
from selfcal.study.warm_calibration import WarmStart, read_warm_start, refit
from selfcal.tagger.bundle import TaggerBundle, load_bundle
from selfcal.transport.calibration import Calibration
from selfcal.transport.control_regions import composition_prior, control_regions

Floats = NDArray[np.float64]
DRAWN_GROUPS = ("pt_shape", "extrapolation")
"""Systematics of which a pseudo-experiment's world has none: their constraints' centres are drawn instead.
Residuals are not among them: what a fitted map leaves over of the world's detector and remainder is there."""


@dataclass(frozen=True)
class Laboratory:
    """What all pseudo-experiments of one run share.

    Attributes
    ----------
    nominal : scores of each region's population in the simulation as it is
    response : (D, R, F, P, K) relative change of the templates by one prior width of each detector parameter
    """

    context: RunContext
    config: PseudoExperimentsConfig
    warm: WarmStart
    bundle: TaggerBundle
    populations: Mapping[str, RegionPopulation]
    sizes: Mapping[str, SampleSizes]
    inference: DetectorInference
    nominal: Mapping[str, Floats]
    response: Floats

    @property
    def regions(self) -> tuple[str, ...]:
        """The control regions."""
        return self.warm.run.regions

    def counts(self, scores: Mapping[str, Floats], binning: Binning) -> Floats:
        """Counts of the whole population, (R, F, P, K)."""
        tagger = self.context.config.tagger
        return np.stack(
            [
                self.populations[r].counts(scores[r], binning, tagger.charm_fraction, tagger.tau_fraction)
                for r in self.regions
            ]
        )


def prepare(
    context: RunContext, config: PseudoExperimentsConfig, scratch: Path, on_step: Callable[[str], None]
) -> Laboratory:
    """Read a finished run, its jets and tagger, and simulate the detectors that all experiments share.

    Raises
    ------
    ConfigError
        If the run's scores came with its files: they cannot follow another detector.
    DataError
        If the run is not finished.
    """
    if context.config.tagger.kind == "scores":
        raise ConfigError(
            "given scores cannot follow another detector",
            where="tagger.kind",
            expected="a run with a tagger of its own",
        )
    torch.set_num_threads(1)
    seed = context.config.seed
    regions = control_regions(context)
    warm = read_warm_start(context)
    bundle = load_bundle(context.directory.checkpoints / "tagger_final")
    tracks = [
        replace(one, simulation=thinned(one.simulation, config.jets_per_region))
        for one in region_tracks(context, regions)
    ]
    donors = collect_donors([jets for one in tracks for jets in one.simulation], seed)
    populations = {
        region: read_population(context, region, donors, seed, config.jets_per_region) for region in regions
    }
    on_step(f"pseudo-experiments: population of {sum(len(p) for p in populations.values())} jets")
    inference = prepare_inference(
        tracks, donors, context.config.inference, seed, config.detectors, scratch / "detectors"
    )
    on_step("pseudo-experiments: emulator of the detector done")

    def scores(parameters: SmearingParameters) -> dict[str, Floats]:
        return {r: population.log_probability(bundle, parameters) for r, population in populations.items()}

    laboratory = Laboratory(
        context=context,
        config=config,
        warm=warm,
        bundle=bundle,
        populations=populations,
        sizes={region: sample_sizes(context, region) for region in regions},
        inference=inference,
        nominal=scores(NOMINAL),
        response=np.zeros(0),
    )
    if not context.config.inference.enabled:
        return laboratory
    path = scratch / "response.safetensors"
    if not path.exists():
        write_arrays(path, {"response": _response(laboratory, scores)})
    on_step("pseudo-experiments: response of the templates done")
    return replace(laboratory, response=read_arrays(path)["response"])


def _response(laboratory: Laboratory, scores: Callable[[SmearingParameters], Mapping[str, Floats]]) -> Floats:
    """Half the difference between one prior width up and down, relative to nominal."""
    fit_config, region = laboratory.context.config.fit, laboratory.context.config.fit.working_point_region
    population = laboratory.populations[region]
    rows = np.arange(len(population))
    every = population.jets(laboratory.nominal[region], rows, Fold.MEASURE, labelled=True)
    binning = working_point_binning(every, fit_config, laboratory.context.config.tagger)
    nominal = laboratory.counts(laboratory.nominal, binning)
    found = []
    for step in np.diag(laboratory.inference.widths):
        up, down = (
            laboratory.counts(scores(SmearingParameters.from_vector(NOMINAL.vector() + sign * step)), binning)
            for sign in (1, -1)
        )
        found.append(relative_shift(nominal + (up - down) / 2, nominal))
    return np.stack(found)


@dataclass(frozen=True)
class Drawn:
    """Samples of one pseudo-experiment by fold and region, and the true scores of the population."""

    corrected: dict[Fold, dict[str, ScoredJets]]
    nominal: dict[Fold, dict[str, ScoredJets]]
    data: dict[Fold, dict[str, ScoredJets]]
    truth: dict[str, Floats]


def run_experiment(laboratory: Laboratory, index: int) -> dict[str, Any]:
    """Pseudo-experiment ``index``, seeded by it: everything that is compared with its truth, and the seconds.

    Raises
    ------
    FitError
        If a fit is refused or does not converge.
    """
    context, config = laboratory.context, laboratory.config
    generator = np.random.default_rng([config.seed, index])
    clock = [time.process_time()]
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        clock.append(time.process_time())
        seconds[name] = clock[-1] - clock[-2]

    world = _world(laboratory, generator)
    posterior, predictive_p = _posterior(laboratory, world, generator, index)
    lap("detector")
    drawn = _draw(laboratory, world, posterior, generator)
    lap("scores")
    calibration = refit(
        laboratory.warm,
        context,
        drawn.corrected[Fold.DERIVE],
        drawn.data[Fold.DERIVE],
        config.steps,
        config.seed * 1_000_003 + index,
    )
    lap("composition and map")
    templates = _templates(laboratory, drawn, calibration, posterior)
    measured = measure(templates, context.config.fit, config.seed)
    repeated = _with_drawn_constraints(measured, generator, config.seed)
    lap("likelihood")
    truth = laboratory.counts(drawn.truth, templates.binning)
    nominal = laboratory.counts(laboratory.nominal, templates.binning)
    return {
        "index": index,
        "detector": _detector_rows(world, posterior),
        "detector_covariance": None if posterior is None else posterior.covariance.tolist(),
        "predictive_p": predictive_p,
        "fractions": _fraction_rows(world, calibration),
        "scale_factors": _scale_factor_rows(measured, repeated, truth, nominal),
        "joint": joint_deviation(templates, calibration, laboratory.warm, world.fractions, truth),
        "seconds": seconds,
    }


def _world(laboratory: Laboratory, generator: np.random.Generator) -> World:
    context, regions = laboratory.context, laboratory.regions
    shares = np.stack([laboratory.populations[region].shares for region in regions])
    trained = np.stack([counts.jets > 0 for counts in laboratory.inference.counts])
    width = len(laboratory.warm.run.frame.mean)
    scale = laboratory.config.remainder_scale * context.config.calibration_in_use.composition.map_scale
    prior = composition_prior(context, regions, torch.from_numpy(shares))
    present = (shares > 0) & trained
    return draw_world(generator, laboratory.inference.widths, prior, present, width, scale)


def _posterior(
    laboratory: Laboratory, world: World, generator: np.random.Generator, index: int
) -> tuple[Posterior, float] | tuple[None, None]:
    if not laboratory.context.config.inference.enabled:
        return None, None
    expected = [laboratory.sizes[region].data[Fold.TRAIN] for region in laboratory.regions]
    observed = laboratory.inference.observed(generator, world.parameters, world.fractions, expected)
    return laboratory.inference.posterior(generator, observed, index)


def _draw(
    laboratory: Laboratory, world: World, posterior: Posterior | None, generator: np.random.Generator
) -> Drawn:
    result = Drawn({f: {} for f in UNTRAINED}, {f: {} for f in UNTRAINED}, {f: {} for f in UNTRAINED}, {})
    for r, region in enumerate(laboratory.regions):
        population, sizes = laboratory.populations[region], laboratory.sizes[region]
        smeared = population.log_probability(laboratory.bundle, world.parameters)
        truth = world.scores(population, smeared, laboratory.warm.run.frame)
        nominal = corrected = laboratory.nominal[region]
        simulated = {fold: population.rows_drawn(generator, sizes.simulation[fold]) for fold in UNTRAINED}
        if posterior is not None:
            rows = np.unique(np.concatenate(list(simulated.values())))
            corrected = population.log_probability(laboratory.bundle, posterior.parameters, rows)
        for fold in UNTRAINED:
            rows = simulated[fold]
            result.corrected[fold][region] = population.jets(corrected, rows, fold, labelled=True)
            result.nominal[fold][region] = population.jets(nominal, rows, fold, labelled=True)
            observed = population.rows_drawn(generator, sizes.data[fold], world.fractions[r])
            result.data[fold][region] = population.jets(truth, observed, fold, labelled=False)
        result.truth[region] = truth
    return result


def _templates(
    laboratory: Laboratory, drawn: Drawn, calibration: Calibration, posterior: Posterior | None
) -> Templates:
    """As in a run; the map's replicas and the detector's directions act as relative shifts."""
    config = laboratory.context.config
    region = config.fit.working_point_region
    corrected, nominal = (
        {name: join_datasets([simulation[fold][name] for fold in UNTRAINED]) for name in laboratory.regions}
        for simulation in (drawn.corrected, drawn.nominal)
    )
    binning = working_point_binning(nominal[region], config.fit, config.tagger)
    fold = MeasureFold(corrected, drawn.data[Fold.MEASURE], binning, config.tagger, nominal)
    templates = build_templates(fold, calibration)
    moved = templates.calibrated
    seeds = {name: moved * (1 + shift) for name, shift in laboratory.warm.seed_shift.items()}
    templates = replace(
        templates,
        replicas=moved * (1 + laboratory.warm.replica_shift),
        variations={**templates.variations, **seeds},
    )
    if posterior is None:
        return templates
    steps = posterior.directions() / laboratory.inference.widths
    varied = moved * (1 + np.einsum("jd,drfpk->jrfpk", steps, laboratory.response))
    modes = independent_modes(np.maximum(varied, 0.0), moved, DETECTOR_VARIANCE_KEPT)
    counts = [
        count_by_flavour(fold.simulation[name], fold.discriminant(fold.simulation[name]), binning)[0]
        for name in laboratory.regions
    ]
    detector = {str(j): mode for j, mode in enumerate(modes)}
    return replace(templates, corrected=np.stack(counts), detector=detector)


def _with_drawn_constraints(measured: Measurement, generator: np.random.Generator, seed: int) -> ScaleFactors:
    """The same fit with the auxiliary measurements of ``DRAWN_GROUPS`` drawn from their constraints."""
    model = measured.model
    centre = model.centre.clone()
    for j, parameter in enumerate(model.parameters):
        if parameter.width is not None and group_of(parameter.name) in DRAWN_GROUPS:
            centre[j] += parameter.width * generator.standard_normal()
    shifted = model.with_centre(centre)
    return scale_factors(measured.templates, measured.layout, shifted, fit(shifted, seed=seed))


def _detector_rows(world: World, posterior: Posterior | None) -> list[dict[str, Any]]:
    if posterior is None:
        return []
    columns = zip(PARAMETERS, world.parameters.vector(), posterior.mean, posterior.uncertainty, strict=True)
    return [
        {"parameter": name, "truth": float(truth), "value": float(mean), "total": float(sigma)}
        for name, truth, mean, sigma in columns
    ]


def _fraction_rows(world: World, calibration: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "region": region,
            "flavour": flavour,
            "truth": float(world.fractions[r, f]),
            "value": float(calibration.fractions[r, f]),
            "bulk": float(calibration.bulk_fractions[r, f]),
            "prior": float(calibration.prior.fractions[r, f]),
            "total": float(calibration.fraction_uncertainty[r, f]),
        }
        for r, region in enumerate(calibration.regions)
        for f, flavour in enumerate(FLAVOURS)
    ]


def _scale_factor_rows(
    measured: Measurement, repeated: ScaleFactors, truth: Floats, nominal: Floats
) -> list[dict[str, Any]]:
    """``value`` and ``total`` with drawn constraints, ``unmoved_value`` and ``unmoved_total`` without."""
    factors, layout, rows = measured.factors, measured.layout, []
    totals = [np.sqrt(np.diag(part.covariance)) for part in (repeated, factors)]
    fewer = repeated.ratios.expected_fewer(torch.from_numpy(measured.result.best_fit)).numpy()
    groups = {name: np.sqrt(np.diag(part)) for name, part in factors.group_covariance.items()}
    for s, place in enumerate(factors.measured):
        row = factors.rows[place]
        f = FLAVOURS.index(row.flavour)
        reference, chosen = int(layout.reference[f]), list(row.passing)
        shapes = [counts[reference, f, row.kinematic_bin] for counts in (truth, nominal)]
        shares = [float(shape[chosen].sum() / shape.sum()) if shape.sum() > 0 else 0.0 for shape in shapes]
        if shares[1] <= 0:
            continue
        rows.append(
            {
                "row": int(place),
                "flavour": row.flavour,
                "kinematic_bin": row.kinematic_bin,
                "kind": row.kind,
                "working_point": row.working_point,
                "bin": row.bin,
                "status": row.status,
                "expected_fewer": float(fewer[s]),
                "truth": shares[0] / shares[1],
                "efficiency": float(factors.efficiency_simulation[s]),
                "value": float(repeated.value[s]),
                "total": float(totals[0][s]),
                "unmoved_value": float(factors.value[s]),
                "unmoved_total": float(totals[1][s]),
                "groups": {name: float(sigma[s]) for name, sigma in groups.items()},
            }
        )
    return rows
