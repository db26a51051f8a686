"""Summaries of single jets against their plain definition, and the law given to what is absent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfcal.sbi.jet_summaries import ABSENT, ABSENT_CENTRE, ABSENT_WIDTH, SUMMARIES, present, summarise
from selfcal.sbi.track_columns import column, track_pt_gev


@pytest.fixture(scope="module")
def jets(make_toy_jets):
    return make_toy_jets(3000, seed=21)


@pytest.fixture(scope="module")
def vectors(jets):
    return dict(zip(SUMMARIES, summarise(jets, seed=3).T, strict=True))


def slow_summaries(jets, i):
    """The definition, track by track: counts as integers, None where there is no track."""
    rows = range(jets.track_offsets[i], jets.track_offsets[i + 1])
    d0, z0 = (column(jets, f"lifetimeSigned{name}Significance") for name in ("D0", "Z0SinTheta"))
    hit, pt = column(jets, "numberOfInnermostPixelLayerHits"), track_pt_gev(jets)
    found = {name: 0 for name in SUMMARIES if name.split()[0] in ("tracks", "pileup", "far")}
    found |= {name: None for name in SUMMARIES if name.startswith("lead")}
    centre = []
    for t in rows:
        category = (
            ("innermost_high_pt" if pt[t] >= 5 else "innermost_low_pt") if hit[t] > 0 else "no_innermost"
        )
        if abs(z0[t]) < 4 and d0[t] < 0:
            found[f"tracks {category}"] += 1
            found[f"lead_d0 {category}"] = max(found[f"lead_d0 {category}"] or 0, -d0[t])
        if abs(d0[t]) < 4 and z0[t] < 0:
            found[f"lead_z0 {category}"] = max(found[f"lead_z0 {category}"] or 0, -z0[t])
        found["pileup all"] += abs(d0[t]) < 4 and abs(z0[t]) >= 4
        found["far all"] += d0[t] <= -4 and abs(z0[t]) >= 4
        if abs(d0[t]) < 2 and abs(z0[t]) < 2:
            signs = [np.sign(column(jets, name)[t]) for name in ("d0", "z0SinTheta")]
            centre.append((signs[0] * abs(d0[t]), signs[1] * abs(z0[t])))
    means = np.mean(centre, axis=0) if centre else (None, None)
    return found | {"centre_d0 all": means[0], "centre_z0 all": means[1]}


def test_summaries_are_their_definition(jets, vectors):
    for i in range(60):
        for name, value in slow_summaries(jets, i).items():
            seen = vectors[name][i]
            if value is None:
                assert not present(name, vectors[name])[i]
            elif name.split()[0] in ("tracks", "pileup", "far"):
                assert int(np.floor(np.expm1(seen))) == value
            else:
                assert seen == pytest.approx(np.log1p(value) if "lead" in name else value, abs=1e-6)


def test_what_is_absent_follows_its_known_law(vectors):
    for name in ("lead_d0 no_innermost", "lead_z0 innermost_high_pt", "centre_d0 all"):
        centre = ABSENT_CENTRE if name.startswith("centre") else ABSENT
        values = vectors[name][~present(name, vectors[name])]
        assert len(values) > 20
        assert stats.kstest(values, stats.norm(centre, ABSENT_WIDTH).cdf).pvalue > 0.001


def test_counts_are_filled_evenly(vectors):
    for name in ("tracks innermost_low_pt", "pileup all", "far all"):
        fraction = np.expm1(vectors[name]) % 1.0
        assert stats.kstest(fraction, "uniform").pvalue > 0.001


def test_a_jet_has_the_same_vector_whichever_jets_it_is_read_with(jets):
    chosen = np.arange(0, 3000, 7)
    assert np.array_equal(summarise(jets.select(chosen), seed=3), summarise(jets, seed=3)[chosen])
    assert not np.array_equal(summarise(jets, seed=3), summarise(jets, seed=4))
