"""The work of a study as independent tasks, each addressed by what its result is made of.

The key of a task is the hash of the fingerprints of its stages, which cover configuration, inputs and
version (:mod:`selfcal.run.stages`), and of what is done with the finished run. Its result is the run
directory ``store/<key>``: studies that share a store share the results.

Points that agree on some stage share it: that stage, with those before it, is a task of its own, and the
tasks that follow take its outputs over (:mod:`selfcal.run.adoption`). It is known by this one stage: points
with the same simulation and other data have one training, with the data of any of them beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from selfcal.config.loading import LoadedRun, load_run
from selfcal.config.study import StudyConfig
from selfcal.errors import ConfigError, DataError, Interrupted, SelfcalError
from selfcal.run.adoption import has_finished, keep_input_digests, share_files
from selfcal.run.digests import INPUT_DIGESTS, InputDigests, canonical_digest
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import Reporter, SilentReporter
from selfcal.run.stages import input_digests, stage_origins
from selfcal.study.execution import context_of, run_loaded
from selfcal.study.pipeline import pipeline

KEY_DIGITS = 20
"""Hexadecimal digits of a key that name its folder: 80 bits, no collisions among any number of runs."""

ADDITIONS: dict[str, str] = {
    "coverage": "selfcal.study.coverage:run_coverage",
    "pseudo_experiments": "selfcal.study.pseudo_stage:run_pseudo_experiments",
    "detector_treatments": "selfcal.study.detector_stage:run_detector_treatments",
}
"""What a study may do with every finished run, by its key in the study file: ``module:function``, called
with the run's directory, its part of the study's configuration and where to say what it does. It writes
``results/<key>.json``, unless that is there and made of the same."""

_ONE_AT_A_TIME = threading.Lock()
"""Stages count threads and name temporary files per process: a process does one task at a time."""


@dataclass(frozen=True)
class Task:
    """One run to be made: plain values, so that it can travel to another machine.

    Attributes
    ----------
    key : content address.
    configurations, assignments : what :func:`selfcal.config.loading.load_run` reads; paths are absolute.
    until : last stage; None: all of them.
    additions : what is done with the finished run, as JSON by name (see :data:`ADDITIONS`).
    parent : key of the task whose stages this one takes over.
    shared : whether only what the last stage makes is wanted, for the tasks that follow.
    """

    key: str
    configurations: tuple[str, ...]
    assignments: tuple[str, ...]
    until: str | None = None
    additions: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a task ended: ``error`` in words, and what had to be ``done`` (nothing where all was there)."""

    key: str
    error: str | None = None
    done: tuple[str, ...] = ()


