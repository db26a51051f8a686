"""Bench scripts end as the command-line interface does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfcal.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("precision", "nowhere"), DataError, "file not found"),
        (("refit", "nowhere"), ConfigError, "there is no folder nowhere"),
    ],
)
def test_a_wrong_path_is_one_clear_error(
    words: tuple[str, ...], error: type[DataError | ConfigError], said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"bench.{words[0]}", *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == error.exit_code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
