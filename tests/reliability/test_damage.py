"""Truncation and single flipped bits: refused, or every number that is read is the one that was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.hdf5 import write_jets
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jet_reader import Wanted
from selfcal.data.validation import validate_dataset
from selfcal.errors import DataError, SelfcalError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.digests import file_sha256
from selfcal.run.stages import run_stages
from selfcal.tagger.bundle import load_bundle
from tests.data.test_root_files import whole  # noqa: F401 - a fixture
from tests.reliability.writers import JETS, WRITERS
from tests.run.conftest import chain  # noqa: F401 - a fixture

OFFSETS, BITS = 32, 64


def damages(content: bytes, seed: int):
    """Truncations at 32 offsets and 64 single flipped bits, each as (what, bytes)."""
    generator = np.random.default_rng(seed)
    for length in np.linspace(0, len(content) - 1, OFFSETS).astype(int):
        yield f"cut at {length}", content[:length]
    for place in generator.choice(8 * len(content), BITS, replace=False):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << (place % 8)
        yield f"bit {place} flipped", bytes(changed)


def flat(value: Any) -> list[bytes]:
    """Everything a reader gave back, as bytes that can be compared."""
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (str(key).encode(), *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [part for item in value for part in flat(item)]
    if isinstance(value, np.ndarray):
        return [str((value.dtype, value.shape)).encode(), value.tobytes()]
    return [repr(value).encode()]


def check_damage(path: Path, read: Callable[[Path], Any], attempts, seed: int = 1) -> int:
    """Damage ``path`` in every way; returns how many were told apart from the whole file."""
    original = path.read_bytes()
    expected = flat(read(path))
    detected = 0
    for what, content in damages(original, seed):
        with attempts(f"{path.name}, {what}"):
            path.write_bytes(content)
            try:
                found = flat(read(path))
            except SelfcalError as error:
                detected += 1
                assert path.name in f"{error} {error.where}"  # noqa: PT017 - some damages are harmless
            else:
                assert found == expected, "another content was read without a word"
    path.write_bytes(original)
    return detected


def jets_of(path: Path) -> Any:
    jets = read_jets(path, "x")
    return [getattr(jets, field.name) for field in fields(jets)]


@pytest.mark.fault(4, "32 truncations and 64 bit flips of a native HDF5 file")
def test_hdf5_of_jets(tmp_path, attempts) -> None:
    write_jets(tmp_path / "x.h5", JETS, labels=True)
    assert check_damage(tmp_path / "x.h5", jets_of, attempts) > OFFSETS


@pytest.mark.fault(4, "32 truncations and 64 bit flips of safetensors")
def test_safetensors(tmp_path, attempts) -> None:
    values = np.random.default_rng(2).normal(size=(40, 7))
    write_arrays(tmp_path / "x.safetensors", {"a": values, "b": np.arange(5), "c": np.float32(1)})
    assert check_damage(tmp_path / "x.safetensors", read_arrays, attempts) == OFFSETS + BITS


def model_of(folder: Path) -> Any:
    bundle = load_bundle(folder)
    state = {name: value.numpy() for name, value in bundle.model.state_dict().items()}
    norm = bundle.normalisation
    numbers = [norm.track_mean, norm.track_width, norm.jet_mean, norm.jet_width]
    return [bundle.config.model_dump_json(), bundle.inputs, numbers, state]


@pytest.mark.fault(4, "32 truncations and 64 bit flips of both files of a tagger bundle")
@pytest.mark.parametrize("name", ["model.safetensors", "tagger.json"])
def test_bundle(tmp_path, attempts, name) -> None:
    WRITERS["tagger bundle"](tmp_path, 2)
    assert check_damage(tmp_path / name, lambda path: model_of(path.parent), attempts) > OFFSETS


@pytest.mark.fault(4, "32 truncations and 64 bit flips of a checkpoint")
def test_checkpoint(tmp_path, attempts) -> None:
    WRITERS["checkpoint"](tmp_path, 2)
    assert check_damage(tmp_path / "training.safetensors", read_arrays, attempts) == OFFSETS + BITS


@pytest.mark.fault(4, "32 truncations and 64 bit flips of input files whose card gives a SHA-256")
@pytest.mark.parametrize("name", ["x.h5", "x.root"])
def test_input_files_with_a_digest(tmp_path, whole, attempts, name) -> None:  # noqa: F811
    """What the format's own checks let through, the digest of the data card does not."""
    path = tmp_path / name
    if name == "x.h5":
        write_jets(path, JETS, labels=True)
        keys: dict[str, Any] = {"format": "ftag_hdf5", "accept": {"length_unit": "synthetic tracks"}}
    else:
        keys = {"format": "nanoaod"}
        shutil.copy(whole, path)
    card = DataCard.model_validate(
        {
            "name": "x",
            "role": "simulation",
            "region": "r",
            "files": (name,),
            "sha256": {name: file_sha256(path)},
        }
        | keys
    )
    wanted = Wanted(tracks=name == "x.h5")

    def validated(_: Path) -> Any:
        return validate_dataset(card, [path], tmp_path, DataConfig(cards=("x",)), wanted).report

    assert check_damage(path, validated, attempts) == OFFSETS + BITS


@pytest.mark.fault(4, "32 truncations and 64 bit flips of an output that a later stage reads")
@pytest.mark.parametrize("same_time", [True, False], ids=["time kept", "time changed"])
def test_an_output_of_an_earlier_stage(chain, attempts, same_time) -> None:  # noqa: F811
    """With a new time of modification the stage is done again; without, reading it is refused."""
    run_stages(chain.stages(), chain.context)
    path = chain.context.directory.results / "a.txt"
    chain.text["a"] = "A" * 200
    chain.settings["a"] = 2
    run_stages(chain.stages(), chain.context)
    original, status = path.read_bytes(), path.stat()
    for number, (what, content) in enumerate(damages(original, 3)):
        with attempts(what):
            path.write_bytes(content)
            if same_time:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            chain.settings["b"] = 10 + number
            if same_time and len(content) == len(original):
                with pytest.raises(DataError, match="not what stage 'a' wrote"):
                    run_stages(chain.stages(), chain.context)
                path.write_bytes(original)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            else:
                done = run_stages(chain.stages(), chain.context)
                assert done[0] == "a"
            assert path.read_bytes() == original
            run_stages(chain.stages(), chain.context)
        status = path.stat()
