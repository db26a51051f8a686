"""The binned and the neural likelihood of the detector side by side, on pseudo-experiments of a finished run.

    python -m bench.detector_estimators RUN --experiments 50 --out FOLDER

Each experiment draws a detector and a composition from their priors, and jets with replacement from the
simulation of the train fold, smeared by it with the simulation's random numbers. Imperfections of the
generator for which the likelihoods have errors are drawn: those of histograms in their bins; for the neural
likelihood a multiplicity per region and a relative error of every bin of the tracks' histograms, as weights
of jets. Simulation and population are the same jets, so neither counts a statistical error of simulation
and the networks all judge all jets. Every experiment is a file: a stopped command continues. Printed are
coverage of 68 % intervals and pulls per parameter and method, their calibration (SBC, TARP), and seconds of
CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.command_line import run_script
from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import (
    NOMINAL,
    PARAMETERS,
    SmearingParameters,
    prior_widths,
    within_ranges,
)
from selfcal.data.flavours import FLAVOURS
from selfcal.data.jets import Jets
from selfcal.run.atomic import read_json, write_json
from selfcal.run.digests import canonical_digest
from selfcal.sbi.donors import Donors, collect_donors
from selfcal.sbi.emulator import QuadraticEmulator, fit_emulator, gaussian_design, n_terms
from selfcal.sbi.inference import RegionTracks, evaluate_detectors
from selfcal.sbi.jet_bank import sample_rows
from selfcal.sbi.jet_predictive import detector_in, shares_of
from selfcal.sbi.jet_scores import JetRows, joined
from selfcal.sbi.neural_inference import (
    Ensemble,
    SmearedMeans,
    observations_of,
    set_likelihood,
    train_ensemble,
)
from selfcal.sbi.posterior import Posterior
from selfcal.sbi.set_likelihood import SetLikelihood, fit_sets
from selfcal.sbi.set_posterior import calibration_summary, picked
from selfcal.sbi.smearing import smear
from selfcal.sbi.stage import region_tracks, thinned
from selfcal.sbi.summaries import count_samples
from selfcal.study.full_coverage import pull_rows
from selfcal.study.pseudo_inference import DetectorInference, prepare_inference, refined
from selfcal.study.pseudo_stage import finished_run
from selfcal.transport.control_regions import control_regions

Floats = NDArray[np.float64]
METHODS = ("binned", "neural")
DRAWS = 500
NEURAL_STAGES = ("value", "value", *("converged",) * 4)
"""How the emulator over the prior is renewed for the neural likelihood: its slopes stay, because those of few
jets between neighbouring detectors are mostly noise, which acts like information."""


@dataclass(frozen=True)
class Learnt:
    """The networks, what simulates their means, and the emulator of the means over the prior."""

    ensemble: Ensemble
    means: SmearedMeans
    emulator: QuadraticEmulator


@dataclass(frozen=True)
class Laboratory:
    """What all experiments share; ``sizes``: data jets per region."""

    regions: tuple[RegionTracks, ...]
    sizes: tuple[int, ...]
    config: InferenceConfig
    seed: int
    donors: Donors
    binned: DetectorInference | None
    neural: Learnt | None


def prepare(
    regions: Sequence[RegionTracks],
    sizes: Sequence[int],
    config: InferenceConfig,
    seed: int,
    methods: Sequence[str],
    scratch: Path,
) -> Laboratory:
    """Train the networks and simulate the emulator's detectors; both are kept in ``scratch``."""
    binned, learnt = None, None
    donors = collect_donors([jets for one in regions for jets in one.simulation], seed)
    if "binned" in methods:
        binned = prepare_inference(regions, donors, config, seed, config.points, scratch)
    if "neural" in methods:
        ensemble = train_ensemble(regions, config, seed, crossed=False, scratch=scratch)
        plain = joined([sample_rows(one.simulation, r, seed) for r, one in enumerate(regions)])
        means = SmearedMeans(regions, ensemble, plain, seed)
        nominal, widths = NOMINAL.vector(), prior_widths(config.prior_width)
        points = max(config.points, 2 * n_terms(len(PARAMETERS), cross=False))
        design = within_ranges(gaussian_design(nominal, widths, points, seed + 1))
        outputs = evaluate_detectors(means, design, scratch, means.identity(), 0, lambda _: None)
        learnt = Learnt(ensemble, means, fit_emulator(design, outputs, nominal, widths, cross=False))
    return Laboratory(tuple(regions), tuple(sizes), config, seed, donors, binned, learnt)


