"""kill -9 in the middle of a stage: the next process goes on from the last finished stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import selfcal

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(selfcal.__file__).parents[1])}
WORKER = """
import sys, time
from pathlib import Path
from selfcal.config.run import RunConfig
from selfcal.run.atomic import write_text
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.run.progress import PlainReporter
from selfcal.run.stages import Stage, run_stages

directory, wait_in = RunDirectory(sys.argv[1]), sys.argv[2]
config = RunConfig.model_validate({"name": "t", "data": {"cards": ["x"]}})
context = RunContext(config, (), directory, PlainReporter(sys.stdout))

def work(name):
    def run(context):
        path = directory.results / f"{name}.txt"
        half = directory.results / f"{name}.half"
        directory.results.mkdir(exist_ok=True)
        half.write_text("half")
        if name == wait_in:
            print("waiting", flush=True)
            time.sleep(60)
        half.unlink()
        write_text(path, name * 1000)
        return [path]
    return run

names = ["a", "b", "c"]
stages = [Stage(n, work(n), lambda context: 0, tuple(names[:i])) for i, n in enumerate(names)]
with directory.lock():
    print("ran", run_stages(stages, context))
"""


@pytest.mark.fault(1, "kill -9 inside each stage of a run: finished stages are kept")
@pytest.mark.parametrize(("killed_in", "left"), [("a", ["a", "b", "c"]), ("b", ["b", "c"]), ("c", ["c"])])
def test_finished_stages_are_kept(tmp_path, killed_in, left):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "run")]
    with subprocess.Popen(
        [*command, killed_in], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "waiting\n":
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "results" / f"{killed_in}.txt").exists()
    again = subprocess.run([*command, "none"], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert again.stdout.splitlines()[-1] == f"ran {left}"
    third = subprocess.run([*command, "none"], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert third.stdout.splitlines()[-1] == "ran []"
    assert "nothing to be done" in third.stdout
