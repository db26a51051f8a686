"""Workspaces as files: read, written, with other data, and what is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from selfcal.errors import DataError, FitError
from selfcal.likelihood import fit as minimum
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.identifiability import identifiability
from selfcal.likelihood.workspace_file import read_workspace, with_data, write_workspace
from selfcal.likelihood.workspace_fit import fit_in_words, fit_workspace


@pytest.mark.parametrize("name", ["w.json", "w.json.gz"])
def test_a_workspace_comes_back_as_it_was_written(name, tmp_path, workspaces) -> None:
    spec = workspaces.everything()
    write_workspace(tmp_path / name, spec)
    assert read_workspace(tmp_path / name) == spec
    first = (tmp_path / name).read_bytes()
    write_workspace(tmp_path / name, spec)
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "not found"),
        ("w.json", b"{", "not valid JSON"),
        ("w.json.gz", b"not gzip", "cannot be read"),
        ("w.json.gz", gzip.compress(b'{"channels": []}', mtime=0)[:-12], "cannot be read"),
        ("w.json", b'{"channels": []}', "not a pyhf workspace"),
    ],
)
def test_what_is_no_workspace_is_a_data_error(name, content, message, tmp_path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_workspace(tmp_path / name)
    assert name in str(caught.value.where)


def test_pyhf_opens_a_toy_with_its_auxiliary_measurements(workspaces, pyhf_reference) -> None:
    spec = workspaces.everything()
    model = HistFactory(spec)
    generator = torch.Generator().manual_seed(1)
    counts = torch.poisson(model.expected(model.start), generator=generator)
    centre = torch.where(model.constrained, model.centre + 0.3 * model.width, model.centre)
    toy = with_data(spec, model, counts, centre)
    assert spec == workspaces.everything()
    reference = pyhf_reference(json.loads(json.dumps(toy)), model.index)
    value = float(model.twice_nll(model.start, counts, centre))
    assert value == pytest.approx(reference.twice_nll(model.start.numpy()), rel=1e-10)
    reopened = HistFactory(toy)
    assert torch.equal(reopened.observed, counts)
    torch.testing.assert_close(reopened.centre, centre, rtol=1e-14, atol=1e-15)


def test_the_outcome_is_plain_and_complete(workspaces) -> None:
    spec = workspaces.everything()
    outcome = fit_workspace(spec)
    assert json.loads(json.dumps(outcome, allow_nan=False)) == outcome
    assert outcome["certificate"]["converged"]
    sigma = np.sqrt(np.diag(np.array(outcome["covariance"])))
    np.testing.assert_allclose([row["uncertainty"] for row in outcome["best_fit"]], sigma)
    status = {row["name"]: row["status"] for row in outcome["best_fit"]}
    assert status["mu"] == "fitted"
    assert status["alone[0]"] == "fixed"
    text = fit_in_words(outcome)
    assert all(name in text for name in status)


def test_the_degenerate_benchmark_has_nine_null_directions_one_per_pt_bin(shared_file) -> None:
    workspace = read_workspace(shared_file("peers/degenerate_fit.workspace.json.gz"))
    verdict = identifiability(HistFactory(workspace))
    assert len(verdict.null_directions) == 9
    for p, words in enumerate(verdict.null_directions):
        assert words.startswith(f"SFb_{p}_0 (b_0 in r0_pt{p}, r1_pt{p}, r2_pt{p})")
        assert f"nl_0_{p} (light in r0_pt{p})" in words
        assert not any(f"_pt{other}" in words for other in range(9) if other != p)
    with pytest.raises(FitError, match=r"9 direction\(s\)"):
        fit_workspace(workspace)


def test_each_null_direction_is_named_apart_and_an_unseen_parameter_counts_once(workspaces) -> None:
    def free(name: str):
        return [{"name": name, "type": "normfactor", "data": None}]

    channels = {
        "north": {"x": ([10.0, 20.0], free("one")), "y": ([5.0, 10.0], free("two"))},
        "south": {"x": ([3.0], free("three") + free("four"))},
        "east": {"x": ([30.0], free("five")), "z": ([0.0], free("nothing"))},
    }
    spec = workspaces.workspace(channels, {"north": [15.0, 30.0], "south": [3.0], "east": [30.0]})
    verdict = identifiability(HistFactory(spec))
    named = [words.split(" (")[0] for words in verdict.null_directions]
    assert len(named) == 3
    assert set(named[:2]) <= {"one", "two", "three", "four"}
    assert named[2] == "nothing"
    joined = " | ".join(verdict.null_directions)
    assert all(f"{name} (" in joined for name in ("one", "two", "three", "four"))
    assert "five" not in joined


def test_a_small_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("selfcal.likelihood.workspace_file.MAX_BYTES", 1 << 20)
    (tmp_path / "w.json.gz").write_bytes(gzip.compress(b" " * (1 << 20) + b"{"))
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        read_workspace(tmp_path / "w.json.gz")


def test_other_counts_alone_leave_the_auxiliary_measurements(workspaces) -> None:
    spec = workspaces.everything()
    model = HistFactory(spec)
    changed = with_data(spec, model, model.observed + 1)
    assert changed["measurements"] == spec["measurements"]
    assert torch.equal(HistFactory(changed).observed, model.observed + 1)


def test_a_fit_without_convergence_is_refused_unless_it_is_forced(workspaces, monkeypatch) -> None:
    monkeypatch.setattr(minimum, "GRADIENT_MAX", 0.0)
    spec = workspaces.small([workspaces.MODIFIERS["normsys"]])
    with pytest.raises(FitError, match="the Hessian at the minimum"):
        fit_workspace(spec)
    assert fit_workspace(spec, force=True)["certificate"]["converged"] is False
