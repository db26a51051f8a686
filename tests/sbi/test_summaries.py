"""Summaries: every track where a slow reading of the definition puts it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfcal.sbi.summaries import (
    D0_EDGES,
    HISTOGRAMS,
    N_BINS,
    Z0_EDGES,
    count_samples,
    count_tracks,
    tracks_of_jets,
)
from selfcal.sbi.track_columns import LOW_PT_GEV, column, track_pt_gev


def slow_counts(jets):
    """The definition, track by track."""
    start = {(h.name, h.category): h.bins.start for h in HISTOGRAMS}
    per_jet = np.zeros((len(jets), N_BINS))
    pt = track_pt_gev(jets)
    for j in range(len(jets)):
        for t in range(jets.track_offsets[j], jets.track_offsets[j + 1]):
            d0 = column(jets, "lifetimeSignedD0Significance")[t]
            z0 = column(jets, "lifetimeSignedZ0SinThetaSignificance")[t]
            hit = column(jets, "numberOfInnermostPixelLayerHits")[t] > 0
            band = "high_pt" if pt[t] >= LOW_PT_GEV else "low_pt"
            category = f"innermost_{band}" if hit else "no_innermost"
            if d0 < 0 and abs(z0) < 4:
                per_jet[j, start["d0", category] + sum(-d0 >= e for e in D0_EDGES) - 1] += 1
                per_jet[j, start["hit", band] + hit] += 1
            if z0 < 0 and abs(d0) < 4:
                per_jet[j, start["z0", category] + sum(-z0 >= e for e in Z0_EDGES) - 1] += 1
            if d0 <= -4 and abs(z0) >= 4:
                per_jet[j, start["z0", category] + len(Z0_EDGES) - 1 + (d0 <= -10)] += 1
            if abs(d0) < 2 and abs(z0) < 2:
                for name, field in (("d0_sign", "d0"), ("z0_sign", "z0SinTheta")):
                    per_jet[j, start[name, band] + (column(jets, field)[t] > 0)] += 1
            if abs(z0) < 4:
                per_jet[j, start["tracks", "all"]] += 1
    return per_jet


def test_counts_and_spread_are_those_of_the_definition(make_toy_jets):
    jets = make_toy_jets(400, seed=5)
    per_jet = slow_counts(jets)
    counts = count_tracks(jets)
    assert np.array_equal(tracks_of_jets(jets), per_jet)
    for flavour in range(4):
        chosen = per_jet[jets.flavour == flavour]
        assert np.array_equal(counts.total[flavour], chosen.sum(axis=0))
        assert np.array_equal(counts.spread[flavour], (chosen**2).sum(axis=0))
        assert counts.jets[flavour] == len(chosen)
    assert np.array_equal(count_tracks(jets, with_spread=False).total, counts.total)


def test_histograms_cover_all_bins_once():
    covered = [b for h in HISTOGRAMS for b in range(h.bins.start, h.bins.stop)]
    assert covered == list(range(N_BINS))


def test_the_negative_side_hardly_knows_the_flavour(make_toy_jets):
    """Displaced tracks are on the positive side: b and light agree on the negative one."""
    b, light = (count_tracks(make_toy_jets(6000, seed=s, flavours=(f,))) for s, f in ((1, 0), (2, 2)))
    block = next(h for h in HISTOGRAMS if h.name == "d0" and h.category == "innermost_low_pt").bins
    rates = [c.pooled().total[0, block] / c.jets.sum() for c in (b, light)]
    error = np.sqrt(rates[0] / 6000 + rates[1] / 6000 + 1e-9)
    significance = (rates[0] / rates[0].sum() - rates[1] / rates[1].sum()) / (error / rates[1].sum())
    assert np.abs(significance[rates[1] > 0.01]).max() < 4


def test_samples_add_up(make_toy_jets):
    """Of three samples: every count is the sum of theirs, also with weights."""
    samples = [make_toy_jets(150, seed=seed) for seed in (1, 2, 3)]
    samples[1] = replace(samples[1], weight=np.full(150, 0.5))
    together, alone = count_samples(samples), [count_tracks(jets) for jets in samples]
    for name in ("total", "jets", "spread"):
        assert np.allclose(getattr(together, name), sum(getattr(one, name) for one in alone), rtol=1e-12)
    half, whole = alone[1], count_tracks(replace(samples[1], weight=np.ones(150)))
    assert np.array_equal(2 * half.total, whole.total)
    assert np.array_equal(4 * half.spread, whole.spread)
    assert np.array_equal(together.pooled().total, together.total.sum(axis=0, keepdims=True))
    assert not count_samples(samples, with_spread=False).spread.any()


def test_bins_of_significances_are_finer_where_tracks_are_many() -> None:
    widths = np.diff(D0_EDGES)
    assert (np.diff(widths) >= 0).all()
    assert D0_EDGES.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 10, 20, np.inf]
