"""Two processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfcal.config.training import TrainingConfig
from selfcal.run.metrics import read_metrics
from selfcal.training.objectives import supervised_loss
from selfcal.training.processes import ALONE
from tests.training.conftest import Setup

CHILD = """
    import runpy, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from safetensors.torch import save_file
    from selfcal.training.processes import joined
    shared = runpy.run_path(sys.argv[1])
    local = runpy.run_path(sys.argv[2])
    test = runpy.run_path(sys.argv[3])
    out = Path(sys.argv[4])
    training = test["without_dropout"](local["setup"].__wrapped__(shared["make_synthetic_jets"])())
    with joined() as processes:
        for weight in test["VERTEX_WEIGHTS"]:
            gradients = test["gradients_and_losses"](training, weight, processes)
            save_file(gradients, out / f"gradients{weight}.{processes.rank}")
        training.run(out, batch_size=51)
        save_file(training.weights(), out / f"weights.{processes.rank}")
        again = test["without_dropout"](local["setup"].__wrapped__(shared["make_synthetic_jets"])())
        test["in_two_detectors"](again)
        if processes.rank == 0:
            (out / "detectors").mkdir()
        again.run(out / "detectors", batch_size=51, **test["TWO_DETECTORS"])
"""
VERTEX_WEIGHTS = (1.5, 0.0)
TWO_DETECTORS = {"vary_detector": True, "consistency_weight": 0.5}


def without_dropout(training: Setup) -> Setup:
    """Each process draws its own: with dropout, two do not equal one."""
    for part in training.bundle.model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.0
    return training


def in_two_detectors(training: Setup) -> Setup:
    """In the second, a feature of all tracks is shifted."""
    elsewhere = replace(training.train, tracks=training.train.tracks + 0.5)
    training.varied = lambda epoch: elsewhere
    return training


def gradients_and_losses(training: Setup, vertex_loss_weight: float, processes) -> dict[str, torch.Tensor]:
    """Of 51 jets that the processes share, with unequal numbers of jets, tracks and pairs."""
    config = TrainingConfig(vertex_loss_weight=vertex_loss_weight)
    index = np.arange(51)[processes.rank :: processes.size]
    model = training.bundle.model
    model.zero_grad(set_to_none=True)
    loss, _ = supervised_loss(model, training.train.batch(index), config, processes)
    loss.total.backward()
    processes.total_gradients(list(model.parameters()))
    losses = {name: processes.total(part) for name, part in {"total": loss.total, **loss.parts}.items()}
    return losses | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, request):
    """The folder in which two processes have left what they computed."""
    out = tmp_path_factory.mktemp("two")
    script = out / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    tests = request.path.parents[1]
    files = [tests / "conftest.py", tests / "training" / "conftest.py", request.path, out]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests.parent)}
    words = [sys.executable, *launcher, str(script), *map(str, files)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("weight", VERTEX_WEIGHTS)
def test_losses_and_gradients_equal_those_of_one_process(two_processes, setup, weight):
    expected = gradients_and_losses(without_dropout(setup()), weight, ALONE)
    for rank in (0, 1):
        found = load_file(two_processes / f"gradients{weight}.{rank}")
        # Without its loss the vertex head has no gradient, so that weight decay does not touch it.
        assert found.keys() == expected.keys()
        assert any(name.startswith("vertex.") for name in found) == (weight > 0)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_training_is_that_of_one_process(two_processes, setup):
    alone = without_dropout(setup()).run(batch_size=51)
    rows = read_metrics(two_processes / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row, expected, tolerance in zip(rows, alone.history, (1e-5, 1e-3, 1e-2), strict=True):
        for name in ("train_total_loss", "train_vertex_loss", "validation_flavour_loss"):
            assert row[name] == pytest.approx(expected[name], rel=tolerance)


def test_two_detectors_are_compared_as_by_one_process(two_processes, setup):
    alone = in_two_detectors(without_dropout(setup())).run(batch_size=51, **TWO_DETECTORS)
    rows = read_metrics(two_processes / "detectors" / "metrics.jsonl")
    assert len(rows) == len(alone.history)
    for row, expected, tolerance in zip(rows, alone.history, (1e-5, 1e-3, 1e-2), strict=True):
        assert row["train_consistency_loss"] > 0
        for name in ("train_consistency_loss", "train_total_loss", "validation_flavour_loss"):
            assert row[name] == pytest.approx(expected[name], rel=tolerance)


def test_all_processes_hold_the_same_weights(two_processes):
    first, second = (load_file(two_processes / f"weights.{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
