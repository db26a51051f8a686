"""Batches hold every jet once, with its own tracks, and are new in every epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from selfcal.tagger.batching import NO_VERTEX, UNKNOWN_VERTEX, epoch_batches, join, sorted_batches, to_tensors
from selfcal.tagger.inputs import Normalisation, common_inputs, compute_features


def _tensors(jets):
    inputs = common_inputs([jets])
    return to_tensors(jets, inputs, Normalisation.measure([compute_features(jets, inputs)]))


def test_a_batch_holds_the_tracks_of_its_jets(make_jets):
    jets = make_jets([3, 0, 5, 1])
    tensors = _tensors(jets)
    batch = tensors.batch(np.array([2, 1, 0]))
    assert batch.tracks.shape[:2] == (3, 5)
    for row, jet in enumerate([2, 1, 0]):
        first, last = jets.track_offsets[jet : jet + 2]
        n = last - first
        assert torch.equal(batch.tracks[row, :n], tensors.tracks[first:last])
        assert torch.equal(batch.origin[row, :n], torch.from_numpy(jets.track_origin[first:last]).long())
        assert (batch.vertex[row, :n] == tensors.vertex[first:last]).all()
        assert (batch.vertex[row, n:] == UNKNOWN_VERTEX).all()
        assert batch.valid[row].tolist() == [i < n for i in range(5)]
        assert not batch.tracks[row, n:].any()
        assert (batch.origin[row, n:] == -1).all()
    assert batch.flavour.tolist() == jets.flavour[[2, 1, 0]].tolist()


def test_a_track_without_vertex_is_told_apart_from_one_of_unknown_vertex(make_jets):
    """Pile-up (0) and fakes (1) come from no vertex of the jet, if the file speaks of vertices at all."""
    jets = replace(make_jets([5]), track_origin=np.array([0, 1, -1, 2, 3], np.int8))
    named = replace(jets, track_vertex=np.array([-2, -1, -2, 0, 4], np.int16))
    assert _tensors(named).vertex.tolist() == [NO_VERTEX, NO_VERTEX, UNKNOWN_VERTEX, 0, 4]
    silent = replace(jets, track_vertex=np.full(5, -2, np.int16))
    assert _tensors(silent).vertex.tolist() == [UNKNOWN_VERTEX] * 5


def test_a_batch_without_any_track(make_jets):
    batch = _tensors(make_jets([0, 0])).batch(np.array([0, 1]))
    assert batch.tracks.shape[:2] == (2, 0)


def test_every_epoch_visits_every_jet_once_in_a_new_order():
    n_tracks = np.random.default_rng(3).poisson(8, 1000)
    epochs = [epoch_batches(n_tracks, 64, seed=5, epoch=e, bucket=4) for e in (0, 1)]
    for batches in epochs:
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(1000))
        assert max(map(len, batches)) == 64
    members = [{frozenset(b.tolist()) for b in batches} for batches in epochs]
    assert not members[0] & members[1]
    again = epoch_batches(n_tracks, 64, seed=5, epoch=1, bucket=4)
    assert all(np.array_equal(a, b) for a, b in zip(epochs[1], again, strict=True))


def test_length_buckets_save_padding():
    n_tracks = np.random.default_rng(3).poisson(8, 20_000)
    padded = sum(n_tracks[b].max() * len(b) for b in epoch_batches(n_tracks, 256, seed=1, epoch=0))
    shuffled = np.random.default_rng(0).permutation(n_tracks).reshape(-1, 250)
    assert padded < 1.2 * n_tracks.sum() < (shuffled.max(axis=1) * 250).sum()


def test_sorted_batches_cover_all_jets():
    n_tracks = np.array([4, 0, 2, 9, 9, 1])
    batches = sorted_batches(n_tracks, 4)
    assert n_tracks[np.concatenate(batches)].tolist() == sorted(n_tracks.tolist())


def test_join_keeps_every_jet(make_jets):
    jets = make_jets([3, 0, 5, 1])
    whole = _tensors(jets)
    inputs = common_inputs([jets])
    norm = Normalisation.measure([compute_features(jets, inputs)])
    halves = [to_tensors(jets.select(np.array(i)), inputs, norm) for i in ([0, 1], [2, 3])]
    joined = join(halves)
    for name in ("tracks", "offsets", "jet", "flavour", "origin", "vertex", "weight"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
