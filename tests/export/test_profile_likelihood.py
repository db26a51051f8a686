"""The exported profile likelihood: the same numbers in ONNX Runtime, and what its inputs are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import selfcal
from selfcal.export.profile_likelihood import export_profile
from selfcal.export.rows import ScaleFactorRows
from selfcal.likelihood.neural_profile import NeuralProfile, save_profile
from selfcal.run.atomic import write_json


@pytest.fixture
def network(content) -> NeuralProfile:
    torch.manual_seed(3)
    rng = np.random.default_rng(1)
    best = np.array([row["value"] for row in chosen_rows(content)])
    root = np.diag(rng.uniform(0.02, 0.4, len(best))) + 0.01 * np.tril(rng.normal(size=(len(best),) * 2))
    network = NeuralProfile(best, np.linalg.inv(root), 16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def chosen_rows(content: dict) -> list[dict]:
    return [
        row
        for row in content["rows"]
        if row["working_point"] == 0.77 and row["flavour"] != "tau" and row["value"] is not None
    ]


def test_onnx_runtime_and_the_example_of_the_documentation(tmp_path, content, network, monkeypatch):
    """The network's own numbers, zero at the best fit, and metadata that say what goes in."""
    rows = chosen_rows(content)
    table = {
        "inputs": [
            {"row": content["rows"].index(row), "best_fit": row["value"], "uncertainty": row["total"]}
            for row in rows
        ],
        "covariance": np.eye(len(rows)).tolist(),
        "log_covariance": np.eye(len(rows)).tolist(),
        "level": 0.9973,
        "accuracy": {"mean": 0.01, "largest": 0.1},
    }
    folder = tmp_path / "runs/demo/results"
    write_json(folder / "profile_likelihood.json", table)
    save_profile(folder / "profile_likelihood.safetensors", network)
    (path,) = export_profile(folder, ScaleFactorRows(content)).files
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    best = network.best.numpy()
    (at_best,) = session.run(None, {"scale_factors": best[None]})
    assert abs(float(at_best[0])) < 1e-20
    for number in (1, 3, 200):
        points = best * np.exp(np.random.default_rng(number).normal(0, 0.2, (number, len(best))))
        (found,) = session.run(None, {"scale_factors": points})
        with torch.no_grad():
            expected = network(torch.from_numpy(points)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    described = json.loads(onnx.load(path).metadata_props[0].value)
    assert [entry["name"] for entry in described["scale_factors"]][:2] == [
        "b_77_pt20-40_eta0-2.5",
        "b_77_pt40-250_eta0-2.5",
    ]
    assert [entry["best_fit"] for entry in described["scale_factors"]] == [row["value"] for row in rows]
    assert described["accuracy"] == table["accuracy"]
    assert described["covariance"] == table["covariance"]
    monkeypatch.chdir(tmp_path)
    page = Path(selfcal.__file__).parents[1] / "docs/howto/networks.md"
    names: dict = {}
    exec(page.read_text(encoding="utf-8").split("```python\n")[2].split("```")[0], names)
    assert names["names"][0] == "b_77_pt20-40_eta0-2.5"
    assert names["twice_rise"][0] == pytest.approx(0, abs=1e-20)
    assert names["twice_rise"][1] > 0
