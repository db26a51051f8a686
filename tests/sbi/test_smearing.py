"""The smearing model: exactly nothing at the nominal values, and what its formulas promise elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.data.jets import ORIGINS
from selfcal.errors import DataError
from selfcal.sbi.donors import (
    BAND_TRACKS_MIN,
    PT_GEV_EDGES,
    RATIO_FALLBACK,
    SIGNIFICANCE_MIN,
    _randomise,
    collect_donors,
)
from selfcal.sbi.noise import draw_noise, hashed_uniform, poisson_quantile
from selfcal.sbi.smearing import smear, smear_each
from selfcal.sbi.track_columns import LOW_PT_GEV, column, track_columns, track_pt_gev

EVERYTHING = SmearingParameters(
    d0_core_scale_low=1.1,
    d0_core_scale_high=0.9,
    z0_core_scale_low=1.2,
    z0_core_scale_high=0.95,
    tail_scale_low=2.0,
    tail_scale_high=0.5,
    far_tail_scale=3.0,
    d0_bias_mm=0.003,
    z0_bias_mm=-0.01,
    efficiency_shift=-0.05,
    innermost_efficiency_shift=-0.03,
    pileup_scale=1.5,
    fake_scale=2.0,
)


@pytest.fixture(scope="module")
def jets(make_toy_jets):
    return make_toy_jets(8000, seed=1)


@pytest.fixture(scope="module")
def donors(jets):
    return collect_donors([jets], seed=3)


def primary(jets):
    return jets.track_origin == ORIGINS.index("primary")


def test_nominal_parameters_return_the_same_jets(jets, donors):
    assert smear(jets, SmearingParameters(), donors, seed=1) is jets


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_vanishing_change_moves_almost_nothing(jets, donors, name):
    values = SmearingParameters().vector()
    values[PARAMETERS.index(name)] += 1e-8
    moved = smear(jets, SmearingParameters.from_vector(values), donors, seed=1)
    assert abs(len(moved.tracks) - len(jets.tracks)) <= 1
    if len(moved.tracks) == len(jets.tracks):
        assert np.median(np.abs(moved.tracks - jets.tracks)) < 1e-5


def test_the_result_of_a_jet_is_its_own(jets, donors):
    """Neither the other jets nor their order matter; another seed does."""
    some = np.random.default_rng(2).permutation(len(jets))[:500]
    whole = smear(jets, EVERYTHING, donors, seed=7)
    alone = smear(jets.select(some), EVERYTHING, donors, seed=7)
    assert np.array_equal(whole.select(some).tracks, alone.tracks)
    assert np.array_equal(whole.select(some).track_origin, alone.track_origin)
    assert np.array_equal(whole.select(some).track_offsets, alone.track_offsets)
    other = smear(jets.select(some), EVERYTHING, donors, seed=8)
    assert len(other.tracks) != len(alone.tracks) or not np.array_equal(other.tracks, alone.tracks)
    given = smear(jets, EVERYTHING, donors, seed=7, noise=draw_noise(jets, 7))
    assert np.array_equal(given.tracks, whole.tracks)


def test_jets_themselves_stay(jets, donors):
    moved = smear(jets, EVERYTHING, donors, seed=1)
    for name in ("pt_gev", "eta", "flavour", "weight", "event", "jet_index"):
        assert np.array_equal(getattr(moved, name), getattr(jets, name))
    assert moved.track_offsets[-1] == len(moved.tracks) == len(moved.track_origin) == len(moved.track_vertex)


@pytest.mark.parametrize("scale", [1.3, 0.8])
@pytest.mark.parametrize(("name", "parameter"), [("d0", "d0_core"), ("z0SinTheta", "z0_core")])
def test_core_scale_scales_the_width_of_primary_tracks(jets, donors, scale, name, parameter):
    changed = {f"{parameter}_scale_{band}": scale for band in ("low", "high")}
    moved = smear(jets, SmearingParameters(**changed), donors, seed=1)
    chosen = primary(jets)
    before, after = (column(sample, name)[chosen].astype(float) for sample in (jets, moved))
    assert after.std() / before.std() == pytest.approx(scale, abs=0.01)


def test_secondary_tracks_are_never_shrunk(jets, donors):
    parameters = SmearingParameters(d0_core_scale_low=0.7, d0_core_scale_high=0.7, tail_scale_low=0.0)
    moved = smear(jets, parameters, donors, seed=1)
    assert np.array_equal(moved.tracks[~primary(jets)], jets.tracks[~primary(jets)])
    assert not np.array_equal(moved.tracks[primary(jets)], jets.tracks[primary(jets)])


def test_significances_follow_the_impact_parameters(jets, donors):
    """sigma = |x / significance| stays unless the innermost hit is lost, the jet's side always."""
    parameters = EVERYTHING.model_copy(
        update={
            "innermost_efficiency_shift": 0.0,
            "efficiency_shift": 0.0,
            "pileup_scale": 1.0,
            "fake_scale": 1.0,
        }
    )
    moved = smear(jets, parameters, donors, seed=1)
    for value, significance in (
        ("d0", "lifetimeSignedD0Significance"),
        ("z0SinTheta", "lifetimeSignedZ0SinThetaSignificance"),
    ):
        known = np.abs(column(jets, significance)) > 1e-2
        known &= np.abs(column(moved, significance)) > 1e-2
        ratio = [column(s, value)[known] / column(s, significance)[known] for s in (jets, moved)]
        assert np.allclose(ratio[0], ratio[1], rtol=1e-4)


