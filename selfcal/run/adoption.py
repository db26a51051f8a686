"""Finished stages taken over from another run, instead of doing them again.

A stage's fingerprint says what its outputs were made from, so a run may take the outputs of any other
run whose stages up to there have the same fingerprints. A stage that depends on some of the datasets only
is taken over by itself from a run that shares these: of two runs with other data but the same simulation
one trains the tagger.

What is taken over becomes hard links: every file of a run is written aside and renamed, never changed in
place, and so the two runs cannot disturb each other. Only ``metrics.jsonl``, to which rows are appended, is
copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from selfcal.run.atomic import atomic_path, write_json
from selfcal.run.context import RunContext
from selfcal.run.digests import INPUT_DIGESTS
from selfcal.run.directory import RunDirectory
from selfcal.run.stages import (
    Stage,
    input_digests,
    read_record,
    record_path,
    stage_origins,
    stage_states,
    why_not_current,
)


def adopt_stages(
    stages: Sequence[Stage], context: RunContext, donors: Iterable[RunDirectory]
) -> tuple[str, ...]:
    """Take over the longest row of finished stages that one of ``donors`` has and this run has not.

    The stages of a row come from one donor: what one made is what the next one read. Of the stages behind
    it, those that read a part of the datasets may come from any. The caller holds the run's lock; a donor
    that is changed at the same time is left alone.

    Returns
    -------
    tuple of str
        Names of the stages that were taken over, in order.
    """
    others = [
        replace(context, directory=donor)
        for donor in donors
        if donor.path.resolve() != context.directory.path.resolve()
    ]
    own = _finished(stages, context)
    _adopt_row(stages, context, others, own)
    row = _finished(stages, context)
    return tuple(stage.name for stage in stages[own:row]) + _adopt_single(stages, row, context, others)


def _adopt_row(stages: Sequence[Stage], context: RunContext, others: Iterable[RunContext], own: int) -> None:
    """Take over all stages up to the furthest that one of the other runs has finished, if beyond ``own``."""
    best, length = None, own
    for there in others:
        if length < len(stages) and read_record(there, stages[length].name) is None:
            continue
        found = _finished(stages, there)
        if found > length:
            best, length = there, found
    if best is None:
        return
    for stage in stages[:length]:
        if not _take_over(stage, context, best):
            break
    _take_over_metrics(context, best)


def _adopt_single(
    stages: Sequence[Stage], first: int, context: RunContext, others: Iterable[RunContext]
) -> tuple[str, ...]:
    """Take over the stages from number ``first`` on that read some of the datasets, where another run has
    these."""
    taken: list[str] = []
    for number in range(first, len(stages)):
        if not stages[number].reads_a_part or has_finished(stages[: number + 1], context):
            continue
        for there in others:
            if has_finished(stages[: number + 1], there) and _take_over(stages[number], context, there):
                taken.append(stages[number].name)
                if not context.directory.metrics.exists():
                    _take_over_metrics(context, there)
                break
    return tuple(taken)


def has_finished(stages: Sequence[Stage], context: RunContext) -> bool:
    """Whether a run has the outputs of the last of ``stages``, made of what this ``context`` would have.

    Stages before it may have been made of other things, as far as the last one does not read them.
    """
    last = stages[-1]
    if read_record(context, last.name) is None:
        return False
    _, digests = input_digests(stages, context)
    return why_not_current(last, context, stage_origins(stages, context, digests)[last.name]) is None


def keep_input_digests(known: Path, directory: RunDirectory) -> None:
    """Give a new run the digests of input files that are known already, so that it need not read them all."""
    if known.exists() and not (directory.stages / INPUT_DIGESTS).exists():
        _copy(known, directory.stages / INPUT_DIGESTS)


def share_files(source: Path, target: Path) -> None:
    """Give ``target`` every file below ``source`` that it has not, as hard links where that is possible."""
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_file() and not place.exists():
            _link(file, place)


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


def _take_over_metrics(context: RunContext, donor: RunContext) -> None:
    if donor.directory.metrics.exists():
        _copy(donor.directory.metrics, context.directory.metrics)


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
