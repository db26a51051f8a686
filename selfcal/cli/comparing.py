"""``selfcal report RUN_A RUN_B``: two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfcal.cli.execution import print_json, set_log_level
from selfcal.cli.options import Options
from selfcal.errors import ConfigError


def are_runs(names: Sequence[str]) -> bool:
    """Whether the arguments of ``report`` are directories, not configurations."""
    return any(Path(name).is_dir() for name in names)


def execute_comparison(options: Options) -> None:
    """Write the comparison of the two runs that ``options.configurations`` names.

    Raises
    ------
    ConfigError
        If they are not two directories, or there are options that concern the making of a run.
    """
    names = options.configurations
    if len(names) != 2 or not all(Path(name).is_dir() for name in names):
        raise ConfigError(
            f"cannot compare {' '.join(names)}",
            expected="the directories of two runs, or a configuration",
            fix="selfcal report RUN_A RUN_B; for the report of one run: selfcal report CONFIG --out RUN",
        )
    if options.assignments or options.seed is not None:
        raise ConfigError("--set and --seed change no finished run", fix="leave them out")
    set_log_level(options.verbose)
    first, second = (Path(name) for name in names)
    folder = options.out or Path("comparisons") / f"{first.absolute().name}-{second.absolute().name}"
    if options.dry_run:
        print(f"would write {folder / 'report.html'}\ndry run: nothing was written")
        return
    from selfcal.report.comparison import compare_runs

    written = compare_runs(first, second, folder)
    if options.as_json:
        print_json({"report": str(written[-1]), "figures": [str(path) for path in written[:-1]]})
    elif not options.quiet:
        print(f"wrote {written[-1]}")
