"""A disk that fills up: one error that names the file, the old file as it was, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.writers import WRITERS, file_sizes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault(3, "RLIMIT_FSIZE at six sizes in every writer, with and without an old file")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path, ask_writer, attempts, name) -> None:
    old = tmp_path / "old"
    old.mkdir()
    WRITERS[name](old, 1)
    before = contents(old)
    largest = max(file_sizes(old).values())
    for limit in (0, 1, largest // 9, largest // 3, largest // 2, largest - largest // 20 - 1):
        for place in ("new", "old"):
            with attempts(f"{name}, {limit} of {largest} bytes, {place}"):
                folder = tmp_path / (place if place == "old" else f"new{limit}")
                folder.mkdir(exist_ok=True)
                answer = ask_writer(name=name, folder=folder, limit=limit)
                assert answer.get("code") == 3, answer
                assert "cannot write" in answer["problem"]
                assert answer["where"].startswith(str(folder))
                found = contents(folder)
                if name == "metrics":
                    assert all(json.loads(line) for line in found["metrics.jsonl"].splitlines())
                    continue
                assert not list(folder.rglob("*.part"))
                blocked = Path(answer["where"]).relative_to(folder).as_posix()
                for file, content in found.items():
                    if file == blocked or file.startswith(f"{blocked}/"):
                        assert content == before[file]


@pytest.mark.fault(3, "the program's output into a full device")
def test_output_into_a_full_device_has_its_exit_code(tmp_path: Path, attempts) -> None:
    command = [sys.executable, "-c", "import sys; from selfcal.cli.app import main; sys.exit(main())"]
    for words in (("schema", "run"), ("run", "demo", "--dry-run"), ("study", "list")):
        with attempts(words), open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=ENVIRONMENT,
                cwd=tmp_path,
                check=False,
            )
            assert done.returncode == 3, done.stderr
            assert "standard output" in done.stderr
            assert "No space left" in done.stderr
            assert "Traceback" not in done.stderr
