"""The files of the ONNX exporter, and what it says where there is nothing to export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.export.onnx_export import export_onnx
from selfcal.run.atomic import write_json
from selfcal.tagger.bundle import TaggerBundle, build_tagger, save_bundle
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import Calibration, save_calibration
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")

IDENTITY = MapConfig(family="identity")


def save_identity(folder) -> None:
    fractions = torch.full((1, 4), 0.25, dtype=torch.float64)
    calibration = Calibration(
        ScoreFrame((0.3, -1.2, 0.5), (2.0, 1.5, 0.8)),
        ("ttbar",),
        build_maps(IDENTITY, 3, 2),
        FlavourMaps(lambda: AffineMap(3, 2, prior_width=1.0)),
        (),
        CompositionPrior(fractions, fractions),
        fractions,
        fractions,
        fractions,
    )
    save_calibration(calibration, IDENTITY, folder)


def test_tagger_and_map_of_a_run(make_jets, tmp_path):
    jets = make_jets(5, jets=30)
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    config = TaggerConfig(width=8, layers=1, heads=2, feedforward_width=8, latent=8)
    model = build_tagger(config, inputs, normalisation, seed=1)
    save_bundle(TaggerBundle(config, inputs, normalisation, model), tmp_path / "tagger")
    points = [{"working_point": 0.7, "threshold": 2.0}]
    write_json(tmp_path / "results" / "tagger_metrics.json", {"working_points": points})
    save_identity(tmp_path / "results" / "map")

    exported = export_onnx(tmp_path / "results", tmp_path / "tagger")
    assert [path.name for path in exported.files] == ["tagger.onnx", "calibrator.onnx"]
    assert "replicas" in exported.not_expressed[0]
    tagger, calibrator = (onnxruntime.InferenceSession(path) for path in exported.files)
    tracks = np.zeros((3, 2, len(inputs.track_fields)), np.float32)
    jet = np.array([[50.0, 1.0], [20.0, -2.0], [200.0, 0.0]], np.float32)
    valid = np.array([[True, True], [True, False], [False, False]])
    log_probability, _, _ = tagger.run(None, {"jet": jet, "tracks": tracks, "valid": valid})
    scores = log_probability.astype(np.float64)
    kinematics = {"pt_gev": jet[:, 0].astype(np.float64), "eta": jet[:, 1].astype(np.float64)}
    (moved,) = calibrator.run(None, {"log_probability": scores, "flavour": np.arange(3), **kinematics})
    np.testing.assert_allclose(moved, scores - np.logaddexp.reduce(scores, axis=1)[:, None], atol=1e-12)


def test_nothing_to_export_is_said(tmp_path):
    exported = export_onnx(tmp_path / "results", tmp_path / "tagger")
    assert exported.files == ()
    assert "no tagger of its own" in exported.skipped
    assert not list(tmp_path.iterdir())
