"""The factorised heads equal the dense layers that they stand for; pairs are all there, once."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from selfcal.tagger.heads import PairHead, TrackHead
from selfcal.tagger.pairs import pair_matrix, track_pairs

COUNTS = [4, 0, 1, 6, 2]


def _tracks_and_latent(seed=1):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(6) < torch.tensor(COUNTS)[:, None]
    tracks = torch.randn(5, 6, 8, generator=generator, dtype=torch.float64)
    return tracks, torch.randn(5, 3, generator=generator, dtype=torch.float64), valid


def test_every_pair_of_valid_tracks_occurs_once():
    _, _, valid = _tracks_and_latent()
    found = list(zip(*(part.tolist() for part in track_pairs(valid)), strict=True))
    expected = [(jet, i, j) for jet, n in enumerate(COUNTS) for i, j in itertools.combinations(range(n), 2)]
    assert sorted(found) == sorted(expected)
    assert len(found) == len(set(found))


def test_pairs_of_valid_tracks_that_are_no_prefix():
    pairs = track_pairs(torch.tensor([[True, False, True, True]]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]


def test_pair_matrix_is_symmetric_and_holds_every_value():
    _, _, valid = _tracks_and_latent()
    pairs = track_pairs(valid)
    values = torch.arange(1.0, len(pairs.jet) + 1)
    matrix = pair_matrix(values, pairs, 5, 6)
    assert torch.equal(matrix, matrix.transpose(1, 2))
    assert torch.equal(matrix[pairs.jet, pairs.first, pairs.second], values)
    assert matrix.count_nonzero() == 2 * len(values)


def test_pair_head_equals_a_dense_layer_on_every_concatenation():
    """max over both orders of W x_i + V x_j, W = S + D and V = S - D, plus W_h h + c; then the rest."""
    torch.manual_seed(3)
    head = PairHead(8, 3, [5, 4]).double()
    tracks, latent, valid = _tracks_and_latent()
    pairs = track_pairs(valid)
    logits = head(tracks[valid], latent, valid, pairs)
    s, d = head.of_track.weight.chunk(2)
    c = 2 * head.of_track.bias[:5]
    for p, (jet, i, j) in enumerate(zip(*(part.tolist() for part in pairs), strict=True)):
        orders = [
            torch.cat([s + d, s - d], dim=1) @ torch.cat([tracks[jet, a], tracks[jet, b]])
            for a, b in ((i, j), (j, i))
        ]
        first = torch.maximum(*orders) + head.of_jet.weight @ latent[jet] + c
        second = F.linear(F.gelu(first), head.rest[1].weight, head.rest[1].bias)
        expected = F.linear(F.gelu(second), head.rest[3].weight, head.rest[3].bias)
        torch.testing.assert_close(logits[p], expected[0], rtol=1e-12, atol=1e-12)


def test_pair_head_gradient():
    """Central differences; |D (x_i - x_j)| has a kink, which random tracks do not sit on."""
    torch.manual_seed(3)
    head = PairHead(8, 3, [5]).double()
    tracks, latent, valid = _tracks_and_latent()
    pairs = track_pairs(valid)
    inputs = (tracks.requires_grad_(), latent.requires_grad_())
    assert torch.autograd.gradcheck(lambda t, h: head(t[valid], h, valid, pairs), inputs)


def test_track_head_equals_a_dense_layer_on_every_concatenation():
    torch.manual_seed(3)
    head = TrackHead(8, 3, [5], 7).double()
    tracks, latent, valid = _tracks_and_latent()
    joint = torch.cat([tracks, latent[:, None].expand(5, 6, 3)], dim=-1)
    weight = torch.cat([head.of_track.weight, head.of_jet.weight], dim=1)
    hidden = F.gelu(F.linear(joint, weight, head.of_track.bias))
    expected = F.linear(hidden, head.rest[1].weight, head.rest[1].bias)
    logits = head(tracks[valid], latent, valid.nonzero()[:, 0])
    torch.testing.assert_close(logits, expected[valid], rtol=1e-12, atol=1e-12)
