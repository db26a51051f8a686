"""A process in which files are written that no test wants to lose its own process for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfcal.data.hdf5 import write_jets
from tests.reliability.writers import JETS

ROOT = Path(__file__).parents[2]

AskWriter = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def scored_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jets that are to be scored by the writers of predictions."""
    path = tmp_path_factory.mktemp("source") / "jets.h5"
    write_jets(path, JETS, labels=True)
    os.environ["SELFCAL_TEST_JETS"] = str(path)
    return path


@pytest.fixture(scope="module")
def ask_writer(scored_source: Path) -> Iterator[AskWriter]:
    """Calls a writer elsewhere: ``ask_writer(name=..., folder=..., limit=... or kill_after_s=...)``."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.writers"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:

        def ask(**order: Any) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(order, default=str), file=process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield ask
        assert process.stdin is not None
        process.stdin.close()
