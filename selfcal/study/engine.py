"""Studies: every point once, the collected numbers side by side, and whether they are as expected."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcal.errors import ConfigError, SelfcalError
from selfcal.run.atomic import write_json
from selfcal.study.collecting import collected
from selfcal.study.executors import Executor
from selfcal.study.expectations import judged
from selfcal.study.faking import hidden_systematics
from selfcal.study.points import Point, Study, study_points
from selfcal.study.tasks import Outcome, Plan, Store, additions_of, plan, shared_collisions

SUMMARY = "summary.json"


def plan_study(
    study: Study,
    store: Store,
    configurations: Sequence[str] = (),
    assignments: Sequence[str] = (),
    *,
    write: bool = True,
) -> Plan:
    """The tasks of a study; ``configurations`` and ``assignments`` are laid over its base for all points.

    The digests of input files are kept in the store, unless ``write`` is false.

    Raises
    ------
    ConfigError
        If the configuration of a point is wrong.
    """
    shared = (shared_collisions(store), *assignments)
    points = study_points(study.config)
    names = (*study.base, *configurations)
    base = [str(Path(name).resolve()) if Path(name).exists() else name for name in names]
    every = [(*shared, *point.assignments) for point in points]
    return plan(base, every, study.config.until, additions_of(study.config), store, write=write)


def run_study(
    study: Study, folder: Path, store: Store, planned: Plan, execute: Executor, say: Callable[[str], None]
) -> dict[str, Any]:
    """Have all tasks done that are not, and write ``summary.json``, anew after every point.

    A point that fails is noted and the rest go on. Each point is a link in ``folder``, by its label, to its
    run in the store.

    Returns
    -------
    dict
        The summary: ``rows`` (point, run, values or error, what had to be done), ``checks``, ``as_expected``.

    Raises
    ------
    Interrupted
        When the user stops it; the points done so far are in ``summary.json``.
    """
    points = study_points(study.config)
    outcomes: dict[str, Outcome] = {}
    by_key: dict[str, list[Point]] = {}
    for point, key in zip(points, planned.keys, strict=True):
        if key is not None:
            by_key.setdefault(key, []).append(point)
    say(f"{study.config.name}: {len(points)} points, {len(planned.tasks)} tasks")
    for point, problem in zip(points, planned.problems, strict=True):
        if problem is not None:
            say(f"== {study.config.name}: {point.label}: failed: {problem}")
    summary = _summary(study, _rows(study, planned, outcomes, store))
    for number, outcome in enumerate(execute(planned.tasks, store), start=1):
        outcomes[outcome.key] = outcome
        names = [point.label for point in by_key.get(outcome.key, ())] or ["shared stages"]
        say(f"== {study.config.name} {number}/{len(planned.tasks)}: {'; '.join(names)}: {_ending(outcome)}")
        for point in by_key.get(outcome.key, ()):
            _link(folder / point.label, store.run(outcome.key))
        summary = _summary(study, _rows(study, planned, outcomes, store))
        write_json(folder / SUMMARY, summary)
    if study.config.faking is not None:
        summary["faking"] = hidden_systematics(
            study.config.faking, study.config.cases, summary["rows"], store.path
        )
    write_json(folder / SUMMARY, summary)
    return summary


def _ending(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"failed: {outcome.error}"
    return f"done ({', '.join(outcome.done)})" if outcome.done else "was there already"


def _link(place: Path, run: Path) -> None:
    """A relative link, so that study and store can be moved together."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        raise ConfigError(
            "there is a directory where a link to the run of a point belongs",
            where=str(place),
            fix="choose another --out",
        )
    place.unlink(missing_ok=True)
    place.symlink_to(os.path.relpath(run.resolve(), place.parent.resolve()))


def _rows(study: Study, planned: Plan, outcomes: Mapping[str, Outcome], store: Store) -> list[dict[str, Any]]:
    """One row for every point that is finished, in the order of the points."""
    rows = []
    for point, key, problem in zip(study_points(study.config), planned.keys, planned.problems, strict=True):
        outcome = outcomes.get(key) if key is not None else Outcome("", problem)
        if outcome is not None:
            rows.append(_row(study, point, key, outcome, store))
    return rows


def _row(study: Study, point: Point, key: str | None, outcome: Outcome, store: Store) -> dict[str, Any]:
    row: dict[str, Any] = {
        "point": point.identity,
        "run": point.label,
        "key": key,
        "done": list(outcome.done),
        "values": None,
        "error": outcome.error,
    }
    if key is not None and outcome.error is None:
        try:
            row["values"] = collected(store.run(key) / "results", study.config.columns)
        except SelfcalError as error:
            row["error"] = str(error)
    return row


def _summary(study: Study, rows: list[dict[str, Any]]) -> dict[str, Any]:
    checks = judged(study.config.checks, rows, study.config.cases)
    verdicts = [check["passed"] for check in checks]
    as_expected = None if not verdicts or None in verdicts else all(verdicts)
    return {
        "study": study.config.name,
        "description": study.config.description,
        "expected": study.config.expected,
        "columns": study.config.columns,
        "points": len(study_points(study.config)),
        "done": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "as_expected": False if False in verdicts else as_expected,
        "checks": checks,
        "rows": rows,
    }