def run_experiment(laboratory: Laboratory, index: int) -> dict[str, Any]:
    """Truth, estimates and CPU seconds of experiment ``index``."""
    config = laboratory.config
    generator = np.random.default_rng([laboratory.seed, index])
    widths, nominal = prior_widths(config.prior_width), NOMINAL.vector()
    truth = within_ranges(nominal + widths * generator.standard_normal(len(PARAMETERS)))
    u = (truth - nominal) / widths
    plain: list[list[Jets]] = []
    seen: list[list[Jets]] = []
    for one, mean in zip(laboratory.regions, laboratory.sizes, strict=True):
        share = shares_of(one.fractions, one.relative_width, generator.standard_normal(len(one.fractions)))
        drawn = picked(generator, one.simulation, int(generator.poisson(mean)), share)
        multiplicity = float(generator.standard_normal())
        for found, theta in ((plain, truth), (seen, within_ranges(detector_in(u, multiplicity, config)))):
            parameters = SmearingParameters.from_vector(theta)
            # With the simulation's own random numbers: smeared anew, the population would be another one.
            smeared = [smear(jets, parameters, laboratory.donors, laboratory.seed) for jets in drawn]
            found.append([replace(jets, weight=np.ones(len(jets))) for jets in smeared])
    result: dict[str, Any] = {"index": index, "seconds": {}}
    if laboratory.binned is not None:
        begin = time.process_time()
        counts = [count_samples(members, with_spread=False).pooled() for members in plain]
        posterior = laboratory.binned.posterior(generator, counts, index)[0]
        result["binned"] = _rows(truth, posterior)
        result["seconds"]["binned"] = time.process_time() - begin
    if laboratory.neural is not None:
        begin = time.process_time()
        rows = [sample_rows(members, r, laboratory.seed) for r, members in enumerate(seen)]
        weighted = [with_drawn_weights(one, generator, config.modelling_error) for one in rows]
        posterior = neural_posterior(laboratory, laboratory.neural, joined(weighted))
        result["neural"] = _rows(truth, posterior)
        result["seconds"]["neural"] = time.process_time() - begin
    return result


def neural_posterior(laboratory: Laboratory, learnt: Learnt, data: JetRows) -> Posterior:
    """As in a run, but with the emulator over the prior, renewed where the fit ends."""
    config, means = laboratory.config, learnt.means
    widths, size = prior_widths(config.prior_width), len(PARAMETERS)
    numbers = size + len(FLAVOURS)
    variances = [np.zeros((numbers, numbers))] * len(laboratory.regions)
    observations = observations_of(laboratory.regions, data, learnt.ensemble, variances, config)

    def likelihood_with(emulator: QuadraticEmulator) -> SetLikelihood:
        # Its value is exact where the last fit ended, its slopes are those over the prior: so is its error.
        return set_likelihood(observations, config, replace(emulator, error=learnt.emulator.error))

    likelihood = likelihood_with(learnt.emulator)
    likelihood, fit = refined(
        means, likelihood_with, fit_sets, likelihood, fit_sets(likelihood), widths, NEURAL_STAGES
    )
    mean = SmearingParameters.from_vector(likelihood.theta(fit.best)).vector()
    return Posterior(mean, fit.covariance[:size, :size] * np.outer(widths, widths), widths)


def with_drawn_weights(rows: JetRows, generator: np.random.Generator, error: float) -> JetRows:
    """The jets with weights by which every bin of the tracks' histograms is off by a relative ``error``."""
    drawn = 1 + error * rows.counts.astype(np.float64) @ generator.standard_normal(rows.counts.shape[1])
    weight = rows.weight * np.maximum(drawn, 0.0)
    return replace(rows, weight=weight * len(weight) / weight.sum())


