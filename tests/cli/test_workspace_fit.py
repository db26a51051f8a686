"""``selfcal fit --workspace`` as a user calls it."""

from __future__ import annotations

import json

import pyhf
import pytest

WORKSPACE = {
    "channels": [
        {
            "name": "region",
            "samples": [
                {
                    "name": "signal",
                    "data": [12.0, 11.0],
                    "modifiers": [{"name": "mu", "type": "normfactor", "data": None}],
                },
                {
                    "name": "background",
                    "data": [50.0, 52.0],
                    "modifiers": [{"name": "error", "type": "shapesys", "data": [3.0, 7.0]}],
                },
            ],
        }
    ],
    "observations": [{"name": "region", "data": [58.0, 66.0]}],
    "measurements": [
        {"name": "free", "config": {"poi": "mu", "parameters": []}},
        {"name": "held", "config": {"poi": "mu", "parameters": [{"name": "mu", "fixed": True}]}},
    ],
    "version": "1.0.0",
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """The file of the workspace above; the working directory is its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "workspace.json"
    path.write_text(json.dumps(WORKSPACE))
    return path


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
def test_a_published_workspace_is_fitted_as_by_pyhf(selfcal, workspace):
    answer = selfcal("fit", "--workspace", workspace, "--json")
    assert answer.code == 0
    outcome = json.loads(answer.out)
    opened = pyhf.Workspace(WORKSPACE)
    model = opened.model(measurement_name="free")
    best, twice_nll = pyhf.infer.mle.fit(opened.data(model), model, return_fitted_val=True)
    found = {row["name"]: row["value"] for row in outcome["best_fit"]}
    for name, value in zip(model.config.par_names, best, strict=True):
        assert found[name] == pytest.approx(float(value), abs=1e-3)
    assert outcome["twice_nll"] == pytest.approx(float(twice_nll), abs=1e-5)
    assert outcome["measurement"] == "free"
    assert outcome["certificate"]["converged"]
    assert len(outcome["covariance"]) == len(outcome["best_fit"]) == 3


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize(("normsys", "histosys"), [("code4", "code4p"), ("code1", "code0")])
def test_interpolation_codes_are_those_of_pyhf(selfcal, workspace, normsys, histosys):
    spec = json.loads(workspace.read_text())
    spec["channels"][0]["samples"][1]["modifiers"] = [
        {"name": "scale", "type": "normsys", "data": {"hi": 1.3, "lo": 0.9}},
        {"name": "tilt", "type": "histosys", "data": {"hi_data": [58.0, 49.0], "lo_data": [47.0, 57.0]}},
    ]
    spec["measurements"] = spec["measurements"][1:]
    workspace.write_text(json.dumps(spec))
    answer = selfcal("fit", "-w", workspace, "--normsys-code", normsys, "--histosys-code", histosys, "--json")
    assert answer.code == 0
    outcome = json.loads(answer.out)
    opened = pyhf.Workspace(spec)
    settings = {"normsys": {"interpcode": normsys}, "histosys": {"interpcode": histosys}}
    model = opened.model(modifier_settings=settings)
    found = {row["name"]: row["value"] for row in outcome["best_fit"]}
    point = [found[name] for name in model.config.par_names]
    twice_nll = -2 * float(model.logpdf(point, opened.data(model))[0])
    assert outcome["twice_nll"] == pytest.approx(twice_nll, rel=1e-10)
    assert abs(found["scale"]) > 0.01
    assert selfcal("fit", "demo", "--normsys-code", normsys).code == 2
    assert selfcal("fit", "-w", workspace, "--normsys-code", "code2").code == 2


def test_measurement_and_output_file(selfcal, workspace):
    answer = selfcal("fit", "-w", workspace, "-m", "held", "--out", "fit.json")
    assert answer.code == 0
    assert "mu" in answer.out
    assert "fixed" in answer.out
    outcome = json.loads(workspace.with_name("fit.json").read_text())
    assert outcome["best_fit"][0]["value"] == 1.0
    assert outcome["best_fit"][0]["status"] == "fixed"
    assert selfcal("fit", "-w", workspace, "--out", "fit.json").code == 2


@pytest.mark.fault(9, "a degenerate workspace on the command line")
def test_a_degenerate_workspace_exits_with_4_and_names_the_direction(selfcal, workspace):
    spec = json.loads(workspace.read_text())
    spec["channels"][0]["samples"][1]["modifiers"] = []
    spec["channels"][0]["samples"][0]["modifiers"].append(
        {"name": "cross_section", "type": "normfactor", "data": None}
    )
    workspace.write_text(json.dumps(spec))
    answer = selfcal("fit", "-w", workspace, "--json")
    assert answer.code == 4
    assert "1 direction(s)" in answer.err
    assert "mu (signal in region)" in answer.err
    assert json.loads(answer.out)["error"]["exit_code"] == 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-w", "absent.json"), 3),
        (("-w", "workspace.json", "-m", "other"), 4),
        (("-w", "workspace.json", "--set", "fit.force=true"), 2),
        (("-m", "free"), 2),
    ],
)
def test_wrong_calls_have_their_exit_codes(words, code, selfcal, workspace):
    assert selfcal("fit", *words).code == code


def test_dry_run_says_what_would_be_fitted(selfcal, workspace):
    answer = selfcal("fit", "-w", workspace, "--dry-run", "--json")
    assert answer.code == 0
    facts = json.loads(answer.out)
    assert (facts["bins"], facts["parameters"], facts["constrained"]) == (2, 3, 2)