class Store:
    """Run directories by key, with what they share: collisions and digests of input files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, key: str) -> Path:
        """The run directory of a task."""
        return self.path / key

    @property
    def collisions(self) -> Path:
        """Generated collisions, which runs that differ in the detector or later share."""
        return self.path / "collisions"

    @property
    def known_inputs(self) -> Path:
        """SHA-256 of input files."""
        return self.path / INPUT_DIGESTS

    def include(self, run: Path) -> None:
        """Let studies take over what a run outside of the store has finished, and the collisions it has made.

        The store gets a link to it.

        Raises
        ------
        ConfigError
            If there is no run.
        """
        directory = RunDirectory(run.resolve())
        if not directory.stages.is_dir():
            raise ConfigError(
                "no run to take stages from",
                where=str(run),
                expected="the directory of a run, as --out gave it",
            )
        if directory.path.parent == self.path.resolve():
            return
        place = self.path / canonical_digest(str(directory.path))[:KEY_DIGITS]
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(directory.path, self.path.resolve()), target_is_directory=True)
        share_files(directory.cache, self.collisions)

    def runs(self) -> list[RunDirectory]:
        """All runs, those of other studies and linked ones included."""
        if not self.path.is_dir():
            return []
        return [RunDirectory(path) for path in sorted(self.path.iterdir()) if (path / "stages").is_dir()]


def additions_of(config: StudyConfig) -> dict[str, Any]:
    """What a study does with every finished run."""
    wanted = {name: getattr(config, name) for name in ADDITIONS}
    return {name: part.model_dump(mode="json") for name, part in wanted.items() if part is not None}


def _fingerprints(
    loaded: LoadedRun, until: str | None, digests: InputDigests, store: Store
) -> dict[str, str]:
    """Fingerprint of every stage of the run, in order."""
    context = context_of(loaded, store.run("planned"), SilentReporter())
    stages = pipeline(context, until)
    _, inputs = input_digests(stages, context, digests)
    origins = stage_origins(stages, context, inputs)
    return {name: origin.fingerprint for name, origin in origins.items()}


def _key(fingerprints: Sequence[str], additions: Mapping[str, Any]) -> str:
    return canonical_digest({"stages": list(fingerprints), "additions": dict(additions)})[:KEY_DIGITS]


@dataclass(frozen=True)
class Plan:
    """Tasks in an order in which they can run, the key of each point (None where it cannot be planned), and
    why."""

    tasks: tuple[Task, ...]
    keys: tuple[str | None, ...]
    problems: tuple[str | None, ...]


def plan(
    configurations: Sequence[str],
    assignments: Iterable[tuple[str, ...]],
    until: str | None,
    additions: Mapping[str, Any],
    store: Store,
    *,
    write: bool = True,
) -> Plan:
    """The tasks of the points with these ``assignments``, and those of the stages that several points share.

    A point whose inputs are missing is none of them; its problem is given instead.

    Raises
    ------
    ConfigError
        If the configuration of a point is wrong, or its run has no stage ``until``.
    """
    digests = InputDigests(store.known_inputs)
    keys: list[str | None] = []
    problems: list[str | None] = []
    chains: dict[str, tuple[tuple[str, ...], list[tuple[str, str]]]] = {}
    for assigned in assignments:
        try:
            found = list(_fingerprints(load_run(configurations, assigned), until, digests, store).items())
        except DataError as error:
            keys.append(None)
            problems.append(str(error))
            continue
        key = _key([fingerprint for _, fingerprint in found], additions)
        keys.append(key)
        problems.append(None)
        chains.setdefault(key, (assigned, found))
    if write and any(keys):
        digests.save()
    return Plan(tuple(_tasks(configurations, chains, until, additions)), tuple(keys), tuple(problems))


def _tasks(
    configurations: Sequence[str],
    chains: Mapping[str, tuple[tuple[str, ...], list[tuple[str, str]]]],
    until: str | None,
    additions: Mapping[str, Any],
) -> list[Task]:
    users: dict[str, set[str]] = {}
    for key, (_, chain) in chains.items():
        for _, fingerprint in chain:
            users.setdefault(fingerprint, set()).add(key)
    tasks: dict[str, Task] = {}
    for key, (assigned, chain) in chains.items():
        parent: str | None = None
        followers = [len(users[after]) for _, after in chain[1:]] + [1]
        for (stage, here), after in zip(chain, followers, strict=True):
            # Shared by more points than the next stage: here their ways part.
            if len(users[here]) > after:
                shared = _key([here], {})
                task = Task(shared, tuple(configurations), assigned, stage, {}, parent, shared=True)
                tasks.setdefault(shared, task)
                parent = shared
        tasks[key] = Task(key, tuple(configurations), assigned, until, additions, parent)
    return list(tasks.values())


def run_task(
    task: Task, store: Store, before: Outcome | None = None, reporter: Reporter | None = None
) -> Outcome:
    """Make the run of a task, as far as it is not there yet; a failure becomes part of the outcome.

    ``before`` is the outcome of the task's parent.

    Raises
    ------
    Interrupted
        On Ctrl-C or SIGTERM.
    """
    if before is not None and before.error is not None:
        return Outcome(task.key, before.error)
    try:
        with _ONE_AT_A_TIME:
            return Outcome(task.key, None, tuple(_run(task, store, reporter or SilentReporter())))
    except Interrupted:
        raise
    except SelfcalError as error:
        return Outcome(task.key, str(error))
    except Exception as error:  # noqa: BLE001 - one task must not take the others with it
        return Outcome(task.key, f"unexpected {type(error).__name__}: {error}")


def _run(task: Task, store: Store, reporter: Reporter) -> list[str]:
    loaded = load_run(task.configurations, task.assignments)
    directory = RunDirectory(store.run(task.key))
    context = context_of(loaded, directory.path, reporter)
    with directory.lock(wait=True):
        keep_input_digests(store.known_inputs, directory)
        digests = InputDigests(store.known_inputs)
        found = list(_fingerprints(loaded, task.until, digests, store).values())
        if _key(found[-1:] if task.shared else found, task.additions) != task.key:
            raise DataError(
                "the configuration, the input files or selfcal itself is not what the study was planned with",
                where=str(directory.path),
                fix="let every worker see the same files and the same version, or start the study again",
            )
        stages = pipeline(context, task.until)
        others = store.runs()
        if task.shared and any(has_finished(stages, replace(context, directory=other)) for other in others):
            return []
        command = ["selfcal", "run", *task.configurations]
        command += [word for one in task.assignments for word in ("--set", one)]
        done = run_loaded(loaded, context, stages, command, others)
        for name, part in task.additions.items():
            done += _add(name, part, directory, reporter)
    return done


def _add(name: str, part: Any, directory: RunDirectory, reporter: Reporter) -> list[str]:
    """Do one addition; its name if it had to be done, nothing if the run had it already."""
    module, _, function = ADDITIONS[name].partition(":")
    add: Callable[[Path, Any, Callable[[str], None]], Path] = getattr(
        importlib.import_module(module), function
    )
    target = directory.results / f"{name}.json"
    before = target.stat().st_mtime_ns if target.exists() else None
    annotation: Any = StudyConfig.model_fields[name].annotation
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    add(directory.path, adapter.validate_python(part), reporter.say)
    return [name] if target.stat().st_mtime_ns != before else []


def shared_collisions(store: Store) -> str:
    """The assignment by which all runs keep their collisions in one place."""
    return f"generate.cache={json.dumps(str(store.collisions))}"
