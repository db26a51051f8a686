"""Scores belong to their jets, whatever else is scored with them."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.score_values import log_scores
from selfcal.errors import DataError
from selfcal.tagger import scoring
from selfcal.tagger.bundle import TaggerBundle, build_tagger
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features
from selfcal.tagger.scoring import score_jets

SMALL = TaggerConfig(width=16, layers=1, heads=2, feedforward_width=16, latent=8, dropout=0.1)


@pytest.fixture
def bundle(make_jets) -> TaggerBundle:
    """A small tagger that has learnt nothing."""
    jets = make_jets(6, jets=400, seed=1)
    inputs = common_inputs([jets])
    normalisation = Normalisation.measure([compute_features(jets, inputs)])
    return TaggerBundle(SMALL, inputs, normalisation, build_tagger(SMALL, inputs, normalisation, seed=3))


def test_log_probabilities_are_normalised_and_in_the_order_of_the_jets(bundle, make_jets):
    jets = make_jets(6, jets=100)
    scores, latent, _ = score_jets(bundle, jets, with_latent=True)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=2e-7)
    assert latent.shape == (100, bundle.config.latent)
    for i in (0, 17, 99):
        alone, alone_latent, _ = score_jets(bundle, jets.select(np.array([i])), with_latent=True)
        np.testing.assert_array_equal(scores[i], alone[0])
        np.testing.assert_allclose(latent[i], alone_latent[0], atol=1e-5)


def test_chunks_change_nothing(bundle, make_jets, monkeypatch):
    jets = make_jets(6, jets=100)
    whole, nothing, _ = score_jets(bundle, jets)
    monkeypatch.setattr(scoring, "CHUNK_JETS", 30)
    seen = []
    parts, _, no_head = score_jets(bundle, jets, on_chunk=seen.append)
    assert nothing is None
    assert no_head is None
    assert seen == [30, 60, 90, 100]
    np.testing.assert_array_equal(parts, whole)


def test_scores_are_the_same_after_writing_and_reading(bundle, make_jets):
    scores = score_jets(bundle, make_jets(6, jets=100)).log_probability
    stored = np.exp(scores).astype(np.float32)
    np.testing.assert_array_equal(log_scores(stored.astype(np.float64), FLAVOURS, "file"), scores)


def test_no_jets_and_jets_without_tracks(bundle, make_jets):
    scores, latent, _ = score_jets(bundle, make_jets([]), with_latent=True)
    assert scores.shape == (0, 4)
    assert latent.shape == (0, bundle.config.latent)
    assert np.isfinite(score_jets(bundle, make_jets([0, 0])).log_probability).all()


def test_bad_inputs_are_refused(bundle, make_jets):
    jets = make_jets([3])
    jets.tracks[0, 0] = np.nan
    with pytest.raises(DataError, match="d0: 1"):
        score_jets(bundle, jets)
