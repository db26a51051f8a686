"""A training killed anywhere ends with the same bits as one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

from selfcal.errors import DataError


class Killed(Exception):
    pass


def _killer(step):
    def on_step(done):
        if done == step:
            raise Killed

    return on_step


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.fault(1, "training stopped at seven steps, resumed bit-identical")
@pytest.mark.parametrize("step", [1, 6, 7, 8, 14, 20, 21])
def test_resumed_training_is_bit_identical(setup, tmp_path, step):
    """Seven steps per epoch: within epochs, at their ends, at the very end; with dropout."""
    undisturbed = setup()
    expected = undisturbed.run()
    with pytest.raises(Killed):
        setup().run(tmp_path, on_step=_killer(step))
    resumed, steps = setup(), []
    result = resumed.run(tmp_path, on_step=steps.append)
    assert _equal(resumed.weights(), undisturbed.weights())
    assert result == expected
    assert steps == list(range(step + 1, 22))


def test_a_resume_without_the_moments_of_the_optimiser_would_be_seen(setup, tmp_path, monkeypatch):
    """The comparison above can fail."""
    undisturbed = setup()
    undisturbed.run()
    with pytest.raises(Killed):
        setup().run(tmp_path, on_step=_killer(8))
    monkeypatch.setattr("selfcal.training.checkpoints._restore_optimiser", lambda *given: None)
    resumed = setup()
    resumed.run(tmp_path)
    assert not _equal(resumed.weights(), undisturbed.weights())


def test_resuming_a_finished_training_does_no_step(setup, tmp_path):
    first = setup()
    expected = first.run(tmp_path)
    second, steps = setup(), []
    assert second.run(tmp_path, on_step=steps.append) == expected
    assert steps == []
    assert _equal(first.weights(), second.weights())


def test_a_checkpoint_of_another_configuration_is_not_continued(setup, tmp_path):
    setup().run(tmp_path)
    other, alone, steps = setup(), setup(), []
    other.run(tmp_path, on_step=steps.append, learning_rate=1e-3)
    alone.run(learning_rate=1e-3)
    assert steps[0] == 1
    assert _equal(other.weights(), alone.weights())


def test_a_damaged_checkpoint_is_a_data_error(setup, tmp_path):
    setup().run(tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        setup().run(tmp_path)


CHILD = """
    import runpy, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    shared = runpy.run_path(sys.argv[1])
    local = runpy.run_path(sys.argv[2])
    from safetensors.torch import save_file
    training = local["setup"].__wrapped__(shared["make_synthetic_jets"])()
    training.run(Path(sys.argv[3]), epochs=6, on_step=lambda done: print(done, flush=True))
    save_file(training.weights(), sys.argv[4])
"""


@pytest.mark.fault(1, "training killed with -9, resumed bit-identical")
def test_sigkill_and_resume_in_new_processes(tmp_path, request):
    """A process killed by the kernel, and its successor, against one that was left alone."""
    tests = request.path.parents[1]
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))

    def command(folder, weights):
        (tmp_path / folder).mkdir(exist_ok=True)
        conftests = [str(tests / "conftest.py"), str(tests / "training" / "conftest.py")]
        return [sys.executable, str(script), *conftests, str(tmp_path / folder), str(tmp_path / weights)]

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tests.parent)}
    subprocess.run(command("a", "a.safetensors"), check=True, env=environment, stdout=subprocess.DEVNULL)
    victim = subprocess.Popen(
        command("b", "b.safetensors"), env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        while int(victim.stdout.readline()) < 15:
            time.sleep(0)
        victim.send_signal(signal.SIGKILL)
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
    assert victim.returncode == -signal.SIGKILL
    assert not (tmp_path / "b.safetensors").exists()
    done = subprocess.run(command("b", "b.safetensors"), check=True, env=environment, capture_output=True)
    assert int(done.stdout.split()[0]) > 12
    assert _equal(load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors"))
