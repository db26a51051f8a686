"""The table of the campaign counts what was done, by one process or by several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.table import BEGIN, END

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
from tests.reliability.table import attempts  # noqa: F401

@pytest.mark.fault(1, "alone")
@pytest.mark.parametrize("good", [True, True, False])
def test_alone(good): assert good

@pytest.mark.fault(2, "many")
def test_many(attempts):
    for number in range(5):
        with attempts(number): assert number != 3

@pytest.mark.fault(3, "not here")
def test_skipped(): pytest.skip("no such device")

@pytest.mark.fault(4, "before it begins")
def test_broken(missing): pass

def test_unmarked(): pass
"""
ROWS = """
| 1. Killed in the middle of the work | alone | 3 | 2 |
| 2. Killed while writing | many | 5 | 4 |
| 3. Disk full | not here | 0 | not tried: no such device |
| 4. Damaged files | before it begins | 1 | 0 |
| | **all** | **9** | **6** |
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_every_try_is_counted_once(tmp_path: Path, processes: int) -> None:
    if processes:
        pytest.importorskip("xdist", reason="needs pytest-xdist")
    (tmp_path / "test_faults.py").write_text(TESTS)
    (tmp_path / "test_others.py").write_text("def test_other(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(class, what): a try\n")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.reliability.table",
        "--fault-table",
        "page.md",
    ]
    command += ["-n", str(processes), "--dist", "loadfile"] if processes else ["-p", "no:xdist"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert ROWS in written
    assert ROWS in done.stdout
