"""One process at a time, and never in somebody else's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selfcal
from selfcal.config.card import DataCard
from selfcal.errors import ConfigError, DataError
from selfcal.run.atomic import read_json
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(selfcal.__file__).parents[1])}
HOLDER = """
import sys, time
from selfcal.run.directory import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.fault(12, "a second process on a run directory")
def test_a_second_process_is_refused_and_told_by_whom(holder, tmp_path):
    with (
        pytest.raises(ConfigError, match=f"process \\(id {holder.pid}\\)"),
        RunDirectory(tmp_path / "run").lock(),
    ):
        raise AssertionError("the lock was given twice")


@pytest.mark.fault(12, "a lock left by a killed process")
def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with RunDirectory(tmp_path / "run").lock():
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no run"), RunDirectory(tmp_path).lock():
        raise AssertionError("given")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "thesis.tex").create()


def test_provenance_names_versions_seed_command_and_inputs(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.write_provenance(7, ["selfcal", "run", "x"], {"b": "22", "a": "11"})
    content = read_json(directory.provenance)
    assert content["versions"]["selfcal"] == selfcal.__version__
    assert content["versions"]["numpy"]
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["seed"] == 7
    assert content["command"] == ["selfcal", "run", "x"]
    assert list(content["inputs_sha256"].items()) == [("a", "11"), ("b", "22")]


@pytest.fixture
def context(chain, tmp_path):
    """A context with one card for each way to name files."""
    for name in ("a1.h5", "a2.h5", "b.h5"):
        (tmp_path / name).write_text("x")
    made = DataCard.model_validate(
        {"name": "made", "role": "simulation", "region": "r", "generate": {"process": "dijet", "jets": 5}}
    )
    files = {
        "one": ["b.h5"],
        "many": ["a*.h5"],
        "none": ["z*.h5"],
        "gone": ["z.h5"],
        "twice": ["b.h5", "*.h5"],
    }
    cards = [
        DataCard.model_validate({"name": name, "role": "simulation", "region": "r", "files": patterns})
        for name, patterns in files.items()
    ]
    folders = {card.name: tmp_path for card in cards}
    return RunContext(chain.context.config, (*cards, made), chain.context.directory, card_folders=folders)


def test_files_of_a_card(context, tmp_path):
    card = {card.name: card for card in context.cards}
    assert context.dataset_path(card["one"]) == (tmp_path / "b.h5",)
    assert context.dataset_path(card["many"]) == (tmp_path / "a1.h5", tmp_path / "a2.h5")
    assert context.dataset_path(card["made"]) == (context.directory.data / "made.h5",)
    for name in ("none", "gone"):
        with pytest.raises(DataError, match=f"no file of dataset '{name}'"):
            context.dataset_path(card[name])
    with pytest.raises(ConfigError, match="more than once"):
        context.dataset_path(card["twice"])


def test_cards_by_role_and_use(context):
    assert len(context.cards_for(role="simulation")) == 6
    assert context.cards_for(role="data") == ()
    assert len(context.cards_for(use="control")) == 6
