"""``selfcal histograms``: what two histograms of a significance say of the detector."""

from __future__ import annotations

from pathlib import Path

from selfcal.cli.execution import print_json, refuse_existing


def infer_histograms(
    data: Path, simulation: Path, *, modelling_error: float, plot: Path | None, as_json: bool
) -> None:
    """Print one line per histogram, or JSON; with ``plot`` draw them.

    Raises
    ------
    ConfigError
        If the file of ``plot`` exists already.
    """
    from selfcal.sbi.histogram_inference import PARAMETER_NAMES, as_json_rows, infer_from_files

    refuse_existing(plot, "--plot")
    found = infer_from_files(data, simulation, modelling_error)
    if plot is not None:
        from selfcal.report.figures.resolution import draw_resolution

        draw_resolution(found, plot)
    if as_json:
        print_json({"histograms": as_json_rows(found)})
        return
    print(f"{'histogram':<14}" + "".join(f"{name:>20}" for name in PARAMETER_NAMES) + f"{'p':>9}")
    for one in found:
        values = [f"{mean:.3f} ± {sigma:.3f}" for mean, sigma in zip(one.mean, one.sigma, strict=True)]
        print(f"{one.name:<14}" + "".join(f"{value:>20}" for value in values) + f"{one.p_value:>9.2g}")


def compare_with_prior(data: Path, simulation: Path, *, plot: Path | None, as_json: bool) -> None:
    """Print data over simulation and what the priors predict, one line per histogram, or JSON.

    Raises
    ------
    ConfigError
        If the file of ``plot`` exists already.
    """
    from selfcal.sbi.prior_predictive import prior_predictive_of_files

    refuse_existing(plot, "--plot")
    found = prior_predictive_of_files(data, simulation)
    if plot is not None:
        from selfcal.report.figures.prior_predictive import draw_prior_predictive

        draw_prior_predictive(found, plot)
    if as_json:
        rows = [
            {"name": one.name, "core": one.core, "tail": one.tail, "intervals": one.intervals}
            for one in found
        ]
        print_json({"prior_predictive": rows})
        return
    print(
        f"{'histogram':<14}{'core':>8}{'95 % of the prior':>20}{'tail':>9}{'95 % of the prior':>20}  covered"
    )
    for one in found:
        core, tail = (f"{low:.3f} to {high:.3f}" for low, high in one.intervals)
        covered = "yes" if all(one.covered) else "no"
        print(f"{one.name:<14}{one.core:>8.3f}{core:>20}{one.tail:>9.3f}{tail:>20}  {covered}")
