"""Stages of a run: each remembers what it was made from, and runs again only when that changed.

The fingerprint of a stage is

    SHA-256( name, version of selfcal, configuration it depends on,
             fingerprints of the stages before it, SHA-256 of its input files )

as canonical JSON. A stage that reads some of the datasets only has the fingerprint of a run that has no
others: a tagger is not trained anew because other data are to be calibrated.

After a stage succeeds, ``stages/<name>.json`` keeps the fingerprint with what it stands for
(:mod:`selfcal.run.origin`), the digests of its outputs and those of the outputs it read from the stages
before it. It is current as long as the fingerprint is the same, its outputs are there and unchanged, and
nothing that it reads has been made anew with another result. Before a stage runs, all that the stages
before it wrote is compared with its digest.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any

import selfcal
from selfcal.errors import DataError, Interrupted, is_out_of_memory
from selfcal.run.atomic import read_json, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import INPUT_DIGESTS, InputDigests, canonical_digest, file_sha256
from selfcal.run.origin import Origin


def _everything(context: RunContext) -> RunContext:
    """A stage that reads all datasets."""
    return context


def _no_inputs(context: RunContext) -> Sequence[Path]:
    """A stage that reads nothing from outside the run."""
    del context
    return ()


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes
    ----------
    name : file name of the record and verb of the command line
    function : does the work and returns the files it wrote
    configuration : the part of the configuration that decides the outputs, as JSON-able values
    upstream : names of the stages whose outputs it reads
    inputs : files from outside the run that it reads
    reads : the run without the datasets that the stage leaves alone. One that leaves some alone reads
        nothing but datasets of the stages before it.
    """

    name: str
    function: Callable[[RunContext], Sequence[Path]]
    configuration: Callable[[RunContext], Any]
    upstream: tuple[str, ...] = ()
    inputs: Callable[[RunContext], Sequence[Path]] = _no_inputs
    reads: Callable[[RunContext], RunContext] = _everything

    @property
    def reads_a_part(self) -> bool:
        """Whether there may be datasets that the stage does not depend on."""
        return self.reads is not _everything


@dataclass(frozen=True)
class StageState:
    """Whether a stage has to run, and why."""

    stage: Stage
    origin: Origin
    reason: str | None

    @property
    def current(self) -> bool:
        return self.reason is None


def input_digests(
    stages: Sequence[Stage], context: RunContext, store: InputDigests | None = None
) -> tuple[InputDigests, dict[str, str]]:
    """The digest store (by default the run's own) and the SHA-256 of every input file of ``stages`` by
    path."""
    store = store or InputDigests(context.directory.stages / INPUT_DIGESTS)
    files = {path for stage in stages for path in stage.inputs(context)}
    return store, {str(path): store.of(path) for path in sorted(files)}


def stage_origins(
    stages: Sequence[Stage], context: RunContext, digests: Mapping[str, str]
) -> dict[str, Origin]:
    """What each of ``stages`` (in order, upstream first) is made from, by name; ``digests`` of the input
    files."""
    found: dict[str, Origin] = {}
    for number, stage in enumerate(stages):
        part, before = context, found
        if stage.reads_a_part:
            part = stage.reads(context)
            before = stage_origins(stages[:number], part, digests)
        found[stage.name] = Origin(
            stage=stage.name,
            version=selfcal.__version__,
            configuration=stage.configuration(part),
            upstream={name: before[name].fingerprint for name in stage.upstream},
            inputs={str(path): digests[str(path)] for path in stage.inputs(part)},
        )
    return found


def stage_states(stages: Sequence[Stage], context: RunContext) -> list[StageState]:
    """Which of ``stages`` (in order, upstream first) are current. Writes nothing."""
    _, digests = input_digests(stages, context)
    states: list[StageState] = []
    origins = stage_origins(stages, context, digests)
    stale: dict[str, bool] = {}
    for stage in stages:
        origin = origins[stage.name]
        behind = [name for name in stage.upstream if stale[name]]
        reason = f"follows '{behind[0]}'" if behind else why_not_current(stage, context, origin)
        stale[stage.name] = reason is not None
        states.append(StageState(stage, origin, reason))
    return states


def record_path(context: RunContext, name: str) -> Path:
    """Where a run keeps the record of one stage."""
    return context.directory.stages / f"{name}.json"


def read_record(context: RunContext, name: str) -> dict[str, Any] | None:
    """The record of one stage; None where there is none that can be read."""
    path = record_path(context, name)
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except DataError:
        return None
    return record if _is_record(record) else None


def _is_record(record: Any) -> bool:
    """Whether a record has the form that :func:`_run_one` writes, and names files of the run alone.

    A run may come from somebody else: outputs that are no longer made are deleted, and a name that
    leads out of the run must not be.
    """
    if not isinstance(record, dict) or not isinstance(record.get("upstream"), dict):
        return False
    outputs = record.get("outputs")
    return isinstance(outputs, dict) and all(
        isinstance(output, dict)
        and {"size", "sha256"} <= set(output)
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        for name, output in outputs.items()
    )


def why_not_current(stage: Stage, context: RunContext, origin: Origin) -> str | None:
    """Why a stage with this origin would have to run, the stages before it being as they are."""
    record = read_record(context, stage.name)
    if record is None:
        return "not done yet"
    if record.get("fingerprint") is None:
        return "was not finished"
    if record["fingerprint"] != origin.fingerprint:
        return origin.difference(record.get("made_from"))
    for name, output in record["outputs"].items():
        path = context.directory.path / name
        if not path.is_file():
            return f"output {name} is missing"
        if path.stat().st_size != output["size"]:
            return f"output {name} has another size"
        # Reading everything again would take long: without a new time of modification it is what it was,
        # and damage that leaves the time alone is found before a stage reads the file.
        if path.stat().st_mtime_ns != output.get("modified_ns") and file_sha256(path) != output["sha256"]:
            return f"output {name} has another content"
    for name in stage.upstream:
        if record["upstream"].get(name) != _read_outputs_digest(stage, context, name):
            return f"'{name}' has another result"
    return None


