"""Separators of jets from their tracks, against a slow loop and a mass that is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from selfcal.config.run import RunConfig
from selfcal.data.jets import TRACK_FIELDS, Jets
from selfcal.errors import DataError
from selfcal.training.separators import DISPLACED, NEAR, SCALE, separator_columns

NAMES = ("displaced_tracks", "mirrored_tracks", "displaced_mass")
D0, Z0 = "lifetimeSignedD0Significance", "lifetimeSignedZ0SinThetaSignificance"


def jets_of(tracks: list[list[dict[str, float]]]) -> Jets:
    """Jets at eta 0.5 with the given fields of their tracks, all others zero."""
    count = len(tracks)
    flat = [track for jet in tracks for track in jet]
    columns = np.zeros((len(flat), len(TRACK_FIELDS)), np.float32)
    for row, track in enumerate(flat):
        for name, value in track.items():
            columns[row, TRACK_FIELDS.index(name)] = value
    return Jets(
        dataset="toy",
        pt_gev=np.full(count, 50.0, np.float32),
        eta=np.full(count, 0.5, np.float32),
        flavour=np.zeros(count, np.int8),
        weight=np.ones(count),
        run=np.zeros(count, np.int64),
        event=np.arange(count),
        jet_index=np.zeros(count, np.int32),
        track_offsets=np.concatenate([[0], np.cumsum([len(jet) for jet in tracks])]).astype(np.int64),
        tracks=columns,
        track_origin=np.full(len(flat), -1, np.int8),
        track_vertex=np.full(len(flat), -2, np.int16),
    )


def track(d0: float, z0: float = 0.0, pt_gev: float = 2.0, deta: float = 0.0, dphi: float = 0.0):
    q_over_p = 1.0 / (1000.0 * pt_gev * math.cosh(0.5 + deta))
    return {D0: d0, Z0: z0, "qOverP": q_over_p, "deta": deta, "dphi": dphi}


def test_tracks_are_counted_on_both_sides() -> None:
    random = np.random.default_rng(1)
    tracks = [[track(d0, z0) for d0, z0 in random.normal(0.0, 3.0, (n, 2))] for n in random.poisson(6.0, 200)]
    found = separator_columns(jets_of(tracks), NAMES[:2])
    for row, jet in zip(found, tracks, strict=True):
        near = [t for t in jet if abs(np.float32(t[Z0])) < NEAR]
        displaced = sum(t[D0] > DISPLACED for t in near)
        mirrored = sum(t[D0] < -DISPLACED for t in near)
        assert row[0] == pytest.approx(math.log1p(displaced) / SCALE["displaced_tracks"])
        assert row[1] == pytest.approx(math.log1p(mirrored) / SCALE["mirrored_tracks"])


def test_the_mass_of_two_tracks_back_to_back_in_azimuth_is_their_energy() -> None:
    # At equal eta and opposite azimuth the transverse momenta cancel: m² = (2E)² - (2 pz)².
    pt = 1.5
    pz = pt * math.sinh(0.5)
    mass = 2.0 * math.sqrt(pt**2 + 0.13957**2)
    assert mass == pytest.approx(2.0 * math.sqrt(pt**2 + pz**2 + 0.13957**2 - pz**2))
    pair = [track(5.0, pt_gev=pt), track(4.0, pt_gev=pt, dphi=math.pi)]
    others = [track(1.0, pt_gev=9.0), track(-8.0, pt_gev=9.0), track(9.0, z0=20.0, pt_gev=9.0)]
    found = separator_columns(jets_of([pair, [*pair, *others], pair[:1], []]), ("displaced_mass",))[:, 0]
    expected = math.log1p(mass) / SCALE["displaced_mass"]
    np.testing.assert_allclose(found, [expected, expected, 0.0, 0.0], rtol=1e-5)


def test_columns_are_in_the_order_of_the_names() -> None:
    jets = jets_of([[track(5.0), track(6.0, dphi=0.3), track(-4.0)], [track(-5.0)]])
    one = separator_columns(jets, NAMES)
    np.testing.assert_array_equal(separator_columns(jets, NAMES[::-1]), one[:, ::-1])


def test_absent_track_fields_are_named() -> None:
    jets = jets_of([[track(5.0)]])
    kept = [i for i, name in enumerate(TRACK_FIELDS) if name != "dphi"]
    without = replace(jets, tracks=jets.tracks[:, kept], track_fields=tuple(TRACK_FIELDS[i] for i in kept))
    assert separator_columns(without, ("displaced_tracks",)).shape == (1, 1)
    with pytest.raises(DataError, match="absent: dphi"):
        separator_columns(without, ("displaced_mass",))


def test_given_scores_have_no_tracks_to_make_separators_from() -> None:
    run = {
        "name": "x",
        "data": {"cards": ["a.yaml"]},
        "tagger": {"kind": "scores"},
        "calibration": {"composition": {"separators": ["displaced_tracks"]}},
    }
    with pytest.raises(ValidationError, match="made from tracks"):
        RunConfig.model_validate(run)
