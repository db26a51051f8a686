"""The stage killed with -9 between two files of detectors, then again: the undisturbed posterior."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from selfcal.data.hdf5 import write_jets
from selfcal.run.atomic import read_arrays, read_json

ROOT = Path(__file__).parents[2]
SETTINGS = """
name: small
data: {cards: [sim.yaml, data.yaml]}
inference: {enabled: true, chain_check: false}
"""
INFER = """
import sys
from pathlib import Path
from selfcal.config.loading import load_run
from selfcal.run.context import RunContext
from selfcal.run.directory import RunDirectory
from selfcal.sbi.stage import run_infer

settings, out = (Path(word) for word in sys.argv[1:])
loaded = load_run([str(settings)], ())
run_infer(RunContext(loaded.config, loaded.cards, RunDirectory(out), card_folders=loaded.card_folders))
"""


def infer(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", INFER, str(folder / "run.yaml"), str(out)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.mark.long
@pytest.mark.fault(1, "the inference of the detector killed with -9 at three places, the same posterior")
def test_a_killed_inference_goes_on_to_the_same_posterior(make_toy_jets, tmp_path):
    for name, role, seed in (("sim", "simulation", 1), ("data", "data", 2)):
        jets = make_toy_jets(8000 if role == "simulation" else 2000, seed=seed, dataset=name)
        write_jets(tmp_path / f"{name}.h5", jets, labels=role == "simulation")
        prior = "composition: {}\n" if role == "data" else ""
        text = f"name: {name}\nrole: {role}\nregion: only\nfiles: [{name}.h5]\n{prior}"
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    assert infer(tmp_path, tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    points = killed / "checkpoints/inference"
    for wanted in (1, 4, 8):
        process = infer(tmp_path, killed)
        while len(list(points.glob("points-*"))) < wanted:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "results/posterior.json").exists()
        assert len(list(points.glob("points-*"))) >= wanted
    assert infer(tmp_path, killed).wait() == 0
    first, again = (read_json(out / "results/posterior.json") for out in (tmp_path / "whole", killed))
    assert first == again
    draws, same = (
        read_arrays(out / "results/posterior_samples.safetensors")["theta"]
        for out in (tmp_path / "whole", killed)
    )
    assert np.array_equal(draws, same)
