"""A project of synthetic jets whose runs take seconds, and a study of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfcal.config.study import StudyConfig
from selfcal.data.hdf5 import write_jets
from selfcal.study.points import Study

RUN = """
name: small
data: {root: files, cards: [cards/sim.yaml, cards/data.yaml]}
training: {epochs: 2, batch_size: 128}
tagger: {width: 16, layers: 1, feedforward_width: 32, latent: 16}
fit: {working_point_region: r, reference_regions: {b: r}}
"""


@pytest.fixture
def project(tmp_path, make_jets) -> Path:
    """Simulation and data of one region, with cards and the configuration ``run.yaml``."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "files").mkdir()
    for seed, (name, role) in enumerate((("sim", "simulation"), ("data", "data"))):
        jets = make_jets(4, jets=1000, seed=seed, dataset=name)
        truth = None if role == "simulation" else np.asarray(jets.flavour)
        write_jets(tmp_path / "files" / f"{name}.h5", jets, labels=truth is None, closure_truth=truth)
        composition = "composition: {}\n" if role == "data" else ""
        (tmp_path / "cards" / f"{name}.yaml").write_text(
            f"name: {name}\nrole: {role}\nregion: r\nfiles: [{name}.h5]\n{composition}"
        )
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


@pytest.fixture
def study_of(project):
    """``study_of(until=..., axes=...)``: a study of the project that collects numbers of validation or
    training."""

    def make(**changes) -> Study:
        collect = ["tagger_metrics.table"] if changes.get("until") == "train" else ["validation.datasets"]
        content = {"name": "s", "description": "d", "base": "run.yaml", "collect": collect, "expected": "e"}
        return Study(StudyConfig.model_validate(content | changes), project / "study.yaml")

    return make
