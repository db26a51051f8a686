"""A pytest plugin: which test runs which line, and how much CPU time each test takes.

``coverage run -m pytest -p bench.covering_tests ...`` marks what coverage.py records with the node id of
the test and its phase (``tests/a.py::test_b|run``; what a fixture does belongs to the test that first asked
for it), and writes the seconds of each test that passed to the file named by SELFCAL_TEST_SECONDS, if it is
set. ``bench/mutation.py`` reads both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

SECONDS: dict[str, float] = {}
"""CPU seconds, of processes that a test starts too: wall time depends on what else the machine does."""
NOT_PASSED: set[str] = set()


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _record_as(context: str) -> None:
    recorder = coverage.Coverage.current()
    if recorder is not None:
        recorder.switch_context(context)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Lines of fixtures."""
    _record_as(f"{item.nodeid}|setup")
    begin = _cpu_seconds()
    yield
    SECONDS[item.nodeid] = _cpu_seconds() - begin


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Lines of the test itself."""
    _record_as(f"{item.nodeid}|run")
    begin = _cpu_seconds()
    yield
    SECONDS[item.nodeid] += _cpu_seconds() - begin
    _record_as("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tests that do not pass can find nothing."""
    if not report.passed:
        NOT_PASSED.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write the seconds beside those of earlier runs."""
    path = os.environ.get("SELFCAL_TEST_SECONDS")
    if path:
        known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        passed = {node: seconds for node, seconds in SECONDS.items() if node not in NOT_PASSED}
        Path(path).write_text(json.dumps(known | passed, indent=1))