def test_tail_scale_widens_the_promised_share(jets, donors):
    moved = smear(jets, SmearingParameters(tail_scale_low=5.0, tail_scale_high=5.0), donors, seed=1)
    changed = column(moved, "d0") != column(jets, "d0")
    n = len(changed)
    assert changed.mean() == pytest.approx(0.06 * 4, abs=4 * np.sqrt(0.24 * 0.76 / n))
    chosen = primary(jets) & changed
    sigma = np.abs(column(jets, "d0") / column(jets, "lifetimeSignedD0Significance"))[chosen]
    assert (column(moved, "d0")[chosen] / sigma).std() == pytest.approx(2.0, abs=0.06)


def test_tail_scale_zero_pulls_all_primary_tails_in(jets, donors):
    moved = smear(
        jets, SmearingParameters(tail_scale_low=0.0, tail_scale_high=0.0, far_tail_scale=0.0), donors, seed=1
    )
    significance = np.abs(column(moved, "lifetimeSignedD0Significance"))[primary(jets)]
    before = np.abs(column(jets, "lifetimeSignedD0Significance"))[primary(jets)]
    assert (before > 2.5).sum() > 100
    assert (significance > 2.5 + 1e-3).sum() == (before > 5).sum() == 0


def test_a_detector_per_jet_is_the_same_as_each_for_all(jets, donors):
    """On either side of the nominal values, bit for bit."""
    few = jets.select(np.arange(40))
    generator = np.random.default_rng(3)
    values = NOMINAL.vector() + 1.5 * prior_widths({}) * generator.normal(size=(len(few), len(PARAMETERS)))
    theta = np.stack([SmearingParameters.from_vector(row).vector() for row in values])
    together = smear_each(few, theta, donors, seed=4)
    for index, row in enumerate(theta):
        alone = smear(few, SmearingParameters.from_vector(row), donors, seed=4)
        mine, its = (one.select(np.array([index])) for one in (together, alone))
        assert np.array_equal(mine.tracks, its.tracks)
        assert np.array_equal(mine.track_origin, its.track_origin)


def test_bias_is_added(jets, donors):
    moved = smear(jets, SmearingParameters(d0_bias_mm=0.01), donors, seed=1)
    assert np.allclose(column(moved, "d0") - column(jets, "d0"), 0.01, atol=1e-5)
    assert np.array_equal(column(moved, "z0SinTheta"), column(jets, "z0SinTheta"))


def test_lost_and_added_tracks_have_the_promised_rates(jets, donors):
    counts = np.bincount(jets.track_origin, minlength=len(ORIGINS))

    def share(**changed):
        moved = smear(jets, SmearingParameters(**changed), donors, seed=1)
        return np.bincount(moved.track_origin, minlength=len(ORIGINS)) / np.maximum(counts, 1)

    kinds = {name: ORIGINS.index(name) for name in ("pileup", "fake", "primary")}
    for changed, expected in (
        ({"pileup_scale": 1.4}, {"pileup": 1.4, "fake": 1.0, "primary": 1.0}),
        ({"pileup_scale": 0.6}, {"pileup": 0.6, "fake": 1.0, "primary": 1.0}),
        ({"fake_scale": 3.0}, {"pileup": 1.0, "fake": 3.0, "primary": 1.0}),
        ({"efficiency_shift": -0.1}, {"pileup": 0.9, "fake": 0.9, "primary": 0.9}),
    ):
        found = share(**changed)
        for name, value in expected.items():
            error = 5 * np.sqrt(max(abs(value - 1), 0.0) * max(value, 1.0) / counts[kinds[name]])
            assert found[kinds[name]] == pytest.approx(value, abs=error + 1e-12), (changed, name)
    more = smear(jets, SmearingParameters(efficiency_shift=0.1), donors, seed=1)
    assert len(more.tracks) / len(jets.tracks) == pytest.approx(1.1, abs=0.01)


