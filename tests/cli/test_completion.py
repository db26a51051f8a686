"""Completion of words by the shell, as bash asks for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LAUNCH = "import sys; from selfcal.cli.app import main; sys.exit(main())"


def offered(words: str, folder) -> list[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "_SELFCAL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("selfcal cal", ["calibrate"]),
        ("selfcal study r", ["run", "resume"]),
        ("selfcal study run clo", ["closure", "closure_large"]),
        ("selfcal run dem", ["demo"]),
        ("selfcal run my", ["myfiles/", "my.yaml"]),
        ("selfcal study run x --sche", ["--scheduler"]),
    ],
)
def test_verbs_options_and_names_are_completed(tmp_path, words, expected):
    (tmp_path / "my.yaml").write_text("")
    (tmp_path / "myfiles").mkdir()
    assert sorted(offered(words, tmp_path)) == sorted(expected)


def test_help_says_how_to_install_it(selfcal):
    assert "--install-completion" in selfcal("--help").out
