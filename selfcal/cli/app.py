"""``selfcal``: the verbs, and how errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import selfcal
from selfcal.cli import options as opt
from selfcal.cli.examples import examples
from selfcal.config.schema import SchemaKind
from selfcal.errors import ConfigError, DataError, Interrupted, SelfcalError, is_out_of_memory
from selfcal.study.pipeline import DESCRIPTIONS

_ORDER = (
    *(
        "init",
        "inspect",
        "validate",
        "run",
        "generate",
        "train",
        "infer",
        "calibrate",
        "fit",
        "efficiencies",
        "profile",
        "export",
        "report",
    ),
    *("predict", "study", "histograms", "tensorboard", "schema"),
)
"""The verbs in the order in which a user meets them."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="selfcal",
    cls=_InOrder,
    help="Train a jet-flavour tagger together with its own calibration.",
    epilog=examples(""),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_KEYBOARD_INTERRUPT = 130
_CANNOT_PRINT = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
study_app = typer.Typer(
    help="Run the same analysis at many points.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(study_app, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"selfcal {selfcal.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command(epilog=examples("init"))
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    dry_run: opt.DryRunOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write a starter project: configuration, data cards, README."""
    del debug
    from selfcal.cli.project import init_project

    init_project(directory, dry_run=dry_run, as_json=as_json, quiet=quiet)


CardsOrConfigurations = Annotated[
    list[str] | None,
    typer.Argument(metavar="CARD_OR_CONFIG...", help="Data cards, or run configurations; YAML."),
]


@app.command(epilog=examples("validate"))
@opt.with_options(configurations=CardsOrConfigurations)
def validate(options: opt.Options) -> None:
    """Check data cards and their files, or every dataset of a run."""
    from selfcal.cli.checking import validate_cards_or_run

    validate_cards_or_run(options)


def _stage_verb(name: str) -> Callable[..., None]:
    @opt.with_options()
    def verb(options: opt.Options) -> None:
        from selfcal.cli.execution import execute

        execute(name, options)

    return verb


for _description in DESCRIPTIONS:
    if _description.name not in {"validate", "calibrate", "fit", "report"}:
        _name = _description.name
        app.command(_name, help=_description.summary, epilog=examples(_name))(_stage_verb(_name))


def _summary(name: str) -> str:
    return next(one.summary for one in DESCRIPTIONS if one.name == name)


@app.command(
    help=f"{_summary('calibrate')} With --evaluate, judge families of maps side by side.",
    epilog=examples("calibrate"),
)
@opt.with_options()
def calibrate(
    options: opt.Options,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Also derive the maps of other families, and compare all with the truth of pseudo-data.",
        ),
    ] = False,
) -> None:
    """Fit composition and calibration map."""
    from selfcal.cli.execution import execute

    execute("calibrate", options, evaluate=evaluate)


@app.command(help=f"{_summary('fit')} Or fit any pyhf workspace (--workspace).", epilog=examples("fit"))
@opt.with_options()
def fit(
    options: opt.Options,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", "-w", metavar="FILE", help="A pyhf workspace, .json or .json.gz."),
    ] = None,
    measurement: Annotated[
        str | None,
        typer.Option("--measurement", "-m", metavar="NAME", help="Of the workspace (default: its first)."),
    ] = None,
    normsys_code: Annotated[
        Literal["code4", "code1"] | None,
        typer.Option("--normsys-code", help="Interpolation of normsys in the workspace (default: code4)."),
    ] = None,
    histosys_code: Annotated[
        Literal["code4p", "code0"] | None,
        typer.Option("--histosys-code", help="Interpolation of histosys in the workspace (default: code4p)."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write results of a fit that did not converge (fit.force).")
    ] = False,
) -> None:
    """Measure scale factors, or fit a workspace."""
    if workspace is not None:
        from selfcal.cli.workspaces import execute_workspace_fit

        codes = {"normsys_code": normsys_code, "histosys_code": histosys_code}
        given = {name: code for name, code in codes.items() if code is not None}
        execute_workspace_fit(workspace, measurement, options, force=force, codes=given)
        return
    if (measurement, normsys_code, histosys_code) != (None, None, None):
        raise ConfigError(
            "--measurement, --normsys-code and --histosys-code are for --workspace",
            expected="--workspace FILE",
        )
    from selfcal.cli.execution import execute

    if force:
        options = replace(options, assignments=(*options.assignments, "fit.force=true"))
    execute("fit", options)


ConfigurationsOrRuns = Annotated[
    list[str] | None,
    typer.Argument(metavar="CONFIG...|RUN_A RUN_B", help="As for 'run', or the directories of two runs."),
]


@app.command(
    help=f"{_summary('report')} Or compare two runs: selfcal report RUN_A RUN_B.", epilog=examples("report")
)
@opt.with_options(configurations=ConfigurationsOrRuns)
def report(options: opt.Options) -> None:
    """Write the report of a run, or of two runs side by side."""
    from selfcal.cli.comparing import are_runs, execute_comparison
    from selfcal.cli.execution import execute

    if are_runs(options.configurations):
        execute_comparison(options)
    else:
        execute("report", options)


@app.command(epilog=examples("run"), short_help="Do everything that is not done yet: the stages below.")
@opt.with_options()
def run(
    options: opt.Options,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Only go on with a run that exists (finished stages are always kept)."),
    ] = False,
) -> None:
    """Do everything: generate, validate, train, infer (if enabled), calibrate, fit, export, report."""
    from selfcal.cli.execution import execute

    execute("run", options, resume=resume)


@app.command(epilog=examples("inspect"), short_help="Say what a file holds, and guess its data card.")
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of any format with jets.")],
    collection: Annotated[
        str | None, typer.Option("--collection", metavar="NAME", help="Jet collection of a ROOT file.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="Write the guessed data card there.")
    ] = None,
    as_json: opt.JsonOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Say what a file holds: flavours, ranges, taggers, and a guess at its data card."""
    del debug
    from selfcal.cli.inspection import inspect_files

    inspect_files(files, collection=collection, card=card, as_json=as_json)


@app.command(epilog=examples("predict"), short_help="Write the tagger's scores into copies of files.")
def predict(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory with a tagger.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files with jets and tracks.")],
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="Data card with field names and units.")
    ] = None,
    friend: Annotated[
        bool, typer.Option("--friend", help="Write keys and scores alone, not a copy of the file.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder (default: RUN/predictions).")
    ] = None,
    dry_run: opt.DryRunOption = False,
    as_json: opt.JsonOption = False,
    quiet: opt.QuietOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Write the tagger's scores into copies of files, or into friend files."""
    del debug
    from selfcal.cli.prediction import predict_files

    predict_files(
        run_directory, files, card=card, friend=friend, out=out, dry_run=dry_run, as_json=as_json, quiet=quiet
    )


@app.command(epilog=examples("tensorboard"), short_help="Metrics of a run for TensorBoard.")
def tensorboard(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory with metrics.jsonl.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder (default: RUN/tensorboard).")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as metrics arrive, until interrupted.")
    ] = False,
    as_json: opt.JsonOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Copy the metrics of a run into event files for TensorBoard."""
    del debug
    from selfcal.cli.tensorboard import write_tensorboard

    write_tensorboard(run_directory, out=out, follow=follow, as_json=as_json)


@app.command(epilog=examples("schema"), short_help="Print a JSON Schema, for editors.")
def schema(
    kind: Annotated[str, typer.Argument(metavar="run|card|study", help="Which kind of file.")] = "run",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there.")] = None,
    debug: opt.DebugOption = False,
) -> None:
    """Print the JSON Schema of run configurations, data cards or studies."""
    del debug
    from typing import get_args

    from selfcal.cli.execution import print_json, refuse_existing
    from selfcal.config.schema import json_schema
    from selfcal.run.atomic import write_json

    kinds: tuple[SchemaKind, ...] = get_args(SchemaKind)
    chosen = next((one for one in kinds if one == kind), None)
    if chosen is None:
        raise ConfigError(f"no schema for '{kind}'", expected=f"one of {', '.join(kinds)}")
    if out is None:
        print_json(json_schema(chosen))
        return
    refuse_existing(out, "--out")
    write_json(out, json_schema(chosen))


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Study file (YAML), or the name of a shipped one.",
        autocompletion=opt.shipped_completion("studies"),
    ),
]
StudyConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Run configuration laid over the base of every point; repeatable.",
        autocompletion=opt.shipped_completion("configs"),
    ),
]
StudyOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Study directory (default: studies-out/<name>)."),
]


StudyStore = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Runs of all studies (default: 'store' beside --out)."),
]
StudyFrom = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="RUN",
        help="A run whose finished stages and collisions are taken over where they fit; repeatable.",
    ),
]
StudyWorkers = Annotated[
    int | None, typer.Option("--workers", "-w", min=1, help="Run points in this many processes (Dask).")
]
StudyScheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", metavar="ADDRESS", help="Run points on a Dask cluster, e.g. tcp://host:8786."
    ),
]


@study_app.command("run", epilog=examples("study run"))
@opt.with_options("configurations", "seed", config=StudyConfig, out=StudyOut)
def study_run(
    options: opt.Options,
    study: StudyArgument,
    store: StudyStore = None,
    finished: StudyFrom = None,
    workers: StudyWorkers = None,
    scheduler: StudyScheduler = None,
) -> None:
    """Run every point of a study; points that are done, by this or another study, are not done again."""
    from selfcal.cli.studies import Where, execute_study

    execute_study(study, options, Where(store, tuple(finished or ()), workers, scheduler), resume=False)


@study_app.command("resume", epilog=examples("study resume"))
@opt.with_options("configurations", "seed", config=StudyConfig, out=StudyOut)
def study_resume(
    options: opt.Options,
    study: StudyArgument,
    store: StudyStore = None,
    finished: StudyFrom = None,
    workers: StudyWorkers = None,
    scheduler: StudyScheduler = None,
) -> None:
    """Go on with a study that was interrupted, or try its failed points again."""
    from selfcal.cli.studies import Where, execute_study

    execute_study(study, options, Where(store, tuple(finished or ()), workers, scheduler), resume=True)


@study_app.command("list", epilog=examples("study list"))
def study_list(as_json: opt.JsonOption = False, debug: opt.DebugOption = False) -> None:
    """List the studies that come with selfcal."""
    del debug
    from selfcal.cli.studies import list_studies

    list_studies(as_json=as_json)


@app.command(epilog=examples("histograms"), short_help="Infer the detector from published histograms.")
def histograms(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="ROOT file with histograms of data.")],
    simulation: Annotated[Path, typer.Argument(metavar="SIMULATION", help="The same of simulation.")],
    modelling_error: Annotated[
        float, typer.Option("--modelling-error", min=0.0, help="Relative error of each bin of the model.")
    ] = 0.01,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw core and tails (PDF, PNG, SVG).")
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="No inference: what the priors predict, beside data.")
    ] = False,
    as_json: opt.JsonOption = False,
    debug: opt.DebugOption = False,
) -> None:
    """Infer core and tails of a detector from histograms of a significance (its negative side)."""
    del debug
    from selfcal.cli.histograms import compare_with_prior, infer_histograms

    if prior:
        compare_with_prior(data, simulation, plot=plot, as_json=as_json)
        return
    infer_histograms(data, simulation, modelling_error=modelling_error, plot=plot, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``selfcal`` script; returns the exit code (see ``selfcal.errors``)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        with _told_in_full():
            app(words, prog_name="selfcal", standalone_mode=True)
    except SystemExit as ending:
        if ending.code == _KEYBOARD_INTERRUPT:
            return Interrupted.exit_code
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except SelfcalError as error:
        return _failed(error, words)
    except Exception as error:  # noqa: BLE001 - the last resort turns any failure into one line
        if is_out_of_memory(error):
            fix = "run the same command again with more memory, or on fewer or smaller files"
            return _failed(Interrupted("memory ran out", fix=fix), words)
        if debug:
            traceback.print_exc()
        else:
            print(f"selfcal: unexpected {type(error).__name__}: {error}", file=sys.stderr)
            print("  fix:      run the same command with --debug and report what it prints", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _told_in_full() -> Iterator[None]:
    """What a verb prints has arrived where standard output leads, or that is an error of its own."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_PRINT:
            raise
        # Python flushes once more at its end, and would fail again.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise DataError(
            f"cannot write: {error.strerror}",
            where="standard output",
            fix="check what it leads to; files that were written are whole",
        ) from error


def _failed(error: SelfcalError, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exception(error)
    elif isinstance(error, Interrupted):
        print(f"selfcal: {error}", file=sys.stderr)
    else:
        print(f"selfcal: error: {error}", file=sys.stderr)
    if "--json" in words:
        from selfcal.cli.execution import error_json, print_json

        print_json(error_json(error))
    return error.exit_code
