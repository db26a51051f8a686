"""One run from its configuration: the directory held, provenance written, stages done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from selfcal.config.loading import LoadedRun, resolved_yaml
from selfcal.run.adoption import adopt_stages
from selfcal.run.atomic import write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import Reporter
from selfcal.run.stages import Stage, input_digests, run_stages, stage_states


def context_of(loaded: LoadedRun, path: Path, reporter: Reporter) -> RunContext:
    """The context of a run in ``path``; nothing is written."""
    return RunContext(
        loaded.config,
        loaded.cards,
        RunDirectory(path),
        reporter,
        loaded.card_folders,
        loaded.data_root,
    )


def run_loaded(
    loaded: LoadedRun,
    context: RunContext,
    stages: Sequence[Stage],
    command: Sequence[str],
    donors: Iterable[RunDirectory] = (),
) -> list[str]:
    """Do those of ``stages`` that are not current and return their names; the caller holds the run's lock.

    Stages that one of ``donors`` has finished with the same fingerprints are taken over from it.
    """
    if not all(state.current for state in stage_states(stages, context)):
        _, inputs = input_digests(stages, context)
        write_text(context.directory.resolved_config, resolved_yaml(loaded, context.directory.path))
        context.directory.write_provenance(loaded.config.seed, list(command), inputs)
        taken = adopt_stages(stages, context, donors)
        if taken:
            context.say(f"taken over from another run: {', '.join(taken)}")
    return run_stages(stages, context)
