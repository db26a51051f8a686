"""``torchrun ... selfcal train``: the first process runs the stage, the others train with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import selfcal as package

CALL = "import sys; from selfcal.cli.app import main; sys.exit(main(sys.argv[1:]))"
CONFIG = """
tagger: {width: 16, layers: 1, heads: 2, feedforward_width: 16, latent: 8}
training: {epochs: 2, batch_size: 32}
fit: {working_point_region: r}
"""


def _together(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = folder / "call.py"
    script.write_text(CALL)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(package.__file__).parents[1])}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, str(script), *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def validated(selfcal, project):
    with (project / "run.yaml").open("a") as file:
        file.write(CONFIG)
    for out in ("one", "two"):
        assert selfcal("validate", "run.yaml", "--out", out).code == 0
    return project


@pytest.mark.long
def test_two_processes_leave_the_run_that_one_leaves(selfcal, validated):
    alone = selfcal("train", "run.yaml", "--out", "one")
    assert alone.code == 0, alone.err
    done = _together(validated, "train", "run.yaml", "--out", "two")
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((validated / out / "results" / "tagger_metrics.json").read_text())
        for out in ("one", "two")
    )
    assert [row["epoch"] for row in two["history"]] == [0, 1]
    for row, expected in zip(two["history"], one["history"], strict=True):
        assert row["train_total_loss"] == pytest.approx(expected["train_total_loss"], rel=1e-3)
    again = _together(validated, "train", "run.yaml", "--out", "two")
    assert again.returncode == 0, again.stderr
    assert "nothing to be done" in again.stdout + again.stderr


def test_other_verbs_are_refused_under_torchrun(selfcal, validated, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    answer = selfcal("run", "run.yaml", "--out", "one")
    assert answer.code == 2
    assert "torchrun" in answer.err
