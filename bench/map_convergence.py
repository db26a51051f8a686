"""How likely data that fitted nothing are, after maps fitted with other settings than those of a run.

    python -m bench.map_convergence RUN --set calibration.map.steps=300 --set calibration.map.steps=1000

Each ``--set`` is one line of the table (several assignments in one: ``--set "KEY=VALUE KEY=VALUE"``), behind
the line of the run's own configuration; keys of ``calibration.map`` and ``calibration.base_density`` are
those that matter. Densities and maps are fitted as in the run, to the derive fold, from initial weights of
their own, around the run's bulk fractions; the likelihood is that of the data of the measure fold, which
neither has seen: what rises there is no noise of the fit. Nothing in the table looks at the truth. Nothing is
written.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from selfcal.config.loading import load_run
from selfcal.data.folds import Fold
from selfcal.errors import ConfigError, DataError
from selfcal.run.progress import SilentReporter
from selfcal.study.execution import context_of
from selfcal.training.calibrate_stage import control_scores
from selfcal.transport.base_density import fit_base_densities
from selfcal.transport.calibration import load_calibration
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import fit_maps
from selfcal.transport.mixture import mixture_log_density
from selfcal.transport.sample import Sample, build_sample


@dataclass(frozen=True)
class Fitted:
    """ln L of the data that were fitted and of those that were not, and the fitted fractions (R, F)."""

    inside: float
    outside: float
    fractions: torch.Tensor


def refit_map(path: Path, assignments: tuple[str, ...] = ()) -> Fitted:
    """Densities and nominal maps of the run in ``path`` with other values of their configuration.

    Raises
    ------
    ConfigError
        If the map is not fitted by likelihood.
    DataError
        If the run is not calibrated.
    """
    context = context_of(load_run([path / "config.resolved.yaml"]), path, SilentReporter())
    calibration = load_calibration(context.directory.results / "map")
    regions = calibration.regions
    folders = sorted((context.directory.checkpoints / "derivation").glob("*/"))
    if len(folders) != 1:
        raise DataError("no finished calibration", where=str(path), fix="run 'selfcal calibrate' first")
    derivation = Derivation.open(folders[0])
    config = load_run([path / "config.resolved.yaml"], assignments).config.calibration_in_use
    if not config.map.by_likelihood:
        raise ConfigError(
            "the likelihood of data is known for maps with an inverse that are fitted by it",
            where="calibration.map",
            expected="a 'family' with an inverse, and not 'fit_by: distance'",
        )
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
        calibration.frame,
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