@pytest.mark.parametrize("shift", [-0.1, 0.05])
def test_innermost_efficiency_shift_moves_tracks_between_categories(jets, donors, shift):
    moved = smear(jets, SmearingParameters(innermost_efficiency_shift=shift), donors, seed=1)
    with_hit = [column(s, "numberOfInnermostPixelLayerHits") > 0 for s in (jets, moved)]
    assert with_hit[1].mean() - with_hit[0].mean() == pytest.approx(shift, abs=0.006)
    difference = column(moved, "numberOfPixelHits") - column(jets, "numberOfPixelHits")
    assert np.array_equal(difference, with_hit[1].astype(float) - with_hit[0].astype(float))
    assert np.array_equal(moved.tracks[with_hit[0] == with_hit[1]], jets.tracks[with_hit[0] == with_hit[1]])
    # Their pulls keep unit width: resolution and residual change together.
    changed = (with_hit[0] != with_hit[1]) & primary(jets)
    assert column(moved, "lifetimeSignedD0Significance")[changed].std() == pytest.approx(1.0, abs=0.06)


def test_simulation_without_truth_origins_is_smeared_too(make_toy_jets):
    jets = make_toy_jets(4000, seed=1)
    blind = replace(jets, track_origin=np.full_like(jets.track_origin, -1))
    donors = collect_donors([blind], seed=1)
    moved = smear(blind, EVERYTHING, donors, seed=1)
    assert np.isfinite(moved.tracks).all()
    shrunk = smear(blind, SmearingParameters(d0_core_scale_low=0.8, d0_core_scale_high=0.8), donors, seed=1)
    assert np.array_equal(shrunk.tracks, blind.tracks)
    more = smear(blind, SmearingParameters(fake_scale=5.0), donors, seed=1)
    assert len(more.tracks) > len(blind.tracks)


def test_a_track_without_significance_gets_the_typical_resolution(jets, donors):
    tracks = jets.tracks.copy()
    tracks[0, jets.track_fields.index("d0")] = 0.0
    tracks[0, jets.track_fields.index("lifetimeSignedD0Significance")] = 0.0
    moved = smear(replace(jets, tracks=tracks), SmearingParameters(d0_bias_mm=0.02), donors, seed=1)
    significance = column(moved, "lifetimeSignedD0Significance")[0]
    assert 0.1 < abs(significance) < 2
    assert np.sign(significance) == -np.sign(column(jets, "dphi")[0])


def test_missing_fields_are_named(jets, donors):
    lacking = replace(jets, tracks=jets.tracks[:, 1:], track_fields=jets.track_fields[1:])
    with pytest.raises(DataError, match="d0"):
        smear(lacking, EVERYTHING, donors, seed=1)


def test_poisson_quantile_is_the_inverse_of_the_distribution():
    from scipy import stats

    generator = np.random.default_rng(1)
    uniform, mean = generator.uniform(size=2000), generator.uniform(0, 3, 2000)
    assert np.array_equal(poisson_quantile(uniform, mean), stats.poisson.ppf(uniform, mean))
    assert np.array_equal(poisson_quantile(uniform, np.zeros(2000)), np.zeros(2000))


def test_streams_are_even_and_independent():
    key = np.arange(20000, dtype=np.uint64)
    a, b = hashed_uniform(key, 0), hashed_uniform(key, 1)
    for stream in (a, b):
        assert np.histogram(stream, 20, (0, 1))[0].std() < 1.6 * np.sqrt(1000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20000)
    assert ((a > 0) & (a < 1)).all()


