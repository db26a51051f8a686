"""``selfcal study``: run, resume and list studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfcal.cli.execution import print_json, set_log_level
from selfcal.cli.options import Options
from selfcal.config.shipped import shipped_names
from selfcal.errors import ConfigError, SelfcalError
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import Reporter, reporter_for
from selfcal.study.engine import SUMMARY, plan_study, run_study
from selfcal.study.executors import Executor, in_process, with_dask
from selfcal.study.points import Study, load_study, study_points
from selfcal.study.tables import render_summary
from selfcal.study.tasks import Plan, Store


class StudyFailed(SelfcalError):
    """Points of a study failed; the others are in its summary."""


@dataclass(frozen=True)
class Where:
    """Where a study keeps its runs and who does the work: at most one of ``workers`` and ``scheduler``.

    ``finished`` are runs outside of the store whose stages may be taken over.
    """

    store: Path | None = None
    finished: tuple[Path, ...] = ()
    workers: int | None = None
    scheduler: str | None = None

    def executor(self, reporter: Reporter) -> Executor:
        """This process, processes of this machine, or the workers of a scheduler.

        Raises
        ------
        ConfigError
            If processes to start and a scheduler are both given.
        """
        if self.workers is not None and self.scheduler is not None:
            raise ConfigError("--workers starts a cluster, --scheduler uses one", expected="one of the two")
        if self.workers is None and self.scheduler is None:
            return in_process(reporter)
        return with_dask(self.workers, self.scheduler)


def execute_study(name: str, options: Options, where: Where, *, resume: bool) -> None:
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
    folder = options.out or Path("studies-out") / study.config.name
    store = Store(where.store or folder.parent / "store")
    if resume and not folder.is_dir():
        raise ConfigError("there is no study to resume", where=str(folder), fix="selfcal study run starts it")
    laid_over = (options.configurations, options.assignments)
    planned = plan_study(study, store, *laid_over, write=not options.dry_run)
    if options.dry_run:
        _show_plan(study, folder, planned, store, as_json=options.as_json)
        return
    for run in where.finished:
        store.include(run)
    reporter = reporter_for(options.quiet)
    execute = where.executor(reporter)
    with RunDirectory(folder).lock():
        summary = run_study(study, folder, store, planned, execute, reporter.say)
        from selfcal.report.study import build_study_report

        page = build_study_report(folder)[-1]
    if options.as_json:
        print_json(summary)
    elif not options.quiet:
        print(render_summary(summary))
        print(f"report: {page}")
    if summary["failed"]:
        raise StudyFailed(
            f"{summary['failed']} of {summary['points']} points failed",
            where=str(folder / SUMMARY),
            fix="see 'error' of each row; 'selfcal study resume' tries them again",
        )


def _show_plan(study: Study, folder: Path, planned: Plan, store: Store, *, as_json: bool) -> None:
    points = study_points(study.config)
    known = [key is not None and store.run(key).is_dir() for key in planned.keys]
    if as_json:
        print_json(
            {
                "study": study.config.name,
                "folder": str(folder),
                "store": str(store.path),
                "base": list(study.base),
                "points": [
                    {"run": point.label, "values": point.identity, "key": key, "begun": begun}
                    for point, key, begun in zip(points, planned.keys, known, strict=True)
                ],
                "tasks": len(planned.tasks),
                "collect": study.config.columns,
            }
        )
        return
    print(f"{study.config.name}: {study.config.description}\nbase: {', '.join(study.base)}\nfolder: {folder}")
    print(f"store: {store.path}")
    for point, begun, problem in zip(points, known, planned.problems, strict=True):
        state = f"  ({problem.splitlines()[0]})" if problem else "  (in the store)" if begun else ""
        print(f"  {point.label}{state}")
    shared = len(planned.tasks) - len(set(planned.keys) - {None})
    print(f"{len(planned.tasks)} tasks, of which {shared} are stages shared by points")
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
                    "points": len(study_points(study.config)),
                }
                for study in studies
            ]
        )
        return
    for study in studies:
        print(
            f"{study.config.name:<20} {len(study_points(study.config)):>4} points  {study.config.description}"
        )
