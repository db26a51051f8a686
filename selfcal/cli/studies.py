"""``selfcal study``: run, resume and list studies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from selfcal.cli.execution import execute, print_json, set_log_level
from selfcal.cli.options import Options
from selfcal.config.loading import load_run
from selfcal.config.shipped import shipped_names
from selfcal.errors import ConfigError, SelfcalError
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import reporter_for
from selfcal.study.engine import Study, load_study, render_summary, run_study, study_points


class StudyFailed(SelfcalError):
    """Points of a study failed; the others are in its summary."""


def execute_study(name: str, options: Options, *, resume: bool) -> None:
    """Run all points of a study that are not done yet.

    Raises
    ------
    ConfigError
        If the study or one of its points is wrong (found before anything runs), or ``resume`` finds none.
    StudyFailed
        At the end, if a point failed.
    """
    set_log_level(options.verbose)
    study = load_study(name)
    points = study_points(study)
    for point in points:
        load_run([study.base], (*options.assignments, *point.assignments))
    folder = options.out or Path("studies-out") / study.config.name
    if options.dry_run:
        _show_plan(study, folder, as_json=options.as_json)
        return
    if resume and not folder.is_dir():
        raise ConfigError("there is no study to resume", where=str(folder), fix="selfcal study run starts it")
    reporter = reporter_for(options.quiet)
    # Points that differ in the detector or later share the collisions, the slowest part.
    shared = f"generate.cache={json.dumps(str(folder / 'collisions'))}"

    def run_point(assignments: tuple[str, ...], directory: Path) -> None:
        execute(
            "run",
            replace(
                options,
                configurations=(study.base,),
                assignments=(shared, *options.assignments, *assignments),
                out=directory,
                as_json=False,
            ),
            until=study.config.until,
        )

    with RunDirectory(folder).lock():
        summary = run_study(study, folder, run_point, reporter.say)
    if options.as_json:
        print_json(summary)
    elif not options.quiet:
        print(render_summary(summary))
    if summary["failed"]:
        raise StudyFailed(
            f"{summary['failed']} of {summary['points']} points failed",
            where=str(folder / "summary.json"),
            fix="see 'error' of each row; 'selfcal study resume' tries them again",
        )


def _show_plan(study: Study, folder: Path, *, as_json: bool) -> None:
    points = study_points(study)
    if as_json:
        print_json(
            {
                "study": study.config.name,
                "folder": str(folder),
                "base": study.base,
                "points": [{"run": point.label, "values": dict(point.values)} for point in points],
                "collect": list(study.config.collect),
            }
        )
        return
    print(f"{study.config.name}: {study.config.description}\nbase: {study.base}\nfolder: {folder}")
    for point in points:
        print(f"  {point.label}")
    print("dry run: nothing was written")


def list_studies(*, as_json: bool) -> None:
    """Print the shipped studies with their descriptions."""
    studies = [load_study(name) for name in shipped_names("studies")]
    if as_json:
        print_json(
            [
                {
                    "name": study.config.name,
                    "description": study.config.description,
                    "points": len(study_points(study)),
                }
                for study in studies
            ]
        )
        return
    for study in studies:
        print(f"{study.config.name:<20} {len(study_points(study)):>4} points  {study.config.description}")
