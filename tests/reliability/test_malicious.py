"""Files that somebody made to do harm: refused before they do anything, or shown as harmless text."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from selfcal.config.document import parse_document
from selfcal.data.hdf5 import write_jets
from selfcal.data.hdf5_reader import read_jets
from selfcal.errors import ConfigError, DataError, SelfcalError
from selfcal.likelihood import workspace_file
from selfcal.likelihood.workspace_file import read_workspace
from selfcal.run.atomic import read_arrays, read_json
from selfcal.run.stages import run_stages
from selfcal.tagger.bundle import load_bundle
from selfcal.training.checkpoints import load_checkpoint
from selfcal.training.prediction import write_copy
from tests.reliability.writers import JETS, WRITERS, bundle
from tests.run.conftest import chain  # noqa: F401 - a fixture


class Bomb:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.fault(10, "pickles in the place of checkpoints, bundles, arrays and JSON")
def test_pickles_are_not_loaded(tmp_path, attempts) -> None:
    import torch

    went_off = tmp_path / "went off"
    content = pickle.dumps({"model": Bomb(went_off)})
    torch.save({"model": Bomb(went_off)}, tmp_path / "torch.pt")
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    WRITERS["tagger bundle"](tmp_path / "bundle", 2)
    readers = {
        "training.safetensors": lambda path: load_checkpoint(path, model, optimiser, "x"),
        "arrays.safetensors": read_arrays,
        "x.json": read_json,
        "workspace.json": read_workspace,
        "x.h5": lambda path: read_jets(path, "x"),
        "bundle/model.safetensors": lambda path: load_bundle(path.parent),
        "bundle/tagger.json": lambda path: load_bundle(path.parent),
    }
    for pickled in (content, (tmp_path / "torch.pt").read_bytes()):
        for name, read in readers.items():
            with attempts(name):
                (tmp_path / name).write_bytes(pickled)
                with pytest.raises(DataError):
                    read(tmp_path / name)
                assert not went_off.exists()


@pytest.mark.fault(10, "safetensors headers that are oversized, no JSON, or point beyond the file")
def test_safetensors_headers(tmp_path, attempts) -> None:
    path = tmp_path / "x.safetensors"

    def header(content: object) -> bytes:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        return struct.pack("<Q", len(text)) + text

    one = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}
    cases = {
        "length of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
        "length beyond the file": struct.pack("<Q", 1 << 20) + b"{}",
        "200 MB promised": struct.pack("<Q", 200 << 20) + b"{}" + b" " * 100,
        "no JSON": header(b"x" * 20),
        "offsets beyond the file": header({"a": {**one, "data_offsets": [0, 1 << 40]}}),
        "shape of 2^60": header({"a": {**one, "shape": [1 << 60]}}) + b"\0" * 8,
        "negative shape": header({"a": {**one, "shape": [-1]}}) + b"\0" * 8,
        "overlap": header({"a": one, "b": one}) + b"\0" * 8,
        "more than is named": header({"a": one}) + b"\0" * 64,
    }
    for what, content in cases.items():
        with attempts(what):
            path.write_bytes(content)
            with pytest.raises(DataError, match="damaged"):
                read_arrays(path)


@pytest.mark.fault(
    10, "HDF5 whose datasets lie in other files: external and soft links, external and virtual storage"
)
@pytest.mark.parametrize("dataset", ["jets", "tracks"])
def test_hdf5_that_leads_elsewhere(tmp_path, attempts, dataset) -> None:
    secret = tmp_path / "secret.h5"
    write_jets(secret, JETS, labels=True)
    with h5py.File(secret) as file:
        dtype, shape = file[dataset].dtype, file[dataset].shape
    (tmp_path / "raw").write_bytes(b"\0" * int(dtype.itemsize * np.prod(shape)))

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(secret, dataset, shape, dtype)
        file.create_virtual_dataset(dataset, layout)

    def soft(file: h5py.File) -> None:
        file["elsewhere"] = h5py.ExternalLink(str(secret), dataset)
        file[dataset] = h5py.SoftLink("/elsewhere")

    def external(file: h5py.File) -> None:
        file[dataset] = h5py.ExternalLink(str(secret), dataset)

    def stored(file: h5py.File) -> None:
        file.create_dataset(dataset, shape, dtype, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])

    from selfcal.config.card import DataCard

    path = tmp_path / "x.h5"
    card = DataCard(name="x", role="simulation", region="any", files=(str(path),))
    for change in (virtual, soft, external, stored):
        write_jets(path, JETS, labels=True)
        with h5py.File(path, "r+") as file:
            del file[dataset]
            change(file)
        with attempts(f"{change.__name__} read"), pytest.raises(DataError, match="a link, or its content"):
            read_jets(path, "x")
        with attempts(f"{change.__name__} copied by predict"):
            with pytest.raises(DataError, match="a link, or its content"):
                write_copy(bundle(), card, path, tmp_path / "out.h5", lambda done: None)
            assert not (tmp_path / "out.h5").exists()


@pytest.mark.fault(10, "../, absolute paths and symbolic links in the records of a run")
def test_records_that_name_files_outside_the_run(tmp_path, chain, attempts) -> None:  # noqa: F811
    mine = tmp_path / "thesis.tex"
    mine.write_text("x")
    run = chain.context.directory.path
    run_stages(chain.stages(), chain.context)
    (run / "link").symlink_to(tmp_path)
    for number, name in enumerate(
        ("../thesis.tex", str(mine), "results/../../thesis.tex", "link/thesis.tex")
    ):
        with attempts(name):
            record = run / "stages" / "c.json"
            content = json.loads(record.read_text())
            content["outputs"][name] = {"size": 1, "sha256": "0" * 64}
            record.write_text(json.dumps(content))
            chain.settings["c"] = 10 + number
            run_stages(chain.stages(), chain.context)
            assert mine.read_text() == "x"
            assert name not in json.loads(record.read_text())["outputs"]


@pytest.mark.fault(10, "gzip and JSON bombs as workspaces")
def test_bombs(tmp_path, attempts, monkeypatch) -> None:
    monkeypatch.setattr(workspace_file, "MAX_BYTES", 1 << 20)
    bombs = {
        "zeros.json.gz": gzip.compress(b" " * (8 << 20)),
        "nested.json": b"[" * 200_000,
        "numbers.json": b'{"a": ' + b"9" * 10_000 + b"}",
    }
    for name, content in bombs.items():
        with attempts(name):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError):
                read_workspace(tmp_path / name)


YAML = {
    "python object": "a: !!python/object/apply:os.system [touch x]\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "a: !!python/module:os\n",
    "own tag": "a: !include /etc/passwd\n",
    "binary": "a: !!binary aGVsbG8=\n",
    "set": "a: !!set {x, y}\n",
    "ordered mapping": "a: !!omap [x: 1]\n",
    "ten billion laughs": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
    "nested": "a: " + "[" * 5_000 + "]" * 5_000 + "\n",
    "self": "a: &a [*a]\n",
}


@pytest.mark.fault(10, "YAML with tags, bombs and endless nesting")
def test_yaml(attempts) -> None:
    for what, text in YAML.items():
        with attempts(what), pytest.raises(ConfigError):
            parse_document(text, "x.yaml")


@pytest.mark.fault(10, "names of cards, taggers, regions and runs that are paths")
def test_names_that_are_paths(attempts) -> None:
    from selfcal.config.card import DataCard
    from selfcal.config.run import RunConfig

    card = {"name": "x", "role": "simulation", "region": "r", "files": ["x.h5"]}
    run = {"name": "x", "data": {"cards": ["x.yaml"]}}
    for name in ("../x", "/etc/x", "a/b", "..", "", ".hidden", "a\nb", "a\0b", "-rf", "x\n", "<script>"):
        for what, model, values in (
            ("card", DataCard, {**card, "name": name}),
            ("region", DataCard, {**card, "region": name}),
            ("scores", DataCard, {**card, "scores": {"tagger": name}}),
            ("run", RunConfig, {**run, "name": name}),
            ("tagger", RunConfig, {**run, "tagger": {"name": name}}),
        ):
            with attempts(f"{what} {name!r}"), pytest.raises(ValueError, match=r"match|character"):
                model.model_validate(values)


@pytest.mark.fault(10, "a tagger's description that names other inputs, sizes and kinds")
def test_descriptions_of_bundles(tmp_path, attempts) -> None:
    from selfcal.run.sealed import read_sealed, write_sealed

    WRITERS["tagger bundle"](tmp_path, 2)
    described = read_sealed(tmp_path / "tagger.json")
    config = described["config"]
    for change in (
        {"config": {**config, "kind": "os.system"}},
        {"config": {**config, "width": 1 << 40}},
        {"config": {**config, "layers": -1}},
        {"inputs": {"track": "../../etc/passwd", "jet": []}},
        {"inputs": []},
        {"model_sha256": None},
        {"format_version": None},
        {"config": []},
    ):
        with attempts(change):
            write_sealed(tmp_path / "tagger.json", {**described, **change})
            with pytest.raises(SelfcalError):
                load_bundle(tmp_path)