def _rows(truth: Floats, posterior: Posterior) -> dict[str, Any]:
    rows = [
        {"parameter": name, "value": float(mean), "truth": float(true), "total": float(sigma)}
        for name, mean, true, sigma in zip(
            PARAMETERS, posterior.mean, truth, posterior.uncertainty, strict=True
        )
    ]
    return {"detector": rows, "covariance": posterior.covariance.tolist()}


def table(experiments: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Pulls and coverage per method and parameter, calibration, and mean seconds."""
    found: dict[str, Any] = {}
    for method in methods:
        done = [one[method] for one in experiments]
        rows = pull_rows(done, "detector", ("parameter",))
        truth, mean = (
            np.array([[row[name] for row in one["detector"]] for one in done]) for name in ("truth", "value")
        )
        generator = np.random.default_rng(1)
        draws = np.stack(
            [
                generator.multivariate_normal(at, np.array(one["covariance"]), DRAWS)
                for at, one in zip(mean, done, strict=True)
            ]
        )
        found[method] = {
            "rows": rows,
            "coverage_68": float(np.mean([row["coverage_68"] for row in rows])),
            "calibration": calibration_summary(truth, draws, seed=1),
            "seconds": float(np.mean([one["seconds"][method] for one in experiments])),
        }
    return found


def text(found: dict[str, Any]) -> str:
    """The table for people."""
    lines = [f"{'':<28}" + "".join(f"{method + ': σ':>14}{'pull':>16}{'68 %':>7}" for method in found)]
    for i, name in enumerate(PARAMETERS):
        line = f"{name:<28}"
        for content in found.values():
            row = content["rows"][i]
            pull = f"{row['pull_mean']:+.2f} ± {row['pull_width']:.2f}"
            line += f"{row['total_mean']:>14.4f}{pull:>16}{row['coverage_68']:>7.2f}"
        lines.append(line)
    for method, content in found.items():
        calibrated = content["calibration"]
        wrong = [
            f"{name} {verdict}"
            for name, verdict in zip(PARAMETERS, calibrated["verdicts"], strict=True)
            if verdict != "exact"
        ]
        lines.append(
            f"{method}: {calibrated['experiments']} experiments, 68 % intervals cover "
            f"{content['coverage_68']:.3f} on average; TARP deviation {calibrated['tarp_deviation']:.3f} "
            f"(p = {calibrated['tarp_p_value']:.3f}); SBC: {', '.join(wrong) or 'exact'}; "
            f"{content['seconds']:.1f} s of CPU each"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do the experiments that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--experiments", type=int, default=3)
    parser.add_argument("--jets", type=int, default=10_000, help="simulated jets per region at most")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--networks", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = finished_run(options.run)
    tracks = region_tracks(context, control_regions(context))
    sizes = [sum(len(jets) for jets in one.data) for one in tracks]
    regions = [replace(one, simulation=thinned(one.simulation, options.jets)) for one in tracks]
    given = {"networks": options.networks, "steps": options.steps}
    neural = context.config.inference.neural.model_copy(update={k: v for k, v in given.items() if v})
    config = context.config.inference.model_copy(update={"neural": neural})
    digest = canonical_digest(
        {"config": config.model_dump(mode="json"), "jets": options.jets, "methods": options.methods}
    )[:16]
    begin = time.process_time()
    laboratory = prepare(regions, sizes, config, context.config.seed, options.methods, options.out / "shared")
    print(f"prepared in {time.process_time() - begin:.0f} s of CPU", flush=True)
    done = []
    for index in range(options.experiments):
        path = options.out / digest / f"experiment_{index:04d}.json"
        if not path.exists():
            write_json(path, run_experiment(laboratory, index))
        done.append(read_json(path))
        print(f"{index + 1}/{options.experiments}", flush=True)
    found = table(done, options.methods)
    write_json(options.out / digest / "table.json", found)
    print(text(found))


if __name__ == "__main__":
    run_script(main)
