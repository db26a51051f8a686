"""Studies on a real Dask scheduler with worker processes of their own, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from selfcal.errors import ConfigError
from selfcal.run.progress import SilentReporter
from selfcal.study.engine import plan_study, run_study
from selfcal.study.executors import in_process, with_dask
from selfcal.study.tasks import Store

pytest.importorskip("distributed", reason="needs the extra 'dask'")
pytestmark = pytest.mark.filterwarnings("default")  # of a library that closes its sockets late

DEADLINE_S = 240


def start(*words: str, folder) -> subprocess.Popen[bytes]:
    """``dask WORDS`` in a process of its own that leaves its talk in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(folder / f"{words[0]}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words], env=environment, stdout=log, stderr=log, cwd=folder
        )


def wait_for(condition, processes) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path):
    """Scheduler and two workers: the address, and the processes of the workers."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    file = folder / "scheduler.json"
    words = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    processes = [start("scheduler", *words, folder=folder)]
    try:
        wait_for(lambda: file.exists() and file.stat().st_size > 0, processes)
        for _ in range(2):
            options = ("--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard")
            processes.append(start("worker", *options, folder=folder))
        yield f"{_address(file)}", processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def _address(file) -> str:
    import json

    return str(json.loads(file.read_text())["address"])


def run(study, folder, execute):
    store = Store(folder / "store")
    planned = plan_study(study, store)
    return run_study(study, folder / "out", store, planned, execute, lambda text: None), store


@pytest.mark.fault(11, "a Dask worker killed in a study")
@pytest.mark.long
def test_a_study_whose_worker_is_killed_ends_with_the_same_numbers(study_of, cluster, tmp_path):
    address, workers = cluster
    study = study_of(until="train", axes={"training.epochs": [12]}, seeds=[1, 2, 3])
    expected, _ = run(study, tmp_path / "alone", in_process(SilentReporter()))
    begun = tmp_path / "together" / "store"
    killer = _kill_when(workers[0], lambda: list(begun.glob("*/stages/train.json")))
    found, _ = run(study, tmp_path / "together", with_dask(scheduler=address))
    killer.join()
    assert workers[0].wait() == -signal.SIGKILL
    assert found["failed"] == 0
    assert [row["values"] for row in found["rows"]] == [row["values"] for row in expected["rows"]]
    assert [row["key"] for row in found["rows"]] == [row["key"] for row in expected["rows"]]


def _kill_when(process, condition):
    """Kill a process as soon as the condition holds."""
    import threading

    def watch() -> None:
        wait_for(condition, [])
        process.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.long
def test_processes_of_this_machine_give_the_same_numbers(study_of, tmp_path):
    study = study_of(until="validate", seeds=[1, 2])
    expected, _ = run(study, tmp_path / "alone", in_process(SilentReporter()))
    found, _ = run(study, tmp_path / "together", with_dask(workers=2))
    assert [row["values"] for row in found["rows"]] == [row["values"] for row in expected["rows"]]


def test_no_scheduler_is_a_configuration_error(study_of, tmp_path, monkeypatch):
    import distributed

    def refuse(*arguments, **options):
        raise TimeoutError

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        run(study_of(until="validate"), tmp_path, with_dask(scheduler="tcp://127.0.0.1:1"))
