"""The example of the documentation on a published NanoAOD file, against one evaluation per jet."""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path

import awkward as ak
import correctionlib
import correctionlib.schemav2 as schema
import numpy as np
import pytest
import uproot

EXAMPLE = Path(__file__).parents[2] / "docs/examples/apply_scale_factors.py"
PT, ETA, EDGES = [20.0, 60.0, 250.0], [0.0, 1.2, 2.5], ["-inf", -2.0, 1.0, 4.0, "inf"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("apply_scale_factors", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def correction_file(folder: Path) -> Path:
    """Scale factors and status by flavour, |eta|, pT and discriminant; charm above 60 GeV has none."""

    def binned(name: str, edges: list, content: list, flow) -> schema.Binning:
        return schema.Binning(nodetype="binning", input=name, edges=edges, content=content, flow=flow)

    def hidden(flavour: int, p: int) -> bool:
        return flavour == 4 and p == 1

    def tree(value, flow) -> schema.Category:
        items = []
        for flavour in (5, 4, 0):
            by_eta = []
            for e in range(2):
                by_pt = [
                    binned("discriminant", EDGES, [value(flavour, e, p, k) for k in range(4)], flow)
                    for p in range(2)
                ]
                by_eta.append(binned("pt", PT, by_pt, flow))
            items.append({"key": flavour, "value": binned("abseta", ETA, by_eta, flow)})
        return schema.Category(nodetype="category", input="flavor", content=items)

    def factor(flavour: int, e: int, p: int, k: int) -> float:
        return 0.8 + 0.01 * flavour + 0.1 * e + 0.03 * p + 0.02 * k

    nothing = schema.Category(
        nodetype="category", input="systematic", content=[{"key": "none", "value": 0.0}]
    )
    shifts = {"central": 0.0, "up": 0.1, "down": -0.1}
    inputs = [
        schema.Variable(name="flavor", type="int"),
        *(schema.Variable(name=name, type="real") for name in ("abseta", "pt", "discriminant")),
    ]
    output = schema.Variable(name="value", type="real")
    systematic = schema.Variable(name="systematic", type="string")
    content = [
        {
            "key": key,
            "value": tree(
                lambda f, e, p, k, s=shift: nothing if hidden(f, p) else factor(f, e, p, k) + s, "error"
            ),
        }
        for key, shift in shifts.items()
    ]
    shape = schema.Category(nodetype="category", input="systematic", content=content)
    status = tree(lambda f, e, p, k: 0.0 if hidden(f, p) else 1.0, 0.0)
    corrections = schema.CorrectionSet(
        schema_version=2,
        corrections=[
            schema.Correction(
                name="T_shape", version=1, inputs=[systematic, *inputs], output=output, data=shape
            ),
            schema.Correction(name="T_shape_status", version=1, inputs=inputs, output=output, data=status),
        ],
    )
    path = folder / "correctionlib.json"
    path.write_text(corrections.model_dump_json(exclude_unset=True))
    return path


def expected_weights(path: Path, shift: float) -> tuple[list[float | None], int, int]:
    """Weight per event, jets in range and jets without scale factor, by plain loops over the file."""
    with uproot.open(path) as file:
        names = ["Jet_pt", "Jet_eta", "Jet_hadronFlavour", "Jet_btagPNetB", "Jet_btagPNetCvL"]
        columns = [file["Events"][name].array(library="np") for name in names]
    weights: list[float | None] = []
    inside = missing = 0
    for event in zip(*columns, strict=True):
        weight, complete = 1.0, True
        for pt, eta, flavour, b, c in zip(*event, strict=True):
            if not (20 <= pt < 250 and abs(eta) < 2.5):
                continue
            inside += 1
            if not (0 < b < 1 and 0 <= c < 1):
                complete, missing = False, missing + 1
                continue
            discriminant = math.log(b / (1 - b) / (0.2 * c / (1 - c) + 0.8))
            p, e = int(pt >= 60), int(abs(eta) >= 1.2)
            if flavour == 4 and p == 1:
                complete, missing = False, missing + 1
                continue
            k = sum(discriminant >= edge for edge in EDGES[1:-1])
            weight *= 0.8 + 0.01 * flavour + 0.1 * e + 0.03 * p + 0.02 * k + shift
        weights.append(weight if complete else None)
    return weights, inside, missing


def test_only_awkward_uproot_and_correctionlib_are_needed() -> None:
    imported = set()
    for node in ast.walk(ast.parse(EXAMPLE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    standard = {"__future__", "argparse", "sys"}
    assert imported - standard == {"awkward", "uproot", "correctionlib", "numpy"}


def test_weights_of_published_events_equal_one_evaluation_per_jet(example, shared_file, tmp_path) -> None:
    nanoaod = shared_file("published/coffea_nano_tt_v12.root")
    corrections = correctionlib.CorrectionSet.from_file(str(correction_file(tmp_path)))
    jets = example.in_range(example.read_jets(str(nanoaod)), (20.0, 250.0), 2.5)
    for systematic, shift in (("central", 0.0), ("up", 0.1), ("down", -0.1)):
        factors = example.scale_factors(corrections, "T", jets, systematic)
        weights = example.event_weights(factors)
        expected, inside, missing = expected_weights(nanoaod, shift)
        assert int(ak.sum(ak.num(jets))) == inside > 500
        assert int(ak.sum(ak.is_none(factors, axis=1))) == missing > 0
        assert len(weights) == len(expected) == 200
        assert ak.is_none(weights).to_list() == [weight is None for weight in expected]
        known = [weight for weight in expected if weight is not None]
        np.testing.assert_allclose(ak.to_numpy(ak.drop_none(weights)), known, rtol=1e-5)


def test_the_command_prints_what_is_missing(example, shared_file, tmp_path, capsys) -> None:
    nanoaod = shared_file("published/coffea_nano_tt_v12.root")
    assert example.main([str(correction_file(tmp_path)), str(nanoaod), "--tagger", "T"]) == 0
    out = capsys.readouterr().out
    _, inside, missing = expected_weights(nanoaod, 0.0)
    assert f"{inside} jets in the calibrated range, {missing} of them without a scale factor" in out
    assert "central" in out
    assert "up" in out
