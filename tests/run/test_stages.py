"""A stage runs when, and only when, what it was made from has changed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import replace

import pytest

from selfcal.config.card import DataCard
from selfcal.errors import DataError, Interrupted
from selfcal.run.adoption import adopt_stages
from selfcal.run.atomic import write_text
from selfcal.run.digests import canonical_digest
from selfcal.run.directory import RunDirectory
from selfcal.run.stages import run_stages, stage_states


def test_second_run_does_nothing_and_says_so(chain):
    assert run_stages(chain.stages(), chain.context) == ["a", "b", "c"]
    chain.recorder.lines.clear()
    assert run_stages(chain.stages(), chain.context) == []
    assert chain.ran == ["a", "b", "c"]
    assert chain.recorder.lines[:3] == [f"[{name}] up to date" for name in "abc"]
    assert chain.recorder.lines[3].startswith("nothing to be done")


@pytest.mark.parametrize(("changed", "again"), [("a", "abc"), ("b", "bc"), ("c", "c")])
def test_changed_configuration_reruns_the_stage_and_what_follows(chain, changed, again):
    run_stages(chain.stages(), chain.context)
    chain.settings[changed] = 2
    assert run_stages(chain.stages(), chain.context) == list(again)
    assert run_stages(chain.stages(), chain.context) == []


def test_changed_input_file_reruns_everything(chain, tmp_path):
    source = tmp_path / "input.dat"
    source.write_text("one")
    chain.inputs = [source]
    run_stages(chain.stages(), chain.context)
    os.utime(source, ns=(1, 1))
    assert run_stages(chain.stages(), chain.context) == []
    source.write_text("two")
    assert run_stages(chain.stages(), chain.context) == ["a", "b", "c"]


def test_missing_output_is_made_again_and_the_rest_follows_only_if_it_differs(chain):
    run_stages(chain.stages(), chain.context)
    output = chain.context.directory.results / "a.txt"
    output.unlink()
    assert [state.current for state in stage_states(chain.stages(), chain.context)] == [False, False, False]
    assert run_stages(chain.stages(), chain.context) == ["a"]
    output.unlink()
    chain.text["a"] = "other"
    assert run_stages(chain.stages(), chain.context) == ["a", "b", "c"]


def test_truncated_output_is_made_again(chain):
    run_stages(chain.stages(), chain.context)
    (chain.context.directory.results / "b.txt").write_text("")
    assert run_stages(chain.stages(), chain.context) == ["b"]


def test_damaged_record_means_not_done(chain):
    run_stages(chain.stages(), chain.context)
    (chain.context.directory.stages / "b.json").write_text('{"fingerprint": ')
    assert run_stages(chain.stages(), chain.context) == ["b"]


def test_record_holds_digests_of_the_outputs(chain):
    run_stages(chain.stages(), chain.context)
    record = json.loads((chain.context.directory.stages / "b.json").read_text())
    output = record["outputs"]["results/b.txt"]
    assert (output["size"], output["sha256"]) == (1, hashlib.sha256(b"B").hexdigest())
    assert output["modified_ns"] == (chain.context.directory.results / "b.txt").stat().st_mtime_ns
    assert set(record["upstream"]) == {"a"}
    assert record["duration_s"] >= 0


def test_output_that_a_new_configuration_no_longer_makes_is_removed(chain):
    run_stages(chain.stages(), chain.context)
    extra = chain.context.directory.results / "extra.txt"
    extra.write_text("x")
    path = chain.context.directory.stages / "c.json"
    record = json.loads(path.read_text())
    record["outputs"]["results/extra.txt"] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    path.write_text(json.dumps(record))
    chain.settings["c"] = 2
    run_stages(chain.stages(), chain.context)
    assert not extra.exists()


def test_failure_keeps_what_was_finished(chain):
    def fail(name):
        if name == "b":
            raise DataError("broken")

    chain.before = fail
    with pytest.raises(DataError, match="broken"):
        run_stages(chain.stages(), chain.context)
    chain.before = lambda name: None
    assert run_stages(chain.stages(), chain.context) == ["b", "c"]


@pytest.fixture
def heeded_interrupt():
    """A shell starts background jobs with Ctrl-C ignored, and a run of the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_interrupted_and_the_next_run_goes_on(chain, number, heeded_interrupt):
    chain.before = lambda name: os.kill(os.getpid(), number) if name == "b" else None
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="during 'b'") as caught:
        run_stages(chain.stages(), chain.context)
    assert caught.value.exit_code == 5
    assert signal.getsignal(signal.SIGTERM) is before
    chain.before = lambda name: None
    assert run_stages(chain.stages(), chain.context) == ["b", "c"]