def test_momenta_follow_from_curvature_in_inverse_mev(jets):
    """|q/p| = 1/(50 GeV) at eta 0 and at eta 1."""
    tracks = jets.tracks.copy()
    tracks[:, jets.track_fields.index("qOverP")] = -2e-5
    tracks[:, jets.track_fields.index("deta")] = 0.0
    for eta in (0.0, 1.0):
        straight = replace(jets, tracks=tracks, eta=np.full_like(jets.eta, eta))
        assert track_pt_gev(straight) == pytest.approx(np.full(len(tracks), 50.0 / np.cosh(eta)), rel=1e-6)


def test_drawn_impact_parameters_keep_their_resolution():
    names = ("d0", "lifetimeSignedD0Significance", "z0SinTheta", "lifetimeSignedZ0SinThetaSignificance")
    donated = np.array([[0.0, 3.0, -1.0, 2.0], [-1.0, 4.0, 0.0, 5.0], [0.5, -2.0, 0.25, 1.0]], np.float32)
    before = donated.copy()
    _randomise(donated, names, np.full((10, 4), 2.0, np.float32), np.random.default_rng(1))
    assert (np.abs(donated[:, [0, 2]]) <= 2.0).all()
    assert not np.isin(donated[:, [0, 2]], before[:, [0, 2]]).any()
    # Where there was no displacement to compare with, the significance stays.
    assert (donated[0, 1], donated[1, 3]) == (3.0, 5.0)
    for row, v in ((1, 0), (2, 0), (0, 2), (2, 2)):
        assert donated[row, v] / donated[row, v + 1] == pytest.approx(
            before[row, v] / before[row, v + 1], rel=1e-6
        )


def test_fields_may_stand_in_another_order_than_the_donors(jets, donors):
    """Jets of another file: the same columns, backwards."""
    backwards = replace(jets, tracks=jets.tracks[:, ::-1].copy(), track_fields=jets.track_fields[::-1])
    expected = smear(jets, EVERYTHING, donors, seed=2)
    found = smear(backwards, EVERYTHING, donors, seed=2)
    assert np.array_equal(found.tracks[:, ::-1], expected.tracks)
    assert np.array_equal(found.track_offsets, expected.track_offsets)


def test_a_field_that_no_donor_has_is_named(jets, make_toy_jets):
    lacking = collect_donors([without(make_toy_jets(100, seed=4), "qOverP")], seed=1)
    with pytest.raises(DataError, match="may be added have no qOverP") as caught:
        smear(jets, EVERYTHING, lacking, seed=1)
    assert caught.value.where == "toy"
    assert "d0, z0SinTheta" in str(caught.value.expected)


def without(jets, *names):
    kept = [place for place, name in enumerate(jets.track_fields) if name not in names]
    fields = tuple(jets.track_fields[place] for place in kept)
    return replace(jets, tracks=jets.tracks[:, kept], track_fields=fields)


def test_what_is_taken_where_a_file_has_no_momenta_hits_or_angles(jets):
    bare = without(jets, "qOverP", "numberOfInnermostPixelLayerHits")
    assert track_columns(bare).high.all()
    assert track_columns(bare).innermost.all()
    assert np.isposinf(track_pt_gev(bare)).all()
    columns = track_columns(jets)
    assert np.array_equal(columns.jet, np.repeat(np.arange(len(jets)), np.diff(jets.track_offsets)))
    assert np.array_equal(columns.innermost, column(jets, "numberOfInnermostPixelLayerHits") > 0)
    assert np.array_equal(columns.high, track_pt_gev(jets) >= LOW_PT_GEV)
    assert 0.05 < columns.high.mean() < 0.95
    # Without its own angle a track goes along the jet's axis.
    flat = replace(jets, eta=np.zeros_like(jets.eta))
    curvature = np.abs(column(jets, "qOverP").astype(float))
    assert track_pt_gev(without(flat, "deta")) == pytest.approx(1e-3 / curvature, rel=1e-9)
    assert track_pt_gev(flat) == pytest.approx(1e-3 / curvature / np.cosh(column(jets, "deta")), rel=1e-6)


