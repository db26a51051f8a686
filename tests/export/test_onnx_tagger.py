"""ONNX Runtime says of every jet what PyTorch says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.scoring import regressed_pt_gev, score_jets

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")

from selfcal.export.onnx_tagger import write_tagger  # noqa: E402
from tests.conftest import make_synthetic_jets  # noqa: E402

POINTS = [{"working_point": 0.77, "threshold": 1.25}]


def onnx_inputs(jets, index) -> dict[str, np.ndarray]:
    """Jets ``index`` padded to the longest; padded places hold NaN."""
    counts = jets.n_tracks[index]
    tracks = np.full((len(index), counts.max(initial=0), len(jets.track_fields)), np.nan, np.float32)
    for row, jet in enumerate(index):
        first, last = jets.track_offsets[jet : jet + 2]
        tracks[row, : last - first] = jets.tracks[first:last]
    valid = np.arange(tracks.shape[1]) < counts[:, None]
    return {"jet": np.stack([jets.pt_gev, jets.eta], 1)[index], "tracks": tracks, "valid": valid}


def make_bundle(jets, **choices) -> TaggerBundle:
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    config = TaggerConfig(charm_fraction=0.15, tau_fraction=0.0, **choices)
    bundle = TaggerBundle(
        config, inputs, normalisation, build_tagger(config, inputs, normalisation, seed=4).eval()
    )
    with torch.no_grad():
        bundle.model.flavour.weight *= 20  # probabilities near 0 and 1, as after a training
    return bundle


@pytest.fixture(scope="module")
def bundle_and_session(tmp_path_factory):
    bundle = make_bundle(make_synthetic_jets(8, jets=500))
    path = write_tagger(bundle, tmp_path_factory.mktemp("onnx") / "tagger.onnx", POINTS)
    return bundle, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def largest_deviation(bundle, session, jets, batch: int) -> float:
    expected = score_jets(bundle, jets).log_probability
    worst = 0.0
    for first in range(0, len(jets), batch):
        index = np.arange(first, min(first + batch, len(jets)))
        log_probability, probability, d_b = session.run(None, onnx_inputs(jets, index))
        want = expected[index]
        wanted_d_b = discriminant_b(want, bundle.config.charm_fraction, bundle.config.tau_fraction)
        worst = max(
            worst,
            np.abs(probability - np.exp(want)).max(),
            (np.abs(log_probability - want) / np.maximum(1, np.abs(want))).max(),
            (np.abs(d_b - wanted_d_b) / np.maximum(1, np.abs(wanted_d_b))).max(),
        )
    return worst


def test_scores_equal_those_of_pytorch(bundle_and_session, make_jets):
    bundle, session = bundle_and_session
    jets = make_jets([0, 0, 1, *np.random.default_rng(2).poisson(8, 10_000)], seed=2)
    spread = np.exp(score_jets(bundle, jets).log_probability)
    assert spread.min() < 0.01
    assert spread.max() > 0.9
    assert largest_deviation(bundle, session, jets, batch=500) <= 1e-5


@pytest.mark.parametrize("counts", [[0], [1], [2], [40], [200], [0, 0, 0], [3, 0, 7]])
def test_any_number_of_jets_and_tracks(bundle_and_session, make_jets, counts):
    bundle, session = bundle_and_session
    jets = make_jets(counts)
    assert largest_deviation(bundle, session, jets, batch=len(counts)) <= 1e-5


def test_no_jet_at_all(bundle_and_session, make_jets):
    _, session = bundle_and_session
    outputs = session.run(None, onnx_inputs(make_jets([3]), np.arange(0)))
    assert [output.shape for output in outputs] == [(0, 4), (0, 4), (0,)]


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("tracks", "d0", np.nan),
        ("tracks", "d0", np.inf),
        ("tracks", "qOverP", -np.inf),
        ("tracks", "phiUncertainty", -1e-4),
        ("tracks", "numberOfPixelHits", np.nan),
        ("jet", 0, np.nan),
        ("jet", 0, -1.0),
        ("jet", 1, np.inf),
    ],
)
def test_what_the_reader_refuses_comes_out_as_nan_in_its_own_jet_only(
    bundle_and_session, make_jets, name, column, value
):
    _, session = bundle_and_session
    jets = make_jets([4, 4, 0])
    inputs = onnx_inputs(jets, np.arange(3))
    clean = session.run(None, inputs)
    at = jets.track_fields.index(column) if name == "tracks" else column
    inputs[name][(1, 2, at) if name == "tracks" else (1, at)] = value
    for before, after in zip(clean, session.run(None, inputs), strict=True):
        assert np.isnan(after[1]).all()
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
        assert np.isfinite(before).all()


def test_the_metadata_say_how_to_call_it(bundle_and_session):
    bundle, session = bundle_and_session
    described = json.loads(session.get_modelmeta().custom_metadata_map["selfcal"])
    assert described["classes"] == list(FLAVOURS)
    assert [row["name"] for row in described["inputs"]["tracks"]] == list(bundle.inputs.track_fields)
    units = {row["name"]: row["unit"] for row in described["inputs"]["tracks"]}
    assert (units["d0"], units["dphi"], units["qOverP"], units["deta"]) == ("mm", "rad", "1/MeV", "")
    assert described["discriminant_b_fractions"] == {"f_c": 0.15, "f_tau": 0.0}
    assert described["working_points"] == [{"efficiency": 0.77, "discriminant_b_min": 1.25}]
    assert [i.name for i in session.get_inputs()] == ["jet", "tracks", "valid"]
    assert [o.name for o in session.get_outputs()] == list(described["outputs"])


def test_deep_sets_too(make_jets, tmp_path):
    bundle = make_bundle(make_jets(8, jets=500), kind="deep_sets")
    session = onnxruntime.InferenceSession(write_tagger(bundle, tmp_path / "tagger.onnx"))
    jets = make_jets([0, 0, 1, 30, *np.random.default_rng(2).poisson(8, 500)], seed=2)
    assert largest_deviation(bundle, session, jets, batch=100) <= 1e-5


def test_a_regressed_pt_is_one_more_output(make_jets, tmp_path):
    bundle = make_bundle(make_jets(8, jets=500), regress_pt=True)
    session = onnxruntime.InferenceSession(write_tagger(bundle, tmp_path / "tagger.onnx"))
    jets = make_jets([0, 0, 1, 30, *np.random.default_rng(2).poisson(8, 500)], seed=2)
    scores = score_jets(bundle, jets)
    inputs = onnx_inputs(jets, np.arange(len(jets)))
    named = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
    np.testing.assert_allclose(named["regressed_pt_gev"], regressed_pt_gev(jets, scores), rtol=1e-5)
    assert np.ptp(named["regressed_pt_gev"] / jets.pt_gev) > 1e-3
    np.testing.assert_allclose(named["probability"], np.exp(scores.log_probability), atol=1e-5)
    inputs["jet"][1, 0] = -1.0
    (refused,) = session.run(["regressed_pt_gev"], inputs)
    assert np.flatnonzero(np.isnan(refused)).tolist() == [1]


@pytest.mark.parametrize("choices", [{"kind": "recurrent"}, {"attention_bias": True}, {"vertex_fit": True}])
def test_a_network_that_cannot_be_exported_is_refused_by_name(make_jets, tmp_path, choices):
    with pytest.raises(ConfigError, match=r"ONNX"):
        write_tagger(make_bundle(make_jets(8, jets=50), **choices), tmp_path / "tagger.onnx")
    assert not list(tmp_path.iterdir())
