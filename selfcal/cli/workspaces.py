"""``selfcal fit --workspace``: a pyhf workspace in, its best fit out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcal.cli.execution import print_json, refuse_existing, set_log_level
from selfcal.cli.options import Options
from selfcal.errors import ConfigError


def execute_workspace_fit(
    path: Path, measurement: str | None, options: Options, *, force: bool, codes: Mapping[str, Any]
) -> None:
    """Fit the workspace and print the outcome; ``--out FILE`` keeps it as JSON.

    ``codes`` are the interpolation codes that are not the default, as ``HistFactory`` takes them.

    Raises
    ------
    ConfigError
        If a run configuration is given too, or the file of ``--out`` exists already.
    """
    if options.configurations or options.assignments:
        raise ConfigError(
            "--workspace takes no run configuration",
            fix="leave out CONFIG, --config and --set, or --workspace",
        )
    refuse_existing(options.out, "--out")
    set_log_level(options.verbose)
    from selfcal.likelihood.histfactory import HistFactory
    from selfcal.likelihood.workspace_file import read_workspace
    from selfcal.likelihood.workspace_fit import fit_in_words, fit_workspace, workspace_facts
    from selfcal.run.atomic import write_json

    workspace = read_workspace(path)
    if options.dry_run:
        facts = workspace_facts(HistFactory(workspace, measurement, **codes))
        if options.as_json:
            print_json({"workspace": str(path), **facts})
        else:
            print(", ".join(f"{key} {value}" for key, value in facts.items()))
        return
    seed = 1 if options.seed is None else options.seed
    fitted = fit_workspace(workspace, measurement, seed, force=force, codes=codes)
    outcome = {"workspace": str(path), **fitted}
    if options.out is not None:
        write_json(options.out, outcome)
    if options.as_json:
        print_json(outcome)
    elif not options.quiet:
        print(fit_in_words(outcome))
