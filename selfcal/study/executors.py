"""Who does the tasks of a study: this process, or workers of Dask."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selfcal.errors import ConfigError
from selfcal.run.progress import Reporter
from selfcal.study.tasks import Outcome, Store, Task, run_task

Executor = Callable[[Sequence[Task], Store], Iterator[Outcome]]
"""Yields the outcome of every task as soon as it is known; a task comes after its parent in the sequence."""


def in_process(reporter: Reporter) -> Executor:
    """One task after the other, in this process."""

    def execute(tasks: Sequence[Task], store: Store) -> Iterator[Outcome]:
        outcomes: dict[str, Outcome] = {}
        for task in tasks:
            before = outcomes[task.parent] if task.parent else None
            outcomes[task.key] = run_task(task, store, before, reporter)
            yield outcomes[task.key]

    return execute


def with_dask(workers: int | None = None, scheduler: str | None = None) -> Executor:
    """Tasks on ``workers`` local processes, or on the workers of the Dask scheduler at an address.

    All workers must see the files of the study and its store under the same paths, and have this version of
    selfcal. A task whose worker dies is done again by another one, which goes on with the finished stages.

    Raises
    ------
    ConfigError
        If ``distributed`` is not installed, or there is no scheduler at the address.
    """
    try:
        import dask

        dask.config.set({"logging.distributed": "error"})  # read when it is imported
        import distributed
    except ImportError as error:
        raise ConfigError(
            "Dask is not installed",
            where="--scheduler" if scheduler else "--workers",
            expected="the package 'distributed'",
            fix="pip install 'selfcal[dask]'",
        ) from error

    def execute(tasks: Sequence[Task], store: Store) -> Iterator[Outcome]:
        with ExitStack() as stack:
            # Stages start processes of their own, which a daemonic worker could not.
            stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
            address: Any = scheduler
            if scheduler is None:
                address = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
                    )
                )
            try:
                client = stack.enter_context(distributed.Client(address, timeout=30))
            except (OSError, TimeoutError, ValueError) as error:
                raise ConfigError(
                    "no Dask scheduler answers",
                    where=f"--scheduler {scheduler}",
                    expected="an address such as tcp://host:8786",
                    fix="start one with 'dask scheduler' and workers with 'dask worker ADDRESS --nthreads 1'",
                ) from error
            yield from _outcomes(client, tasks, store)

    return execute


def _outcomes(client: Any, tasks: Sequence[Task], store: Store) -> Iterator[Outcome]:
    import distributed

    # A name of its own for each execution: the scheduler must not answer with a failure of last time.
    attempt = uuid.uuid4().hex[:8]
    path = store.path.resolve()
    futures: dict[str, Any] = {}
    for task in tasks:
        before = futures[task.parent] if task.parent else None
        futures[task.key] = client.submit(
            _remote, task, path, before, key=f"selfcal-{task.key}-{attempt}", pure=False
        )
    keys = {future.key: key for key, future in futures.items()}
    for future in distributed.as_completed(futures.values()):
        key = keys[future.key]
        error = future.exception()
        if error is None:
            yield future.result()
        else:
            yield Outcome(key, f"lost on the cluster: {type(error).__name__}: {error}".strip())


def _remote(task: Task, store: Path, before: Outcome | None) -> Outcome:
    """What a worker does."""
    return run_task(task, Store(store), before)
