"""A small project of files, as a user would have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from selfcal.cli.app import main
from selfcal.data.hdf5 import write_jets


@dataclass
class Answer:
    """What a call of the program gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def selfcal(capsys):
    """Call the program: ``selfcal("run", "x.yaml")``."""

    def call(*words: object) -> Answer:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def project(tmp_path, make_jets, monkeypatch) -> Path:
    """Simulation and data of one region, with cards and a configuration; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cards").mkdir()
    (tmp_path / "files").mkdir()
    for seed, (name, role) in enumerate((("sim", "simulation"), ("data", "data"))):
        jets = make_jets(4, jets=300, seed=seed, dataset=name)
        truth = None if role == "simulation" else np.asarray(jets.flavour)
        write_jets(tmp_path / "files" / f"{name}.h5", jets, labels=truth is None, closure_truth=truth)
        composition = "composition: {}\n" if role == "data" else ""
        (tmp_path / "cards" / f"{name}.yaml").write_text(
            f"name: {name}\nrole: {role}\nregion: r\nfiles: [{name}.h5]\n{composition}"
        )
    (tmp_path / "run.yaml").write_text(
        "name: small\ndata:\n  root: files\n  cards: [cards/sim.yaml, cards/data.yaml]\n"
    )
    return tmp_path
