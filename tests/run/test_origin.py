"""A run says which change makes it do a stage again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from selfcal.run.origin import Origin
from selfcal.run.stages import run_stages, stage_states

BEFORE = Origin(
    stage="calibrate",
    version="1.0",
    configuration={
        "seed": 1,
        "cards": [{"name": "data_dijet", "jets": 10}, {"name": "data_tt", "jets": 20}],
        "calibration": {"map": {"family": "flow", "knots": [1, 2]}, "bootstraps": 10},
    },
    upstream={"train": "t", "infer": "i"},
    inputs={"/here/one.h5": "1", "/here/two.h5": "2"},
)


def changed(**parts):
    configuration = json.loads(json.dumps(BEFORE.configuration))
    for path, value in parts.items():
        *folders, last = path.split("__")
        place = configuration
        for folder in folders:
            place = place[int(folder) if folder.isdigit() else folder]
        place[last] = value
    return replace(BEFORE, configuration=configuration)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (changed(calibration__map__family="residual"), 'calibration.map.family: "residual", was "flow"'),
        (changed(calibration__map__knots=[1, 2, 3]), "calibration.map.knots: [1, 2, 3], was [1, 2]"),
        (changed(calibration__map__width=8), "calibration.map.width: 8, was nothing"),
        (changed(calibration__map={"family": "flow"}), "calibration.map.knots: nothing, was [1, 2]"),
        (changed(cards__1__jets=40), "cards.data_tt.jets: 40, was 20"),
        (changed(seed=2, calibration__bootstraps=20), "seed: 2, was 1, and 1 more"),
        (changed(seed="x" * 99), f'seed: "{"x" * 38}…, was 1'),
        (replace(changed(seed=2), version="1.1"), "selfcal 1.1, was 1.0"),
        (replace(BEFORE, inputs={"/here/one.h5": "1", "/here/two.h5": "3"}), "input file two.h5 changed"),
        (replace(BEFORE, inputs={"/a.h5": "4", "/b.h5": "5"}), "input file a.h5 changed, and 1 more"),
        (replace(BEFORE, inputs={"/here/one.h5": "1"}), "inputs or the order of values changed"),
        (replace(BEFORE, upstream={"train": "t", "infer": "j"}), "'infer' was made from something else"),
    ],
)
def test_the_first_difference_is_named(now, reason):
    assert now.fingerprint != BEFORE.fingerprint
    assert now.difference(json.loads(json.dumps(BEFORE.as_record()))) == reason


def test_files_may_lie_elsewhere():
    moved = replace(BEFORE, inputs={"/there/1.h5": "1", "/there/2.h5": "2"})
    assert moved.fingerprint == BEFORE.fingerprint


@pytest.mark.parametrize("record", [None, 3, [], {}, {"version": "1.0", "inputs": {"a": []}, "upstream": 1}])
def test_a_record_that_says_less_is_no_error(record):
    assert BEFORE.difference(record)


def test_a_run_says_what_changed_and_what_was_not_finished(chain):
    run_stages(chain.stages(), chain.context)
    chain.settings["b"] = 2
    reasons = [state.reason for state in stage_states(chain.stages(), chain.context)]
    assert reasons == [None, "configuration: 2, was 1", "follows 'b'"]

    def stop(name):
        raise KeyboardInterrupt

    chain.before = stop
    with pytest.raises(Exception, match="interrupted during 'b'"):
        run_stages(chain.stages(), chain.context)
    assert stage_states(chain.stages(), chain.context)[1].reason == "was not finished"
