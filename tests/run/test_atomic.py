"""A file is whole or absent."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from selfcal.errors import DataError
from selfcal.run.atomic import (
    atomic_folder,
    atomic_path,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
    write_text,
)


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_folder_takes_the_place_of_the_old_one_or_leaves_it(tmp_path):
    folder = tmp_path / "results"
    with atomic_folder(folder) as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside/old.txt").write_text("old")

    def fail_half_way():
        with atomic_folder(folder) as temporary:
            (temporary / "half.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [path.name for path in folder.rglob("*")] == ["inside", "old.txt"]
    with atomic_folder(folder) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "results",
        "results/new.txt",
    ]


def test_json_of_arrays_and_tensors_and_no_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": np.arange(3), "b": torch.ones(2), "c": np.float32(0.5), "d": tmp_path})
    assert json.loads(path.read_text()) == {"a": [0, 1, 2], "b": [1.0, 1.0], "c": 0.5, "d": str(tmp_path)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["c"] == 0.5
    with pytest.raises(TypeError, match="set has no JSON form"):
        write_json(path, {"a": {1}})


def test_arrays_come_back_and_damage_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.zeros(0, dtype=np.int8)}
    write_arrays(path, arrays)
    again = read_arrays(path)
    assert set(again) == set(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="damaged"):
        read_arrays(path)
    with pytest.raises(DataError, match="not found"):
        read_arrays(tmp_path / "none")
