"""Finished stages taken over from another run, instead of doing them again.

A stage's fingerprint says what its outputs were made from, so a run may take the outputs of any other
run whose stages up to there have the same fingerprints. They become hard links: every file of a run is
written aside and renamed, never changed in place, and so the two runs cannot disturb each other. Only
``metrics.jsonl``, to which rows are appended, is copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from selfcal.run.atomic import atomic_path, write_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.stages import INPUT_DIGESTS, Stage, read_record, record_path, stage_states


def adopt_stages(
    stages: Sequence[Stage], context: RunContext, donors: Iterable[RunDirectory]
) -> tuple[str, ...]:
    """Take over the longest row of finished stages that one of ``donors`` has and this run has not.

    The stages of a row come from one donor: what one made is what the next one read. The caller holds the
    run's lock; a donor that is changed at the same time is left alone.

    Returns
    -------
    tuple of str
        Names of the stages that were taken over, in order.
    """
    own = _finished(stages, context)
    best, length = None, own
    for donor in donors:
        if donor.path.resolve() == context.directory.path.resolve():
            continue
        there = replace(context, directory=donor)
        if length < len(stages) and read_record(there, stages[length].name) is None:
            continue
        found = _finished(stages, there)
        if found > length:
            best, length = there, found
    if best is None:
        return ()
    for stage in stages[:length]:
        if not _take_over(stage, context, best):
            break
    metrics = best.directory.metrics
    if metrics.exists():
        _copy(metrics, context.directory.metrics)
    return tuple(stage.name for stage in stages[own : _finished(stages, context)])


def keep_input_digests(known: Path, directory: RunDirectory) -> None:
    """Give a new run the digests of input files that are known already, so that it need not read them all."""
    if known.exists() and not (directory.stages / INPUT_DIGESTS).exists():
        _copy(known, directory.stages / INPUT_DIGESTS)


def _finished(stages: Sequence[Stage], context: RunContext) -> int:
    """How many of the first stages are current."""
    for number, state in enumerate(stage_states(stages, context)):
        if not state.current:
            return number
    return len(stages)


def _take_over(stage: Stage, context: RunContext, donor: RunContext) -> bool:
    """Link all outputs of one stage and, last, copy its record; False if the donor has lost one."""
    record = read_record(donor, stage.name)
    if record is None:
        return False
    old = (read_record(context, stage.name) or {"outputs": {}})["outputs"]
    for name in record["outputs"]:
        try:
            _link(donor.directory.path / name, context.directory.path / name)
        except FileNotFoundError:
            return False
    for name in set(old) - set(record["outputs"]):
        (context.directory.path / name).unlink(missing_ok=True)
    write_json(record_path(context, stage.name), record)
    return True


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copy2(source, temporary)
