"""How likely data that fitted nothing are, after maps fitted with other settings than those of a run.

    python -m bench.map_convergence RUN --set calibration.map.steps=300 --set calibration.map.steps=1000

Each ``--set`` is one line of the table (several assignments in one: ``--set "KEY=VALUE KEY=VALUE"``), behind
the line of the run's own configuration. Densities and maps are fitted as in the run, to the derive fold, from
initial weights of their own, around the run's bulk fractions; the likelihood is that of the data of the
measure fold, which neither has seen: what rises there is no noise of the fit. Nothing in the table looks at
the truth. The run's folder gets no file but those of its own derivation, where they were not there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from selfcal.config.loading import load_run
from selfcal.data.folds import Fold
from selfcal.run.progress import SilentReporter
from selfcal.study.execution import context_of
from selfcal.training.calibrate_stage import control_scores, prepare_derivation
from selfcal.transport.base_density import fit_base_densities
from selfcal.transport.calibration import load_calibration
from selfcal.transport.derivation_tasks import derive, fit_maps
from selfcal.transport.mixture import mixture_log_density
from selfcal.transport.sample import Sample, build_sample


@dataclass(frozen=True)
class Fitted:
    """ln L of the data that were fitted and of those that were not, and the fitted fractions (R, F)."""

    inside: float
    outside: float
    fractions: torch.Tensor


def refit_map(path: Path, assignments: tuple[str, ...] = ()) -> Fitted:
    """Densities and nominal maps of the run in ``path`` with other values of its configuration.

    Raises
    ------
    SelfcalError
        If the run is not calibrated, or the map is not fitted by likelihood.
    """
    context = context_of(load_run([path / "config.resolved.yaml"]), path, SilentReporter())
    torch.set_num_threads(1)
    regions = load_calibration(context.directory.results / "map").regions
    folder, frame = prepare_derivation(context, regions)
    derivation = derive(folder, 0, lambda done, total: None)
    config = load_run([path / "config.resolved.yaml"], assignments).config.calibration_in_use
    torch.manual_seed(derivation.seed)
    densities = fit_base_densities(
        derivation.simulation, len(regions), config.base_density, derivation.generator("densities")
    )
    fit = fit_maps(
        simulation=derivation.simulation,
        data=derivation.data,
        densities=densities,
        constraint=derivation.constraint(),
        config=config,
        generator=derivation.generator("mixture"),
        start=None,
        steps=config.map.steps,
        identities=derivation.undetermined(),
        pt_shape=derivation.composition().pt_shape,
    )
    unseen = build_sample(
        {region: control_scores(context, "data", region, (Fold.MEASURE,)) for region in regions},
        regions,
        frame,
    )
    kinematics = derivation.kinematic_fractions(derivation.simulation)

    def log_likelihood(data: Sample) -> float:
        with torch.no_grad():
            terms, _ = mixture_log_density(
                data, kinematics.log_prior(data), fit.fractions.log(), densities, fit.maps
            )
            return float((data.weight * torch.logsumexp(terms, dim=1)).sum())

    return Fitted(log_likelihood(derivation.data), log_likelihood(unseen), fit.fractions)


def main() -> None:
    """Read the command line, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print(
        "settings | ln L of the derive fold | of the measure fold, which fitted nothing | fractions by region"
    )
    for words in ("", *arguments.set):
        found = refit_map(arguments.run, tuple(words.split()))
        fractions = "; ".join(" ".join(f"{value:.4f}" for value in region) for region in found.fractions)
        print(
            words or "as it is",
            f"{found.inside:.1f}",
            f"{found.outside:.1f}",
            fractions,
            sep=" | ",
            flush=True,
        )


if __name__ == "__main__":
    main()
