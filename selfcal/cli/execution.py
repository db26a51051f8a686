"""From options to a run: context, dry run, stages, outcome."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from selfcal.cli.options import Options
from selfcal.config.card import DataCard
from selfcal.config.loading import LoadedRun, load_run, resolved_yaml
from selfcal.errors import ConfigError, Interrupted, SelfcalError
from selfcal.run.context import RunContext
from selfcal.run.progress import reporter_for
from selfcal.run.stages import Stage, StageState, stage_states
from selfcal.study.execution import context_of, run_loaded
from selfcal.study.pipeline import DESCRIPTIONS, pipeline, stages_for_verb

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable by which a process knows that torchrun has started it."""


def execute(verb: str, options: Options, *, resume: bool = False, evaluate: bool = False) -> None:
    """Do ``verb`` (``run`` or one stage) and print the outcome.

    ``evaluate`` judges the maps of several families once the stage is done.

    Raises
    ------
    ConfigError
        If there is no run to resume, or its configuration is wrong.
    """
    set_log_level(options.verbose)
    loaded = load_run(options.configurations, options.assignments, options.seed)
    directory = options.out or Path("runs") / loaded.config.name
    context = context_of(loaded, directory, reporter_for(options.quiet))
    if resume and not context.directory.provenance.exists():
        raise ConfigError(
            "there is no run to resume",
            where=str(context.directory.path),
            fix="leave out --resume to start it",
        )
    if verb == "run":
        from selfcal.transport.control_regions import control_regions

        control_regions(context)  # calibrate would refuse them, hours later
    if options.dry_run:
        _show_plan(verb, options, loaded, context)
        return
    _refuse_early(verb, context)
    if TORCHRUN in os.environ:
        _execute_together(verb, options, loaded, context)
    else:
        _execute_stages(verb, options, loaded, context, evaluate=evaluate)


def _execute_stages(
    verb: str, options: Options, loaded: LoadedRun, context: RunContext, *, evaluate: bool = False
) -> None:
    with context.directory.lock():
        stages = pipeline(context) if verb == "run" else stages_for_verb(context, verb)
        done = run_loaded(loaded, context, stages, ["selfcal", *sys.argv[1:]])
        if evaluate:
            _evaluate(options, context)
    _show_outcome(options, context, stages, done)


def _evaluate(options: Options, context: RunContext) -> None:
    from selfcal.study.evaluation import run_evaluation
    from selfcal.study.evaluation_summary import render_evaluation

    try:
        content = run_evaluation(context)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted while maps were compared",
            where=str(context.directory.path),
            fix="run the same command again: finished maps and measures are kept",
        ) from None
    finally:
        context.reporter.close()
    if not options.as_json and not options.quiet:
        print(render_evaluation(content))


def _execute_together(verb: str, options: Options, loaded: LoadedRun, context: RunContext) -> None:
    """One of ``torchrun``'s processes: the first does what it would do alone, the others train with it."""
    if verb != "train":
        raise ConfigError(
            f"'{verb}' is nothing that several processes of torchrun can share",
            expected="torchrun ... selfcal train",
            fix=f"run 'selfcal {verb}' without torchrun",
        )
    from selfcal.training.processes import joined
    from selfcal.training.stage import TRAIN, assist_training

    with joined() as processes:
        if processes.rank == 0:
            _execute_stages(verb, options, loaded, context)
            processes.announce("done")
        else:
            while processes.announce("") == TRAIN:
                assist_training(context)


def _refuse_early(verb: str, context: RunContext) -> None:
    """Find missing files and missing stages before anything is written."""
    for card in context.cards:
        context.dataset_path(card)
    if verb != "run":
        stages_for_verb(context, verb)


def _show_outcome(options: Options, context: RunContext, stages: list[Stage], done: list[str]) -> None:
    results = sorted(context.directory.results.glob("*")) if context.directory.results.is_dir() else []
    report = context.directory.report
    if options.as_json:
        print_json(
            {
                "run": str(context.directory.path),
                "stages": [{"name": stage.name, "ran": stage.name in done} for stage in stages],
                "results": [str(path) for path in results],
                "report": str(report) if report.exists() else None,
            }
        )
    elif not options.quiet and stages[-1].name == "report" and report.exists():
        context.say(f"results in {context.directory.results}, report in {report}")


def _show_plan(verb: str, options: Options, loaded: LoadedRun, context: RunContext) -> None:
    stages = pipeline(context)
    if verb != "run":
        names = [stage.name for stage in stages]
        if verb in names:
            stages = stages[: names.index(verb) + 1]
    inputs = [_input_facts(context, card) for card in context.cards]
    planned = [_stage_facts(state, verb) for state in stage_states(stages, context)]
    run = str(context.directory.path)
    if options.as_json:
        configuration = loaded.config.model_dump(mode="json")
        print_json({"run": run, "inputs": inputs, "stages": planned, "configuration": configuration})
        return
    print(f"# run directory: {run}\n\n# configuration")
    print(resolved_yaml(loaded, context.directory.path))
    print("# inputs")
    for facts in inputs:
        words = (facts["name"].ljust(24), facts["role"].ljust(11), facts["use"].ljust(11))
        print(*words, facts["region"].ljust(14), facts["source"])
    print("\n# stages")
    for facts in planned:
        print(facts["name"].ljust(13), facts["state"].ljust(45), "->", ", ".join(facts["files"]))
    print("\ndry run: nothing was written")


def _stage_facts(state: StageState, verb: str) -> dict[str, Any]:
    name = state.stage.name
    return {
        "name": name,
        "state": state.reason or "up to date",
        "runs": not state.current and verb in ("run", name),
        "files": list(next(one.produces for one in DESCRIPTIONS if one.name == name)),
    }


def _input_facts(context: RunContext, card: DataCard) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": card.name, "role": card.role, "use": card.use, "region": card.region}
    if card.generate is not None:
        count = card.generate.jets
        source = f"{count} jets to generate ({card.generate.process}, world {card.generate.world})"
        return facts | {"jets": count, "files": [], "source": source}
    from selfcal.data.reading import count_jets

    paths = context.dataset_path(card)
    count = sum(count_jets(card, path) for path in paths)
    return facts | {
        "jets": count,
        "files": [str(path) for path in paths],
        "source": f"{count} jets in {len(paths)} file(s)",
    }


def refuse_existing(path: Path | None, option: str) -> None:
    """Overwrite no file: ``option`` is what names another one.

    Raises
    ------
    ConfigError
        If there is something at ``path``.
    """
    if path is not None and path.exists():
        raise ConfigError("the file exists already", where=str(path), fix=f"choose another {option}")


def print_json(content: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(content, indent=1, allow_nan=False))


def error_json(error: SelfcalError) -> dict[str, Any]:
    """An error as plain values, for ``--json``."""
    return {
        "error": {
            "kind": type(error).__name__,
            "exit_code": error.exit_code,
            "problem": error.problem,
            "where": error.where,
            "expected": error.expected,
            "fix": error.fix,
        }
    }


def set_log_level(verbose: int) -> None:
    """Warnings by default, more with ``-v`` and ``-vv``."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("selfcal").setLevel(level)