def test_hits_of_the_pixels_follow_those_of_the_innermost_layer(jets):
    """Two lost hits take two pixel hits with them, never below zero; shared and split hits there are gone."""
    fields = (*jets.track_fields, "numberOfInnermostPixelLayerSharedHits")
    tracks = np.concatenate([jets.tracks, np.ones((len(jets.tracks), 1), np.float32)], axis=1)
    inner, pixel = (fields.index(f"numberOf{name}Hits") for name in ("InnermostPixelLayer", "Pixel"))
    hit = tracks[:, inner] > 0
    tracks[hit, inner] = 2.0
    tracks[:, pixel] = np.where(np.arange(len(tracks)) % 2, 5.0, 1.0)
    full = replace(jets, tracks=tracks, track_fields=fields)
    donors = collect_donors([full], seed=3)
    fewer = smear(full, SmearingParameters(innermost_efficiency_shift=-0.3), donors, seed=1).tracks
    lost = hit & (fewer[:, inner] == 0)
    assert lost.mean() == pytest.approx(0.3, abs=0.02)
    assert np.array_equal(fewer[lost, pixel], np.where(tracks[lost, pixel] == 5.0, 3.0, 0.0))
    assert (fewer[lost, -1] == 0).all()
    assert np.array_equal(fewer[~lost][:, [inner, pixel]], tracks[~lost][:, [inner, pixel]])
    more = smear(full, SmearingParameters(innermost_efficiency_shift=0.05), donors, seed=1).tracks
    gained = ~hit & (more[:, inner] == 1)
    assert gained.mean() == pytest.approx(0.05, abs=0.01)
    assert np.array_equal(more[gained, pixel], tracks[gained, pixel] + 1)
    smaller = without(full, "numberOfPixelHits")
    again = smear(smaller, SmearingParameters(innermost_efficiency_shift=-0.3), donors, seed=1).tracks
    assert np.array_equal(
        again[:, smaller.track_fields.index("numberOfInnermostPixelLayerHits")], fewer[:, inner]
    )


def test_donors_need_tracks_of_one_kind(jets, make_toy_jets):
    with pytest.raises(DataError, match="no simulated tracks"):
        collect_donors([], seed=1)
    others = replace(without(jets, "qOverP"), dataset="other")
    with pytest.raises(DataError, match="different track fields") as caught:
        collect_donors([jets, others], seed=1)
    assert caught.value.where == "toy"


def test_resolutions_are_medians_per_band_of_momentum_by_loops(make_toy_jets):
    """Of primary tracks with a hit in the innermost layer, and how much worse those without one are."""
    jets = make_toy_jets(600, seed=8)
    donors = collect_donors([jets], seed=1)
    pt, d0 = track_pt_gev(jets), column(jets, "d0").astype(float)
    significance = column(jets, "lifetimeSignedD0Significance").astype(float)
    hit = column(jets, "numberOfInnermostPixelLayerHits") > 0
    known = np.abs(significance) > SIGNIFICANCE_MIN
    sigma = np.abs(d0 / np.where(known, significance, 1.0))
    z0 = column(jets, "z0SinTheta").astype(float)
    z0_significance = column(jets, "lifetimeSignedZ0SinThetaSignificance").astype(float)
    z0_known = np.abs(z0_significance) > SIGNIFICANCE_MIN
    z0_sigma = np.abs(z0 / np.where(z0_known, z0_significance, 1.0))
    band = np.array([sum(value >= edge for edge in PT_GEV_EDGES) for value in pt])
    filled = 0
    for b in range(len(PT_GEV_EDGES) + 1):
        inside = known & primary(jets) & (band == b)
        with_hit, without_hit = sigma[inside & hit], sigma[inside & ~hit]
        if len(with_hit) >= BAND_TRACKS_MIN:
            assert donors.d0_sigma_mm[b] == pytest.approx(np.median(with_hit), rel=1e-12)
            assert donors.z0_sigma_mm[b] == pytest.approx(
                np.median(z0_sigma[z0_known & primary(jets) & (band == b) & hit]), rel=1e-12
            )
        else:
            assert donors.d0_sigma_mm[b] == pytest.approx(np.median(sigma[known]), rel=1e-12)
        if min(len(with_hit), len(without_hit)) >= BAND_TRACKS_MIN:
            filled += 1
            expected = max(np.median(without_hit) / np.median(with_hit), 1.0)
            assert donors.innermost_ratio[0, b] == pytest.approx(expected, rel=1e-12)
        else:
            assert donors.innermost_ratio[0, b] == RATIO_FALLBACK
    assert 0 < filled <= len(PT_GEV_EDGES)  # bands with few tracks are met, too
    assert donors.innermost_efficiency[0] == pytest.approx(hit.mean())
