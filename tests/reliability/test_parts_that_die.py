"""A loss that becomes NaN, memory that runs out, a process of a training that is killed: an end and a resume.

Each fault happens once, in the middle of a training. It ends with one error and its exit code, and the same
command, without the fault, ends with the tagger of a training that had none.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.run.atomic import read_arrays
from selfcal.training import loop
from tests.cli.conftest import project, selfcal  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
CONFIG = """
tagger: {width: 16, layers: 1, heads: 2, feedforward_width: 16, latent: 8, dropout: 0.1}
training: {epochs: EPOCHS, batch_size: 32}
fit: {working_point_region: r}
"""
CALL = "import sys; from selfcal.cli.app import main; sys.exit(main(sys.argv[1:]))"
MINUTE_S = 60
ROOM, MORE_THAN_ROOM = 64 << 20, 512 << 20


def validated(program, folder: Path, epochs: int, *runs: str) -> None:
    """Write the training's configuration; validate the files for every run."""
    with (folder / "run.yaml").open("a") as file:
        file.write(CONFIG.replace("EPOCHS", str(epochs)))
    for out in runs:
        assert program("validate", "run.yaml", "--out", out).code == 0


def trained(run: Path) -> tuple[dict[str, bytes], object]:
    """The tagger of a run and what was measured of it, without speeds."""
    arrays = read_arrays(run / "checkpoints/tagger/model.safetensors")
    metrics = json.loads((run / "results/tagger_metrics.json").read_text())
    return {name: value.tobytes() for name, value in arrays.items()}, metrics


def with_little_room(allocate: Callable[[], object]) -> Callable[[object], object]:
    """Allocate more than the process may still have."""

    def fail(outcome: object) -> object:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
        try:
            allocate()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        return outcome

    return fail


def not_a_number(outcome):
    loss, output = outcome
    return replace(loss, total=loss.total * float("nan")), output


FAULTS = {
    "NaN": (not_a_number, 4, "NaN or infinite"),
    "no memory for PyTorch": (
        with_little_room(lambda: torch.ones(MORE_THAN_ROOM, dtype=torch.uint8)),
        5,
        "memory ran out during 'train'",
    ),
    "no memory for numpy": (
        with_little_room(lambda: np.ones(MORE_THAN_ROOM, np.uint8)),
        5,
        "memory ran out during 'train'",
    ),
    "no memory for Python": (
        with_little_room(lambda: bytearray(MORE_THAN_ROOM)),
        5,
        "memory ran out during 'train'",
    ),
}


@pytest.mark.fault(11, "a NaN loss and failing allocations (RLIMIT_AS) in a training: exit code, resume")
def test_a_fault_in_the_middle_of_a_training(selfcal, project, monkeypatch, attempts) -> None:  # noqa: F811
    validated(selfcal, project, 3, "alone", *(name.replace(" ", "_") for name in FAULTS))
    assert selfcal("train", "run.yaml", "--out", "alone").code == 0
    expected = trained(project / "alone")
    usual = loop.supervised_loss
    for name, (fault, code, problem) in FAULTS.items():
        run = project / name.replace(" ", "_")
        calls = 0

        def faulty(*given):
            nonlocal calls
            calls += 1
            outcome = usual(*given)
            return fault(outcome) if calls == 9 else outcome  # noqa: B023 - called at once

        with attempts(name):
            monkeypatch.setattr(loop, "supervised_loss", faulty)
            answer = selfcal("train", "run.yaml", "--out", run)
            monkeypatch.setattr(loop, "supervised_loss", usual)
            assert answer.code == code, answer.err
            assert problem in answer.err
            assert answer.err.count("selfcal:") == 1
            assert "fix:" in answer.err
            assert "Traceback" not in answer.err
            assert (run / "checkpoints/training.safetensors").exists()
            assert selfcal("train", "run.yaml", "--out", run).code == 0
            assert trained(run) == expected


def test_no_memory_for_a_verb_without_stages(selfcal, project, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr("selfcal.cli.inspection.inspect_files", lambda *given, **named: bytearray(1 << 62))
    answer = selfcal("inspect", "files/sim.h5")
    assert answer.code == 5
    assert "memory ran out" in answer.err


def torchrun(folder: Path, out: str) -> subprocess.Popen[str]:
    """Two processes that train together."""
    script = folder / "call.py"
    script.write_text(CALL)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, str(script), "train", "run.yaml", "--out", out],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def train_together(folder: Path, out: str) -> None:
    """Two processes that are left alone."""
    launcher = torchrun(folder, out)
    said = launcher.communicate()[1]
    assert launcher.returncode == 0, said


def process_of_rank(launcher: subprocess.Popen[str], rank: int) -> int:
    """The id of the launcher's child with this rank."""
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.long
@pytest.mark.fault(11, "one of two processes of torchrun killed: an end within a minute, resume")
def test_a_process_of_a_training_is_killed(selfcal, project, attempts) -> None:  # noqa: F811
    validated(selfcal, project, 40, "alone", "first", "second")
    train_together(project, "alone")
    expected = trained(project / "alone")
    for rank, out in enumerate(("first", "second")):
        with attempts(f"rank {rank}"):
            launcher = torchrun(project, out)
            while not (project / out / "checkpoints/training.safetensors").exists():
                assert launcher.poll() is None
                time.sleep(0.01)
            os.kill(process_of_rank(launcher, rank), 9)
            said = launcher.communicate(timeout=MINUTE_S)[1]
            assert launcher.returncode == 1
            assert f"rank      : {rank}" in said
            assert "another process of torchrun has ended" in said or "interrupted during 'train'" in said
            assert "/selfcal/" not in said  # no traceback of ours
            assert not (project / out / "checkpoints/tagger").exists()
            train_together(project, out)
            assert trained(project / out) == expected
