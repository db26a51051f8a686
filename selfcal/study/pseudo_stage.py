"""Pseudo-experiments of a finished run: one file each, so that a stopped study continues; then the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np

from selfcal.config.loading import load_run
from selfcal.config.study import PseudoExperimentsConfig
from selfcal.errors import DataError, FitError
from selfcal.run.atomic import read_json, write_json, write_text
from selfcal.run.context import RunContext
from selfcal.run.digests import canonical_digest, file_sha256
from selfcal.run.directory import RunDirectory
from selfcal.run.workers import worker_pool
from selfcal.study.full_coverage import coverage_text, full_coverage
from selfcal.study.pseudo_experiments import Laboratory, prepare, run_experiment

RESULTS, TEXT, FOLDER = "pseudo_experiments.json", "pseudo_experiments.txt", "pseudo_experiments"
EVERY = 10
"""The table is written anew after so many experiments."""
POLL_SECONDS = 5.0


def run_pseudo_experiments(
    directory: Path, config: PseudoExperimentsConfig, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Do the experiments of the run in ``directory`` that are missing; returns ``pseudo_experiments.json``.

    Files of another run or other settings lie in other folders, named by a digest. An experiment whose fit
    fails leaves a file that says so.

    Raises
    ------
    DataError
        If the run is not finished.
    ConfigError
        If its scores came with its files.
    """
    context = finished_run(directory)
    folder = directory / FOLDER / experiments_digest(context, config)
    target = context.directory.results / RESULTS
    missing = [i for i in range(config.experiments) if not experiment_path(folder, i).exists()]
    if not missing and target.exists() and read_json(target).get("made_of") == _made_of(folder, config):
        return target
    if missing:
        # What all share is simulated once, before there are processes to do it at the same time.
        laboratory = prepare(context, config, folder.parent / "shared" / folder.name, say)
        workers = min(config.workers or os.cpu_count() or 1, len(missing))
        if workers == 1:
            for done, index in enumerate(missing, start=1):
                write_json(experiment_path(folder, index), attempted(laboratory, index))
                if done % EVERY == 0:
                    _write_table(context, folder, config, say)
        else:
            del laboratory
            _run_in_processes(
                context, folder, config, [missing[first::workers] for first in range(workers)], say
            )
    return _write_table(context, folder, config, say)


def _run_in_processes(
    context: RunContext,
    folder: Path,
    config: PseudoExperimentsConfig,
    shares: Sequence[Sequence[int]],
    say: Callable[[str], None],
) -> None:
    """One process for each share of the missing experiments; the table as they go."""
    every = [index for share in shares for index in share]
    written = 0
    with worker_pool(len(shares)) as pool:
        running = {pool.submit(_run_share, context.directory.path, config, share) for share in shares}
        while running:
            finished, running = wait(running, timeout=POLL_SECONDS)
            for one in finished:
                one.result()
            done = sum(experiment_path(folder, index).exists() for index in every)
            if done >= written + EVERY:
                written = done
                _write_table(context, folder, config, say)


def _run_share(directory: Path, config: PseudoExperimentsConfig, indices: Sequence[int]) -> None:
    context = finished_run(directory)
    folder = directory / FOLDER / experiments_digest(context, config)
    laboratory = prepare(context, config, folder.parent / "shared" / folder.name, lambda _: None)
    for index in indices:
        write_json(experiment_path(folder, index), attempted(laboratory, index))


def finished_run(directory: Path) -> RunContext:
    """The context of a run whose fit is done.

    Raises
    ------
    DataError
        If there is no finished fit in ``directory``.
    """
    run = RunDirectory(directory)
    if not run.resolved_config.exists() or not (run.results / "templates.json").exists():
        raise DataError(
            "no finished run to make pseudo-experiments of",
            where=str(directory),
            fix="run 'selfcal run' first",
        )
    loaded = load_run((run.resolved_config,))
    return RunContext(
        loaded.config,
        loaded.cards,
        run,
        card_folders=loaded.card_folders,
        data_root=loaded.data_root,
    )


def experiments_digest(context: RunContext, config: PseudoExperimentsConfig) -> str:
    """Names everything that decides an experiment but its index."""
    results = context.directory.results
    return canonical_digest(
        {
            "templates": file_sha256(results / "templates.json"),
            "map": file_sha256(results / "map" / "map.safetensors"),
            "tagger": file_sha256(context.directory.checkpoints / "tagger_final" / "model.safetensors"),
            "config": context.config.model_dump(mode="json", exclude={"name", "data", "export"}),
            "experiments": config.model_dump(mode="json", exclude={"experiments", "workers"}),
        }
    )[:16]


def experiment_path(folder: Path, index: int) -> Path:
    """The file of one experiment."""
    return folder / f"experiment_{index:04d}.json"


def attempted(laboratory: Laboratory, index: int) -> dict[str, Any]:
    """The experiment, or why its fit failed."""
    try:
        return {**run_experiment(laboratory, index), "error": None}
    except (FitError, np.linalg.LinAlgError) as error:
        return {"index": index, "error": str(error)}


def _made_of(folder: Path, config: PseudoExperimentsConfig) -> str:
    return f"{folder.name} {config.experiments}"


def _write_table(
    context: RunContext, folder: Path, config: PseudoExperimentsConfig, say: Callable[[str], None]
) -> Path:
    paths = [experiment_path(folder, index) for index in range(config.experiments)]
    table = full_coverage([read_json(path) for path in paths if path.exists()])
    target = context.directory.results / RESULTS
    write_json(target, {**table, "made_of": _made_of(folder, config)})
    write_text(context.directory.results / TEXT, coverage_text(table))
    summary = table["summary"]
    say(
        f"pseudo-experiments: {summary['experiments']} of {config.experiments} done, 68 % coverage of the "
        f"scale factors {summary['average_68']}"
    )
    return target
