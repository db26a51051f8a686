"""The same numbers with one thread and with two, wherever a stage gives PyTorch one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.small_project import make_small_project
from tests.reliability.test_killed_chain import CALL, ROOT, differing, numbers


def in_process(folder: Path, threads: int, program: str, *words: str) -> str:
    """What a fresh interpreter prints that finds ``OMP_NUM_THREADS`` and nothing else about threads."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", program, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


LIBRARIES = """
import selfcal.cli.app
import numpy as np, torch
from scipy.linalg import blas
torch.set_num_threads(1)
draw = np.random.default_rng(1).normal
for size in (2, 5, 30, 200, 20_000):
    x, y = draw(size=size), draw(size=size)
    print((x @ y).hex(), float(blas.ddot(x, y)).hex(), float(blas.dnrm2(x)).hex())
matrix = draw(size=(300, 300))
print((matrix @ matrix).tobytes().hex()[:100_000], np.linalg.eigvalsh(matrix + matrix.T).tobytes().hex())
"""


def test_numpy_and_scipy_do_not_depend_on_it(tmp_path: Path) -> None:
    assert in_process(tmp_path, 1, LIBRARIES) == in_process(tmp_path, 2, LIBRARIES)


@pytest.mark.long
def test_all_that_comes_after_the_training_does_not(tmp_path: Path) -> None:
    """One training, shared; joint stage, composition, maps, bootstraps and fit with one thread and two."""
    project = tmp_path / "project"
    make_small_project(project)
    for verb in ("validate", "train"):
        in_process(project, 1, CALL, verb, "run.yaml", "--out", "one")
    shutil.copytree(project / "one", project / "two")
    for threads, out in ((1, "one"), (2, "two")):
        for verb in ("calibrate", "fit"):
            in_process(project, threads, CALL, verb, "run.yaml", "--out", out)
    expected, found = numbers(project / "one"), numbers(project / "two")
    assert "results/scale_factors.json" in expected
    assert differing(found, expected) == set()
