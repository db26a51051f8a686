"""Inputs are what their formulas say; bad or missing ones are refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.data.jets import TRACK_FIELDS
from selfcal.errors import DataError
from selfcal.tagger.inputs import TRACK_INPUTS, Normalisation, common_inputs, compute_features, signed_log


def test_every_track_field_is_used_and_none_else(make_jets):
    assert common_inputs([make_jets([3])]).track_fields == tuple(
        dict.fromkeys(field for i in TRACK_INPUTS for field in i.fields)
    )
    assert set(common_inputs([make_jets([3])]).track_fields) == set(TRACK_FIELDS)


def test_signed_log_is_odd_monotone_and_clipped():
    x = np.linspace(-50, 50, 1001, dtype=np.float32)
    y = signed_log(x, 0.1, 5.0)
    np.testing.assert_array_equal(y, -y[::-1])
    assert (np.diff(y) >= 0).all()
    assert y.max() == 5.0
    np.testing.assert_allclose(signed_log(np.float32([0.3]), 0.1, 5.0), np.log(4.0), rtol=1e-6)


def test_log_pt_of_a_track_of_known_momentum(make_jets):
    jets = make_jets([1])
    tracks = jets.tracks.copy()
    eta, momentum_mev = float(jets.eta[0]) + 0.1, 12_000.0
    tracks[0, jets.track_fields.index("deta")] = 0.1
    tracks[0, jets.track_fields.index("qOverP")] = -1 / momentum_mev
    inputs = common_inputs([jets])
    value = compute_features(replace(jets, tracks=tracks), inputs).track[0, inputs.track.index("log_pt_gev")]
    assert value == pytest.approx(np.log(12.0 / np.cosh(eta)), abs=1e-5)


def test_normalised_training_inputs_have_zero_mean_and_unit_width(make_jets):
    samples = [make_jets(6, jets=300, seed=s) for s in (1, 2)]
    constant = samples[0].tracks.copy()
    inputs = common_inputs(samples)
    hits = samples[0].track_fields.index("numberOfSCTHits")
    for jets in samples:
        jets.tracks[:, hits] = 8
    assert constant.shape == samples[0].tracks.shape
    features = [compute_features(jets, inputs) for jets in samples]
    norm = Normalisation.measure(features)
    track = np.concatenate([norm.apply(f).track for f in features]).astype(np.float64)
    jet = np.concatenate([norm.apply(f).jet for f in features]).astype(np.float64)
    column = inputs.track.index("numberOfSCTHits")
    np.testing.assert_allclose(track.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.delete(track.std(axis=0), column), 1, atol=1e-4)
    assert (track[:, column] == 0).all()
    np.testing.assert_allclose(jet.std(axis=0), 1, atol=1e-4)


def test_inputs_are_those_that_all_samples_share(make_jets):
    fewer = tuple(f for f in TRACK_FIELDS if f not in ("phiUncertainty", "deta"))
    inputs = common_inputs([make_jets([2]), make_jets([2], fields=fewer)])
    assert set(TRACK_FIELDS) - set(inputs.track_fields) == {"phiUncertainty", "deta", "qOverP"}
    assert "log_pt_gev" not in inputs.track


def test_a_missing_field_is_named_with_its_nearest(make_jets):
    inputs = common_inputs([make_jets([2])])
    jets = make_jets([2])
    renamed = tuple("thetaUncertanty" if f == "thetaUncertainty" else f for f in jets.track_fields)
    with pytest.raises(DataError, match=r"thetaUncertainty \(nearest: thetaUncertanty"):
        compute_features(replace(jets, track_fields=renamed), inputs)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_values_are_counted_by_field(make_jets, bad):
    jets = make_jets([4, 3])
    jets.tracks[[1, 5], jets.track_fields.index("z0SinTheta")] = bad
    jets.tracks[0, jets.track_fields.index("qOverPUncertainty")] = bad
    with pytest.raises(DataError, match=r"z0SinTheta: 2, .*qOverPUncertainty: 1|qOverPUncertainty: 1, .*z0"):
        compute_features(jets, common_inputs([jets]))


def test_a_negative_uncertainty_is_refused(make_jets):
    jets = make_jets([4])
    jets.tracks[2, jets.track_fields.index("phiUncertainty")] = -1
    with pytest.raises(DataError, match=r"1 value.*phiUncertainty"):
        compute_features(jets, common_inputs([jets]))


def test_no_known_field_is_an_error(make_jets):
    with pytest.raises(DataError, match="no track field in common"):
        common_inputs([make_jets([2], fields=("numberOfDogs",))])