def test_a_stage_that_fails_when_rerun_is_no_longer_current(chain):
    """The old record must not outlive the outputs that it describes."""
    run_stages(chain.stages(), chain.context)
    chain.settings["b"] = 2

    def fail(name):
        raise DataError("broken")

    chain.before = fail
    with pytest.raises(DataError):
        run_stages(chain.stages(), chain.context)
    chain.settings["b"] = 1
    assert [state.current for state in stage_states(chain.stages(), chain.context)] == [True, False, False]


@pytest.mark.parametrize("text", ["A", "other"])
def test_a_stage_may_not_touch_the_outputs_of_another(chain, text):
    output = chain.context.directory.results / "a.txt"

    def overwrite(name):
        if name == "c":
            output.write_text(text)
            os.utime(output, ns=(1, 1))

    chain.before = overwrite
    with pytest.raises(DataError, match="output of an earlier stage changed while 'c' ran"):
        run_stages(chain.stages(), chain.context)


def test_asking_for_states_writes_nothing(chain):
    stage_states(chain.stages(), chain.context)
    assert not chain.context.directory.path.exists()


def test_digest_does_not_depend_on_the_order_of_keys():
    assert canonical_digest({"a": 1, "b": [1, 2]}) == canonical_digest({"b": [1, 2], "a": 1})
    assert canonical_digest({"a": 1, "b": [1, 2]}) != canonical_digest({"a": 1, "b": [2, 1]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_digest({"a": float("nan")})


@pytest.fixture
def chain_of_a_part(chain):
    """b reads nothing but the simulation x; a makes a file of it and one of the data y.

    ``settings`` of x and y are the configuration of a, ``text`` what it writes.
    """
    data = DataCard.model_validate(
        {"name": "y", "role": "data", "region": "r", "files": ["y.h5"], "composition": {}}
    )
    chain.context = replace(chain.context, cards=(*chain.context.cards, data))
    chain.settings |= {"x": 1, "y": 1}
    chain.text |= {"x": "X", "y": "Y"}

    def generate(context):
        paths = [context.directory.data / f"{name}.h5" for name in "xy"]
        for path in paths:
            write_text(path, chain.text[path.stem])
        return paths

    def described(context):
        return {card.name: chain.settings[card.name] for card in context.cards}

    first, second, third = chain.stages()
    stages = [
        replace(first, function=generate, configuration=described),
        replace(second, reads=lambda context: context.only("simulation", "control")),
        third,
    ]
    run_stages(stages, chain.context)
    return chain, stages


@pytest.mark.parametrize(
    ("changed", "again"), [("y", ["a", "c"]), ("x", ["a", "b", "c"])], ids=["data", "simulation"]
)
def test_a_stage_that_reads_some_datasets_is_done_again_for_these_alone(chain_of_a_part, changed, again):
    chain, stages = chain_of_a_part
    chain.settings[changed] = 2
    chain.text[changed] = "other"
    assert run_stages(stages, chain.context) == again


@pytest.mark.parametrize(
    ("described", "written", "taken", "again"),
    [
        ("y", "y", ("b",), ["a", "c"]),
        ("x", "x", (), ["a", "b", "c"]),
        # The same description that gives other bytes, as it may on another machine.
        ("y", "x", ("b",), ["a", "b", "c"]),
    ],
    ids=["data", "simulation", "bytes"],
)
def test_a_stage_is_taken_over_by_itself_from_a_run_with_what_it_reads(
    chain_of_a_part, tmp_path, described, written, taken, again
):
    chain, stages = chain_of_a_part
    donor = chain.context.directory
    other = replace(chain.context, directory=RunDirectory(tmp_path / "other"))
    chain.settings[described] = 2
    chain.text[written] = "other"
    assert adopt_stages(stages, other, [donor]) == taken
    assert run_stages(stages, other) == again
    assert run_stages(stages, other) == []
