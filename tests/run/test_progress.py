"""Bars on terminals, few plain lines elsewhere, silence on request."""

from __future__ import annotations

import io

from selfcal.run import progress
from selfcal.run.progress import PlainReporter, SilentReporter, TerminalReporter, reporter_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_rare_and_the_end_is_always_told(monkeypatch):
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    tracker = PlainReporter(stream, interval_s=10.0).track("jets", 35)
    for done in range(1, 36):
        tracker.update(done)
    assert stream.getvalue().splitlines() == ["jets: 10/35", "jets: 20/35", "jets: 30/35", "jets: 35/35"]


def test_the_reporter_suits_the_stream():
    assert isinstance(reporter_for(quiet=True, stream=Terminal()), SilentReporter)
    assert isinstance(reporter_for(quiet=False, stream=Terminal()), TerminalReporter)
    assert isinstance(reporter_for(quiet=False, stream=io.StringIO()), PlainReporter)


def test_a_bar_shows_label_and_total():
    stream = Terminal()
    reporter = reporter_for(quiet=False, stream=stream)
    reporter.track("jets", 40).update(40)
    reporter.close()
    reporter.say("[done] = 1")
    assert "jets" in stream.getvalue()
    assert "40/40" in stream.getvalue()
    assert "[done] = 1" in stream.getvalue()
