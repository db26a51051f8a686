"""kill -9 at random points of the whole chain: in the end there are the numbers of a chain left alone.

The chain is a study of two points, which share training, joint stage, calibration and bootstraps and differ
in their fits. It is killed, gone on with and killed again, so that whatever one resume loses is still wrong
at the end. The points are random in CPU time, from a fixed seed, so many in every part of the chain.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from selfcal.run.atomic import read_arrays
from tests.reliability.small_project import make_small_project

ROOT = Path(__file__).parents[2]
KILLS = {"training": 4, "joint stage": 3, "calibration": 4, "bootstraps": 4, "fit": 5}
"""Kills in each part of the chain."""

BEGUN = {"train": "training", "fit": "fit"}
CALL = "import sys; from selfcal.cli.app import main; sys.exit(main())"
FORGETFUL = f"""
import torch
torch.set_rng_state = lambda state: None
{CALL}
"""
"""The program, if it forgot to put random numbers back."""

DEADLINE_S = 1_200


@dataclass
class Chain:
    """One process that runs the study in ``folder``."""

    folder: Path
    program: str = CALL
    begun_ns: int = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        words = ("study", "run", "study.yaml", "--out", str(self.folder / "out"))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["PYTHONHASHSEED"] = str(random.Random(str(self.folder)).randrange(1 << 32))
        command = [sys.executable, "-W", "ignore", "-c", self.program, *words]
        with open(self.folder / "said", "ab") as said:
            self.process = subprocess.Popen(
                command, cwd=self.folder.parent, env=environment, stdout=said, stderr=said
            )

    def cpu_s(self) -> float:
        """CPU time that the process has used, children excluded."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def part(self) -> str | None:
        """The part of the chain that this process is in; None before and between them."""
        for record in self.folder.glob("store/*/stages/*.json"):
            if record.name == "inputs.json" or record.stat().st_mtime_ns < self.begun_ns:
                continue
            if json.loads(record.read_text())["fingerprint"] is None:
                return BEGUN.get(record.stem) or _part_of_calibration(record.parents[1])
        return None

    def watched(self) -> Iterator[tuple[str | None, float]]:
        """Part and CPU time, again and again until the process ends."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            try:
                yield self.part(), self.cpu_s()
            except (FileNotFoundError, ProcessLookupError):
                continue
            time.sleep(0.01)

    def finish(self) -> None:
        assert self.process.wait(DEADLINE_S) == 0, (self.folder / "said").read_text()[-2_000:]


def _part_of_calibration(run: Path) -> str | None:
    if not (run / "stages/calibrate.json").exists():
        return None  # validation
    if not (run / "results/joint.json").exists():
        return "joint stage"
    return "bootstraps" if list(run.glob("checkpoints/derivation/*/bulk-0.safetensors")) else "calibration"


def numbers(folder: Path) -> dict[str, object]:
    """All numbers of finished runs by file, but for times and speeds."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        kept = any(part in path.parts for part in ("results", "scores", "checkpoints"))
        if not kept or not path.is_file() or path.name == "tagger_speed.json":
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: value.tobytes() for key, value in read_arrays(path).items()}
        else:
            found[name] = path.read_bytes()
    return found


def content(folder: Path) -> dict[str, object]:
    """All numbers of a finished study, but for names of folders."""
    found = numbers(folder)
    summary = json.loads((folder / "out/summary.json").read_text())
    found["summary"] = [(row["point"], row["key"], row["values"], row["error"]) for row in summary["rows"]]
    return found


def differing(found: dict[str, object], expected: dict[str, object]) -> set[str]:
    """Names of files that are not the same in both."""
    return {name for name in {*found, *expected} if found.get(name) != expected.get(name)}


def durations(chain: Chain) -> dict[str, float]:
    """CPU seconds of every part of a chain that is left alone."""
    spent, before = dict.fromkeys(KILLS, 0.0), 0.0
    for part, cpu_s in chain.watched():
        if part is not None:
            spent[part] += cpu_s - before
        before = cpu_s
    return spent


def kill_in(chain: Chain, part: str, after_s: float) -> str | None:
    """kill -9 once the process has spent so much CPU time on a part, or is beyond it; where it was."""
    begin, where = None, None
    for where, cpu_s in chain.watched():
        if begin is None and where == part:
            begin = cpu_s
        if begin is not None and (cpu_s - begin >= after_s or where != part):
            chain.process.kill()
            break
    assert chain.process.wait() == -9, (chain.folder / "said").read_text()[-2_000:]
    return where


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], dict[str, object]]:
    """The project, the CPU time of each part, and what a chain left alone ends with."""
    project = tmp_path_factory.mktemp("chain") / "project"
    make_small_project(project)
    folder = project / "alone"
    folder.mkdir()
    chain = Chain(folder)
    spent = durations(chain)
    chain.finish()
    assert all(value > 0 for value in spent.values()), spent
    return project, spent, content(folder)


@pytest.mark.long
@pytest.mark.fault(1, "kill -9 at 20 random points of a study of whole chains, resumed: the same results")
def test_twenty_kills(alone, attempts) -> None:
    project, spent, expected = alone
    folder, generator, hit = project / "killed", random.Random(11), set()
    folder.mkdir()
    for part, kills in KILLS.items():
        # Each process does what is between two points: however little of it is kept, the part does not end.
        points = [0.0, *sorted(generator.uniform(0.0, 0.9) for _ in range(kills))]
        for before, after in pairwise(points):
            with attempts(f"{part}, {after:.2f} of it"):
                hit.add(kill_in(Chain(folder), part, (after - before) * spent[part]))
    assert hit >= set(KILLS)
    Chain(folder).finish()
    assert len(expected) > 40
    assert differing(content(folder), expected) == set()


@pytest.mark.long
def test_random_numbers_that_are_not_put_back_are_seen(alone) -> None:
    """The comparison can fail: a program that forgets them in the joint stage ends with other numbers."""
    project, spent, expected = alone
    folder = project / "forgetful"
    folder.mkdir()
    assert kill_in(Chain(folder), "joint stage", 0.7 * spent["joint stage"]) == "joint stage"
    assert list(folder.glob("store/*/checkpoints/joint.safetensors"))
    Chain(folder, FORGETFUL).finish()
    different = {Path(name).name for name in differing(content(folder), expected)}
    assert {"model.safetensors", "map.safetensors", "scale_factors.json"} <= different
    assert "roc.safetensors" not in different  # of the training before
