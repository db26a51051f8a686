"""kill -9 while a file is written: what is there afterwards is the old file or the new one, whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from selfcal.data.hdf5_reader import read_jets
from selfcal.run.atomic import read_arrays, read_json, write_text
from selfcal.run.directory import RunDirectory
from selfcal.run.metrics import read_metrics
from selfcal.tagger.bundle import load_bundle
from tests.reliability.writers import JETS, WRITERS, bundle

KILLS = {"short": 6, "long": 50}


def _jets(folder: Path) -> None:
    assert len(read_jets(folder / "x.h5", "x")) == len(JETS)
    with h5py.File(folder / "x.h5") as file:
        assert file.attrs["version"] in ("2", "3")


def _scores(folder: Path) -> None:
    with h5py.File(folder / "scored.h5") as file:
        assert np.isfinite(file["jets"]["SelfCal_pb"]).all()


def _bundle(folder: Path) -> None:
    """Two files: weights of one version with the description of another are refused, not used."""
    found = load_bundle(folder).model.state_dict()
    candidates = [bundle(version).model.state_dict() for version in (2, 3)]
    assert any(all(found[name].equal(one[name]) for name in found) for one in candidates)


def _same(values: object) -> None:
    assert set(np.ravel(values).tolist()) in ({2}, {3})


READERS: dict[str, Callable[[Path], None]] = {
    "JSON": lambda folder: _same(read_json(folder / "x.json")),
    "safetensors": lambda folder: _same(list(read_arrays(folder / "x.safetensors")["a"])),
    "checkpoint": lambda folder: _same(
        np.round(read_arrays(folder / "training.safetensors")["model/weight"]).astype(int)
    ),
    "metrics": lambda folder: _same(read_metrics(folder / "metrics.jsonl")[0]["version"]),
    "HDF5 of jets": _jets,
    "HDF5 of scores": _scores,
}


def kill(name: str, kills: int, folder: Path, ask_writer, attempts) -> int:
    """Kill a writer so often, read every time; how many tries there were."""
    WRITERS[name](folder, 2)
    generator = random.Random(name)
    for number in range(kills):
        with attempts(f"{name}, kill {number}"):
            assert ask_writer(name=name, folder=folder, kill_after_s=generator.uniform(0, 0.2))["killed"]
            READERS[name](folder)
    write_text(folder / "provenance.json", "{}")
    with RunDirectory(folder).lock():
        assert not list(folder.rglob("*.part"))
    return int(attempts.tried)


@pytest.mark.fault(2, "kill -9 during writes of each kind, short")
@pytest.mark.parametrize("name", READERS)
def test_old_or_new_and_whole(tmp_path, scored_source, ask_writer, attempts, name) -> None:
    assert kill(name, KILLS["short"], tmp_path, ask_writer, attempts) == KILLS["short"]


@pytest.mark.long
@pytest.mark.fault(2, "kill -9 during writes of each kind, 50 each")
@pytest.mark.parametrize("name", READERS)
def test_old_or_new_and_whole_fifty_times(tmp_path, scored_source, ask_writer, attempts, name) -> None:
    assert kill(name, KILLS["long"], tmp_path, ask_writer, attempts) == KILLS["long"]


@pytest.mark.fault(2, "kill -9 during writes of a tagger bundle (two files)")
@pytest.mark.parametrize("kills", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_a_bundle_is_whole_or_refused(tmp_path, ask_writer, attempts, kills) -> None:
    from selfcal.errors import DataError

    WRITERS["tagger bundle"](tmp_path, 2)
    generator = random.Random(5)
    for number in range(KILLS[kills]):
        with attempts(f"kill {number}"):
            ask_writer(name="tagger bundle", folder=tmp_path, kill_after_s=generator.uniform(0, 0.3))
            try:
                _bundle(tmp_path)
            except DataError as error:
                assert "not those that the description was written with" in error.problem  # noqa: PT017