def _read_outputs_digest(stage: Stage, context: RunContext, name: str) -> str | None:
    """Digest of what ``stage`` reads of the outputs of the stage ``name``."""
    record = read_record(context, name)
    if record is None:
        return None
    outputs = {path: output["sha256"] for path, output in record["outputs"].items()}
    if stage.reads_a_part:
        datasets = {context.generated_path(card) for card in stage.reads(context).cards}
        outputs = {
            path: digest for path, digest in outputs.items() if context.directory.path / path in datasets
        }
    return canonical_digest(outputs)


def run_stages(stages: Sequence[Stage], context: RunContext) -> list[str]:
    """Run, in order, those stages that are not current; returns their names.

    ``stages`` holds every stage up to the last wanted one. The caller holds the run's lock.

    Raises
    ------
    Interrupted
        On Ctrl-C or SIGTERM, and when memory runs out; the stages that had finished stay finished.
    """
    done: list[str] = []
    running: str | None = None
    with _termination_as_interrupt():
        try:
            store, _ = input_digests(stages, context)
            store.save()
            for index, stage in enumerate(stages):
                state = stage_states(stages[: index + 1], context)[-1]
                if state.reason is None:
                    context.say(f"[{stage.name}] up to date")
                    continue
                running = stage.name
                context.say(f"[{stage.name}] running ({state.reason})")
                seconds = _run_one(state, context)
                running = None
                done.append(stage.name)
                context.say(f"[{stage.name}] done in {seconds:.1f} s")
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted during '{running}'" if running else "interrupted",
                where=str(context.directory.path),
                fix="run the same command again: finished stages are kept",
            ) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise Interrupted(
                f"memory ran out during '{running}'",
                where=str(context.directory.path),
                fix="run the same command again with more memory, fewer calibration.workers or smaller "
                "batches: finished work is kept",
            ) from error
        finally:
            context.reporter.close()
    if not done:
        context.say(f"nothing to be done: every stage of {context.directory.path} is up to date")
    return done


def _run_one(state: StageState, context: RunContext) -> float:
    """Run one stage and write its record last.

    Before, the old record loses its fingerprint: after a crash the stage is not current, and its old
    outputs are still known and can be removed.
    """
    record = record_path(context, state.stage.name)
    old = (read_record(context, state.stage.name) or {"outputs": {}})["outputs"]
    old_outputs = set(old)
    write_json(record, {"stage": state.stage.name, "fingerprint": None, "outputs": old, "upstream": {}})
    _refuse_damaged_inputs(state.stage, context)
    finished = _finished_outputs(state.stage, context)
    begin = time.monotonic()
    written = list(state.stage.function(context))
    seconds = time.monotonic() - begin
    context.reporter.close()
    _refuse_foreign_writes(state.stage, finished, written)
    root = context.directory.path.resolve()
    outputs: dict[str, dict[str, Any]] = {}
    for path in sorted(written):
        if not path.is_file():
            raise DataError(f"stage '{state.stage.name}' did not write its output", where=str(path))
        name = path.resolve().relative_to(root).as_posix()
        status = path.stat()
        outputs[name] = {
            "size": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "sha256": file_sha256(path),
        }
    for name in old_outputs - set(outputs):
        if (context.directory.path / name).resolve().is_relative_to(root):  # no link leads elsewhere
            (context.directory.path / name).unlink(missing_ok=True)
    write_json(
        record,
        {
            "stage": state.stage.name,
            "fingerprint": state.origin.fingerprint,
            "made_from": state.origin.as_record(),
            "outputs": outputs,
            "upstream": {
                name: _read_outputs_digest(state.stage, context, name) for name in state.stage.upstream
            },
            "duration_s": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    return seconds


def _refuse_damaged_inputs(stage: Stage, context: RunContext) -> None:
    """Every file of the stages before this one is what they wrote, to the bit.

    Raises
    ------
    DataError
        Naming the first that is not.
    """
    for name in stage.upstream:
        for file, output in (read_record(context, name) or {"outputs": {}})["outputs"].items():
            path = context.directory.path / file
            if file_sha256(path) != output["sha256"]:
                raise DataError(
                    f"damaged: not what stage '{name}' wrote",
                    where=str(path),
                    expected=f"SHA-256 {output['sha256']}",
                    fix="delete the file and run the same command again: it is made anew",
                )


def _finished_outputs(stage: Stage, context: RunContext) -> dict[Path, tuple[int, int]]:
    """Size and modification time of all outputs of the stages before this one."""
    records = [read_record(context, name) or {"outputs": {}} for name in stage.upstream]
    paths = [context.directory.path / name for record in records for name in record["outputs"]]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def _refuse_foreign_writes(
    stage: Stage, finished: Mapping[Path, tuple[int, int]], written: Sequence[Path]
) -> None:
    """A file belongs to one stage: otherwise nothing could tell whether that stage is current."""
    for path, (size, modified) in finished.items():
        status = path.stat() if path.exists() else None
        changed = status is None or (status.st_size, status.st_mtime_ns) != (size, modified)
        if changed or path in written:
            raise DataError(
                f"an output of an earlier stage changed while '{stage.name}' ran",
                where=str(path),
                fix="if you or another program did it, run the same command again; if not, it is a defect of "
                "selfcal: please report it",
            )


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a stage the way Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
