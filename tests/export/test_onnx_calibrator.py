"""The exported calibrator moves every jet as the maps themselves do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.export.onnx_calibrator import as_arithmetic, rational_quadratic_spline, write_calibrator
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import Calibration
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps

LIBRARIES = ["zuko", "nflows"]


def perturbed_maps(
    library: str, transforms: int = 1, family: str = "flow", coordinates: int = 3
) -> FlavourMaps:
    maps = build_maps(MapConfig(family=family, library=library, transforms=transforms), coordinates, 2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return maps.requires_grad_(requires_grad=False)


def calibration_with(maps: FlavourMaps, coordinates: int = 3) -> Calibration:
    fractions = torch.full((1, 4), 0.25, dtype=torch.float64)
    return Calibration(
        frame=ScoreFrame((0.3, -1.2, 0.5)[:coordinates], (2.0, 1.5, 0.8)[:coordinates]),
        regions=("ttbar",),
        nominal=maps,
        stiff=FlavourMaps(lambda: AffineMap(coordinates, 2, prior_width=1.0)),
        replicas=(),
        prior=CompositionPrior(fractions, fractions),
        fractions=fractions,
        bulk_fractions=fractions,
        fraction_uncertainty=fractions,
    )


def scored_jets(n: int, classes: int = 4) -> ScoredJets:
    generator = np.random.default_rng(5)
    logits = torch.from_numpy(generator.normal(0, 5, (n, classes)))
    return ScoredJets(
        region="ttbar",
        log_probability=logits.log_softmax(dim=1).numpy(),
        pt_gev=generator.uniform(20, 250, n),
        abs_eta=generator.uniform(0, 2.5, n),
        flavour=generator.integers(0, 4, n).astype(np.int8),
        weight=np.ones(n),
        fold=np.zeros(n, np.int8),
        event=np.arange(n),
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_arithmetic_equals_the_library(library):
    generator = torch.Generator().manual_seed(1)
    u = 3 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    c = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    outside = (u.abs() > 5).any(dim=1)
    assert 200 < outside.sum() < 3000
    maps = perturbed_maps(library, transforms=2)
    flavour = torch.arange(4000) % len(FLAVOURS)
    expected = maps(u, flavour, c)
    assert (expected - u).abs().mean() > 0.1
    assert (as_arithmetic(maps)(u, c, flavour) - expected).abs().max() <= 1e-10


def test_the_spline_goes_through_its_knots_with_its_slopes():
    x = torch.tensor([[-5.0, -2.0, 1.0, 5.0]], dtype=torch.float64).expand(6, 4)
    y = torch.tensor([[-5.0, -3.0, 2.0, 5.0]], dtype=torch.float64).expand(6, 4)
    slopes = torch.tensor([[1.0, 0.5, 2.0, 1.0]], dtype=torch.float64).expand(6, 4)
    at = torch.tensor([-5.0, -2.0, 1.0, 5.0, -7.0, 9.0], dtype=torch.float64, requires_grad=True)
    value = rational_quadratic_spline(at, x, y, slopes)
    torch.testing.assert_close(value.detach()[:4], y[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(value.detach()[4:], at.detach()[4:], rtol=0, atol=0)
    (slope,) = torch.autograd.grad(value.sum(), at)
    torch.testing.assert_close(slope[1:3], slopes[0, 1:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "library"),
    [("flow", "zuko"), ("flow", "nflows"), ("residual", "zuko"), ("brenier", "zuko")],
)
def test_onnx_runtime_moves_jets_as_the_calibration_does(family, library, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    calibration = calibration_with(perturbed_maps(library, family=family))
    path = write_calibrator(calibration, tmp_path / "calibrator.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (2000, 1, 0):
        jets = scored_jets(n)
        inputs = {
            "log_probability": jets.log_probability,
            "flavour": jets.flavour.astype(np.int64),
            "pt_gev": np.asarray(jets.pt_gev, np.float64),
            "eta": -np.asarray(jets.abs_eta, np.float64),
        }
        (moved,) = session.run(None, inputs)
        expected = calibration.apply(jets, calibration.nominal).log_probability
        assert moved.dtype == np.float64
        np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-8)
        if n == 2000:
            assert np.abs(moved - jets.log_probability).mean() > 0.1
            inputs["flavour"][3] = -1
            (unlabelled,) = session.run(None, inputs)
            assert np.isnan(unlabelled[3]).all()
            assert np.isfinite(np.delete(unlabelled, 3, axis=0)).all()
    described = json.loads(session.get_modelmeta().custom_metadata_map["selfcal"])
    assert list(described["inputs"]) == [i.name for i in session.get_inputs()]
    assert described["classes"] == list(FLAVOURS)


def test_a_tagger_without_tau_class_has_three_scores_and_maps_of_four_flavours(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    calibration = calibration_with(perturbed_maps("zuko", coordinates=2), coordinates=2)
    path = write_calibrator(calibration, tmp_path / "calibrator.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    jets = scored_jets(500, classes=3)
    (moved,) = session.run(
        None,
        {
            "log_probability": jets.log_probability,
            "flavour": jets.flavour.astype(np.int64),
            "pt_gev": jets.pt_gev,
            "eta": jets.abs_eta,
        },
    )
    expected = calibration.apply(jets, calibration.nominal).log_probability
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-8)
    described = json.loads(session.get_modelmeta().custom_metadata_map["selfcal"])
    assert (described["classes"], described["flavours"]) == (list(FLAVOURS[:3]), list(FLAVOURS))


@pytest.mark.parametrize("settings", [{"family": "switch"}, {"structure": "autoregressive"}])
def test_families_without_onnx_form_are_refused(settings):
    with pytest.raises(ConfigError, match="no ONNX form"):
        as_arithmetic(build_maps(MapConfig(**settings), 3, 2))
