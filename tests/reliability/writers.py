"""One call of everything in selfcal that writes a file, small: by name, a function of a folder.

Run as a script, it is the process that is killed, or whose disk is full.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfcal.config.fit import ExportConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.data.hdf5 import write_jets
from selfcal.data.jets import TRACK_FIELDS
from selfcal.errors import SelfcalError
from selfcal.export.cdi import export_cdi
from selfcal.export.combine import export_combine
from selfcal.export.contract import Results
from selfcal.export.correctionlib_export import export_correctionlib
from selfcal.export.hepdata import export_hepdata
from selfcal.export.rows import ScaleFactorRows
from selfcal.export.table import export_table
from selfcal.likelihood.workspace_file import write_workspace
from selfcal.run.atomic import write_arrays, write_json, write_text
from selfcal.run.metrics import append_metrics
from selfcal.tagger.bundle import TaggerBundle, build_tagger, save_bundle
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.training.checkpoints import TrainingState, save_checkpoint
from selfcal.training.prediction import write_copy, write_friend
from tests.conftest import make_synthetic_jets
from tests.export.conftest import make_scale_factors, make_workspace

Writer = Callable[[Path, int], None]
JETS = make_synthetic_jets(4, jets=150)
SMALL = TaggerConfig(width=8, layers=1, heads=2, feedforward_width=8, latent=8)


def bundle(version: int = 0) -> TaggerBundle:
    """A small tagger that has learnt nothing; another one for another ``version``."""
    inputs = common_inputs([JETS])
    norm = Normalisation.measure([compute_features(JETS, inputs)])
    return TaggerBundle(SMALL, inputs, norm, build_tagger(SMALL, inputs, norm, seed=version).eval())


def _results(folder: Path, version: int) -> Results:
    return Results(
        folder, ScaleFactorRows(make_scale_factors(seed=version)), make_workspace(), ExportConfig()
    )


def _checkpoint(folder: Path, version: int) -> None:
    model = torch.nn.Linear(40, 40)
    torch.nn.init.constant_(model.weight, float(version))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 40)).sum().backward()
    optimiser.step()
    save_checkpoint(folder / "training.safetensors", TrainingState(epoch=version), model, optimiser, "x")


def _predicted(friend: bool) -> Writer:
    def write(folder: Path, version: int) -> None:
        from selfcal.config.card import DataCard

        source = Path(os.environ["SELFCAL_TEST_JETS"])
        card = DataCard(name="x", role="simulation", region="any", files=(str(source),))
        output = folder / "scored.h5"
        if friend:
            write_friend(bundle(version), card, source, len(JETS), output, lambda done: None)
        else:
            write_copy(bundle(version), card, source, output, lambda done: None)

    return write


def _metrics(folder: Path, version: int) -> None:
    for step in range(40):
        append_metrics(folder / "metrics.jsonl", {"step": step, "version": version})


WRITERS: dict[str, Writer] = {
    "text": lambda folder, version: write_text(folder / "x.txt", f"{version}\n" * 2000),
    "JSON": lambda folder, version: write_json(folder / "x.json", [version] * 2000),
    "metrics": _metrics,
    "safetensors": lambda folder, version: write_arrays(
        folder / "x.safetensors", {"a": np.full(3000, version), "b": np.full((3, 5), version)}
    ),
    "checkpoint": _checkpoint,
    "tagger bundle": lambda folder, version: [save_bundle(bundle(version), folder), None][1],
    "HDF5 of jets": lambda folder, version: [
        write_jets(
            folder / "x.h5",
            make_synthetic_jets(4, jets=150, seed=version, fields=TRACK_FIELDS),
            labels=True,
            attributes={"version": str(version)},
        ),
        None,
    ][1],
    "HDF5 with scores": _predicted(friend=False),
    "HDF5 of scores": _predicted(friend=True),
    "workspace": lambda folder, version: write_workspace(
        folder / "workspace.json.gz", {**make_workspace(), "channels": make_workspace()["channels"] * 9}
    ),
    "correctionlib": lambda folder, version: [export_correctionlib(_results(folder, version)), None][1],
    "table": lambda folder, version: [export_table(_results(folder, version)), None][1],
    "HEPData": lambda folder, version: [export_hepdata(_results(folder, version)), None][1],
    "Combine": lambda folder, version: [export_combine(_results(folder, version)), None][1],
    "CDI": lambda folder, version: [export_cdi(_results(folder, version)), None][1],
}
"""Every writer by name; ``version`` changes what is written."""


def file_sizes(folder: Path) -> dict[str, int]:
    """Sizes of the files below a folder by relative name."""
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def write_with_little_room(name: str, folder: Path, limit: int) -> dict[str, object]:
    """Call one writer in a child process that may make no file larger than ``limit`` bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        outcome: dict[str, object] = {}
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            WRITERS[name](folder, 2)
        except SelfcalError as error:
            outcome = {"code": error.exit_code, "where": error.where, "problem": error.problem}
        except BaseException:  # noqa: BLE001 - what a user would see as a traceback
            outcome = {"unexpected": traceback.format_exc()[-1500:]}
        os.write(writer, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if os.WIFEXITED(status) and text else {"unexpected": f"died, status {status}"}


def killed_while_writing(name: str, folder: Path, after_s: float) -> dict[str, object]:
    """A child process writes versions 2, 3, 2, ... over each other until it is killed."""
    child = os.fork()
    if child == 0:
        version = 2
        while True:
            WRITERS[name](folder, version)
            version = 5 - version
    time.sleep(after_s)
    alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    if alive:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"killed": alive}


def obey(order: dict[str, Any]) -> dict[str, object]:
    """Do what the tests ask for: the writer's ``name``, its ``folder``, and ``limit`` or ``kill_after_s``."""
    name, folder = order["name"], Path(order["folder"])
    if "limit" in order:
        return write_with_little_room(name, folder, order["limit"])
    return killed_while_writing(name, folder, order["kill_after_s"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    known: set[str] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["name"] not in known:  # libraries that are imported late write files of their own
            with tempfile.TemporaryDirectory() as elsewhere:
                WRITERS[asked["name"]](Path(elsewhere), 2)
            known.add(asked["name"])
        print(json.dumps(obey(asked)), flush=True)
