"""The fault campaign as a table: which fault, how often it was tried, how often nothing bad came of it.

A test marked ``fault(CLASS, "what is done")`` counts as one try, or as many as it makes through the fixture
``attempts``. All marked tests together are the campaign, wherever they stand; their table is printed at the
end of a run, and ``--fault-table FILE`` puts it between the marks of a Markdown file. What a test made
travels with its report, so that tests shared by processes (``-n 2``) are counted, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

import selfcal

CLASSES = {
    1: "Killed in the middle of the work",
    2: "Killed while writing",
    3: "Disk full",
    4: "Damaged files",
    5: "NaN and infinities",
    6: "Wrong fields, units, jets, folds",
    7: "Nothing to measure",
    8: "Negative weights",
    9: "Fits that cannot be trusted",
    10: "Malicious input",
    11: "Parts that die",
    12: "Two processes, one run",
    13: "Malformed configurations and cards",
}
BEGIN, END = "<!-- the campaign begins -->", "<!-- the campaign ends -->"
Key = tuple[int, str]


@dataclass
class Attempts:
    """The tries of one test: a failed one is kept and the next ones still made."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, what: object) -> Iterator[None]:
        """One try, survived if the block raises nothing."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - any failure is one
            self.failures.append(f"{what}: {type(error).__name__}: {error}")


@dataclass(eq=False)  # a plugin of pytest has to be hashable
class Campaign:
    """What has been counted so far, by class and by what was done."""

    rows: dict[Key, list[int]] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest where the table is printed, for the reports of all processes."""
        made: tuple[int, str, int, int, str] | None = getattr(report, "fault", None)
        if made is None:
            return
        number, what, tried, survived, skipped = made
        if skipped:
            self.skipped[number, what] = skipped
        else:
            row = self.rows.setdefault((number, what), [0, 0])
            row[0] += tried
            row[1] += survived

    def lines(self) -> list[str]:
        """The table in Markdown."""
        lines = ["| class | what is done | tries | survived |", "|---|---|---:|---:|"]
        for number, what in sorted({*self.rows, *self.skipped}):
            tried, survived = self.rows.get((number, what), (0, 0))
            shown = f"{survived}" if tried else f"not tried: {self.skipped[number, what]}"
            lines.append(f"| {number}. {CLASSES[number]} | {what} | {tried} | {shown} |")
        tried = sum(row[0] for row in self.rows.values())
        survived = sum(row[1] for row in self.rows.values())
        return [*lines, f"| | **all** | **{tried}** | **{survived}** |"]


CAMPAIGN = pytest.StashKey[Campaign]()
ATTEMPTS = pytest.StashKey[Attempts]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="Put the table of the fault campaign into this file.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CAMPAIGN] = Campaign()
    config.pluginmanager.register(config.stash[CAMPAIGN])


@pytest.fixture
def attempts(request: pytest.FixtureRequest) -> Iterator[Attempts]:
    """``with attempts("what"): ...`` for every try of a test that makes many."""
    made = request.node.stash[ATTEMPTS] = Attempts()
    yield made
    assert made.tried > 0
    if made.failures:
        pytest.fail(f"{len(made.failures)} of {made.tried} not survived\n" + "\n".join(made.failures))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    mark = item.get_closest_marker("fault")
    if mark is not None:
        number, what = mark.args
        if report.skipped:
            reason = str(call.excinfo.value).partition("\n")[0] if call.excinfo else "skipped"
            report.fault = (number, what, 0, 0, reason)
        elif report.when == "call" or report.failed:
            made = item.stash.get(ATTEMPTS, None)
            if made is None:
                report.fault = (number, what, 1, int(report.passed), "")
            elif report.when == "call":
                tried = made.tried + int(report.failed)  # the test itself, if it failed outside any try
                report.fault = (number, what, tried, made.tried - len(made.failures), "")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    campaign = config.stash[CAMPAIGN]
    if not campaign.rows:
        return
    terminalreporter.section("fault campaign")
    for line in campaign.lines():
        terminalreporter.write_line(line)
    path: Path | None = config.getoption("--fault-table")
    if path is not None:
        text = path.read_text(encoding="utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        day = datetime.now(UTC).date().isoformat()
        table = "\n".join([f"selfcal {selfcal.__version__}, {day}:", "", *campaign.lines()])
        path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
        terminalreporter.write_line(f"written to {path}")
