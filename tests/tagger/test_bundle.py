"""A bundle comes back bit for bit, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.tagger import TaggerConfig
from selfcal.data.jets import TRACK_FIELDS
from selfcal.errors import DataError
from selfcal.run.sealed import read_sealed, write_sealed
from selfcal.tagger.bundle import TaggerBundle, build_tagger, load_bundle, save_bundle
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features

VARIANTS = {
    "transformer": {},
    "attention_bias": {"attention_bias": True},
    "regress_pt": {"regress_pt": True},
    "deep_sets": {"kind": "deep_sets"},
    "recurrent": {"kind": "recurrent", "layers": 2},
}


@pytest.fixture(params=[{}], ids=["transformer"])
def saved(make_jets, tmp_path, request):
    jets = make_jets(6, jets=50)
    inputs = common_inputs([jets])
    config = TaggerConfig(
        **{"width": 16, "layers": 1, "heads": 2, "feedforward_width": 16, "latent": 8, **request.param}
    )
    norm = Normalisation.measure([compute_features(jets, inputs)])
    bundle = TaggerBundle(config, inputs, norm, build_tagger(config, inputs, norm, seed=3).eval())
    save_bundle(bundle, tmp_path)
    return bundle, jets, tmp_path


@pytest.mark.parametrize("saved", VARIANTS.values(), ids=VARIANTS, indirect=True)
def test_round_trip_is_bit_equal(saved):
    bundle, jets, folder = saved
    again = load_bundle(folder)
    assert again.config == bundle.config
    assert again.inputs == bundle.inputs
    for name in ("track_mean", "track_width", "jet_mean", "jet_width"):
        np.testing.assert_array_equal(getattr(again.normalisation, name), getattr(bundle.normalisation, name))
    index = np.arange(len(jets))
    with torch.no_grad():
        a = bundle.model(bundle.tensors(jets).batch(index))
        b = again.model(again.tensors(jets).batch(index))
    for name in ("logits", "latent", "origin_logits", "vertex_logits"):
        assert torch.equal(getattr(a, name), getattr(b, name))


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    bundle, _, folder = saved
    for path in save_bundle(bundle, tmp_path / "again"):
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.fault(4, "one bit of a tagger's weights")
def test_one_flipped_bit_in_the_weights_is_refused(saved):
    _, _, folder = saved
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match="not those that the description"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["b", "c", "light"]}, "does not fit"),
        ({"config": {"width": 32}}, "does not fit"),
        ({"format_version": 99}, "format version"),
        ({"inputs": {"track": [{"name": "colour", "mean": 0, "width": 1}], "jet": []}}, "colour"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, change, message):
    _, _, folder = saved
    path = folder / "tagger.json"
    write_sealed(path, read_sealed(path) | change)
    with pytest.raises(DataError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["tagger.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved[2] / name).unlink()
    with pytest.raises(DataError) as caught:
        load_bundle(saved[2])
    assert caught.value.where.endswith(name)


def test_a_file_without_a_field_of_the_training_is_refused(saved, make_jets):
    lacking = make_jets([2], fields=tuple(f for f in TRACK_FIELDS if f != "numberOfPixelHits"))
    with pytest.raises(DataError, match=r"numberOfPixelHits \(nearest: .*numberOfPixel"):
        saved[0].tensors(lacking)
