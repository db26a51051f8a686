"""PFNano: tracks of small files with known content, and the published one against CMS's own signs."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from selfcal.config.card import DataCard
from selfcal.data.jet_reader import Wanted
from selfcal.data.pfnano_reader import PfNanoReader
from selfcal.data.reading import read_dataset, reader_of
from selfcal.errors import DataError

PFNANO = "coffea_pfnano.root"


def content():
    """Two events with two jets and one; candidate 1 of event 0 is neutral, candidate 3 has no details."""
    return {
        "Jet": {
            "pt": [[50.0, 30.0], [100.0]],
            "eta": [[0.0, 1.0], [-1.5]],
            "phi": [[0.0, 3.0], [-3.1]],
            "hadronFlavour": [[5, 0], [4]],
        },
        # Pairs in no order of jets, one of them of a jet that the file does not keep (index 2).
        "JetPFCands": {"jetIdx": [[1, 0, 0, 2, 0, 1], [0, 0]], "pFCandsIdx": [[4, 0, 1, 2, 3, 2], [1, 0]]},
        "PFCands": {
            "pt": [[2.0, 5.0, 4.0, 0.3, 1.0], [10.0, 20.0]],
            "eta": [[0.1, 0.0, 1.2, 0.0, 0.9], [-1.4, -1.6]],
            "phi": [[0.2, 0.0, 2.9, 0.0, -3.1], [3.1, -3.0]],
            "charge": [[1, 0, -1, 1, 1], [-1, 1]],
            "d0": [[0.01, -1.0, -0.02, -1.0, 0.03], [0.04, -0.05]],
            "d0Err": [[0.002, -1.0, 0.004, -1.0, 0.003], [0.01, 0.01]],
            "dz": [[0.1, -1.0, -0.2, -1.0, 0.3], [-0.4, 0.5]],
            "dzErr": [[0.01, -1.0, 0.02, -1.0, 0.03], [0.1, 0.1]],
            "lostInnerHits": [[-1, -1, 0, -1, 1], [-1, 2]],
        },
        "run": np.array([1, 1], np.uint32),
        "luminosityBlock": np.array([7, 7], np.uint32),
        "event": np.array([11, 12], np.uint64),
    }


def write(path, columns):
    arrays = {
        name: ak.zip({field: ak.Array(column) for field, column in values.items()})
        if isinstance(values, dict)
        else values
        for name, values in columns.items()
    }
    with uproot.recreate(path) as file:
        types = {
            name: values.dtype if isinstance(values, np.ndarray) else values.type.content
            for name, values in arrays.items()
        }
        file.mktree("Events", types)
        file["Events"].extend(arrays)
    return path


def card_for(path, **more):
    given = {"name": "tt", "role": "simulation", "region": "tt", "format": "pfnano", "files": (str(path),)}
    return DataCard.model_validate(given | more)


def read(card, chunk_jets=1000):
    return list(read_dataset(card, [Path(card.files[0])], Wanted(), chunk_jets=chunk_jets))


def columns_of(jets):
    return {name: jets.tracks[:, i].astype(float) for i, name in enumerate(jets.track_fields)}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "small.root", content())


def test_charged_candidates_with_details_are_the_tracks(path):
    reader = PfNanoReader()
    (jets,) = reader.chunks(path, card_for(path), Wanted(), 1000)
    assert reader.dropped == {"charged constituents without track details": 1}
    np.testing.assert_array_equal(jets.track_offsets, [0, 1, 3, 5])
    found = columns_of(jets)
    pt, eta = np.array([2.0, 1.0, 4.0, 20.0, 10.0]), np.array([0.1, 0.9, 1.2, -1.6, -1.4])
    phi, charge = np.array([0.2, -3.1, 2.9, -3.0, 3.1]), np.array([1, 1, -1, 1, -1])
    d0, dz = np.array([0.01, 0.03, -0.02, -0.05, 0.04]), np.array([0.1, 0.3, -0.2, 0.5, -0.4])
    d0_error, dz_error = np.array([2, 3, 4, 10, 10]) * 1e-3, np.array([1, 3, 2, 10, 10]) * 1e-2
    jet_eta, jet_phi = np.array([0, 1, 1, -1.5, -1.5]), np.array([0, 3, 3, -3.1, -3.1])
    theta = 2 * np.arctan(np.exp(-eta))
    np.testing.assert_allclose(found["d0"], 10 * d0, rtol=1e-6)
    np.testing.assert_allclose(found["z0SinTheta"], 10 * dz * np.sin(theta), rtol=1e-6)
    np.testing.assert_allclose(found["qOverP"], charge * np.sin(theta) / (1000 * pt), rtol=1e-6)
    np.testing.assert_allclose(found["deta"], eta - jet_eta, atol=1e-6)
    np.testing.assert_allclose(found["dphi"], np.angle(np.exp(1j * (phi - jet_phi))), atol=1e-6)
    sign = np.sign(d0 * np.sin(jet_phi - phi))
    np.testing.assert_allclose(found["lifetimeSignedD0Significance"], sign * abs(d0) / d0_error, rtol=1e-5)
    sign = np.sign(dz * (jet_eta - eta))
    expected = sign * abs(dz) / dz_error
    np.testing.assert_allclose(found["lifetimeSignedZ0SinThetaSignificance"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["numberOfInnermostPixelLayerHits"], [1, 0, 0, 0, 1])


def test_selection_takes_the_tracks_along(path):
    (jets,) = read(card_for(path, selection=({"field": "Jet_pt", "max": 60},)))
    np.testing.assert_array_equal(jets.track_offsets, [0, 1, 3])
    (jets,) = read(card_for(path, selection=({"field": "Jet_pt", "min": 60},)))
    np.testing.assert_allclose(columns_of(jets)["d0"], [-0.5, 0.4], rtol=1e-6)


def test_newer_files_count_hits_and_cards_may_map_fields(tmp_path):
    columns = content()
    columns["PFCands"]["numberOfPixelHits"] = [[3, 0, 4, 0, 2], [4, 4]]
    columns["PFCands"]["numberOfHits"] = [[13, 0, 10, 0, 2], [14, 15]]
    columns["PFCands"]["sharing"] = [[5, 6, 7, 8, 9], [1, 2]]
    path = write(tmp_path / "newer.root", columns)
    card = card_for(path, fields={"tracks": {"numberOfPixelSharedHits": "PFCands_sharing"}})
    found = columns_of(read(card)[0])
    np.testing.assert_array_equal(found["numberOfPixelHits"], [3, 2, 4, 4, 4])
    np.testing.assert_array_equal(found["numberOfSCTHits"], [10, 0, 6, 11, 10])
    np.testing.assert_array_equal(found["numberOfPixelSharedHits"], [5, 9, 7, 2, 1])


def test_units_of_the_card(path):
    (jets,) = read(card_for(path, units={"length": "mm", "momentum": "MeV"}))
    np.testing.assert_allclose(columns_of(jets)["d0"], [0.01, 0.03, -0.02, -0.05, 0.04], rtol=1e-6)
    np.testing.assert_allclose(jets.pt_gev, [0.05, 0.03, 0.1], rtol=1e-6)
    assert abs(columns_of(jets)["qOverP"][0] - 0.5 / np.cosh(0.1)) < 1e-6


def test_conventions_and_damage_are_refused(tmp_path, path):
    with pytest.raises(DataError, match="d0 refers to the beamline"):
        read(card_for(path, conventions={"reference": "beamline"}))
    columns = content()
    columns["JetPFCands"]["pFCandsIdx"] = [[4, 0, 1, 2, 9, 2], [1, 0]]
    with pytest.raises(DataError, match="1 of 7 JetPFCands_pFCandsIdx point beyond"):
        read(card_for(write(tmp_path / "links.root", columns)))
    columns = content()
    columns["PFCands"]["dz"] = [[np.nan, -1.0, -0.2, -1.0, 0.3], [-0.4, 0.5]]
    with pytest.raises(DataError, match=r"PFCands_dz \(1\)"):
        read(card_for(write(tmp_path / "nan.root", columns)))
    columns = content()
    columns["PFCands"]["dzError"] = columns["PFCands"].pop("dzErr")
    with pytest.raises(DataError, match="PFCands_dzErr") as caught:
        read(card_for(write(tmp_path / "names.root", columns)))
    assert "for PFCands_dzErr perhaps PFCands_dzError" in (caught.value.fix or "")


def test_recognition(path):
    reader = reader_of("pfnano")
    assert reader.recognises(path)
    assert not reader_of("nanoaod").recognises(path)
    contents = reader.contents(path)
    assert (contents.format, contents.n_jets) == ("pfnano", 3)
    assert "PFCands_d0" in contents.track_fields


def test_published_signs_are_those_of_the_experiment(shared_file):
    """CMS signs its 3-dimensional impact parameter by its projection on the jet axis; ours are two of it.

    From our d0, z0 sin(theta), deta and dphi the whole projection follows, without any other column:
    its sign is that of ``btagSip3dSig`` for 99.8 % of the tracks (rounding of small values does the rest).
    """
    path = shared_file(f"published/{PFNANO}")
    reader = PfNanoReader()
    card = card_for(path, scores={"tagger": "DeepFlav"})
    parts = list(reader.chunks(path, card, Wanted(scores=True), 20))
    assert len(parts) > 2
    assert reader.dropped["charged constituents without track details"] == 129
    with uproot.open(path) as file:
        events = file["Events"]

        def of(name):
            return events[name].array()

        order = ak.argsort(of("JetPFCands_jetIdx"), axis=1, stable=True)
        candidate = of("JetPFCands_pFCandsIdx")[order]
        kept = (of("PFCands_charge")[candidate] != 0) & (of("PFCands_d0Err")[candidate] > 0)
        stored = ak.to_numpy(ak.flatten(of("JetPFCands_btagSip3dSig")[order][kept]))
        pt = ak.to_numpy(ak.flatten(of("PFCands_pt")[candidate][kept]))
    jet_eta = np.concatenate([np.repeat(part.eta, part.n_tracks) for part in parts]).astype(float)
    found = {
        name: np.concatenate([part.tracks[:, i] for part in parts]).astype(float)
        for i, name in enumerate(parts[0].track_fields)
    }
    assert len(found["d0"]) == len(stored) == 786
    eta = jet_eta + found["deta"]
    np.testing.assert_allclose(1 / np.abs(found["qOverP"]) / 1000 / np.cosh(eta), pt, rtol=1e-5)
    # In the frame where the track points along x in the transverse plane.
    direction = np.stack([np.ones_like(eta), np.zeros_like(eta), np.sinh(eta)]) / np.cosh(eta)
    point = np.stack([np.zeros_like(eta), found["d0"], found["z0SinTheta"] * np.cosh(eta)])
    nearest = point - (point * direction).sum(axis=0) * direction
    axis = np.stack([np.cos(found["dphi"]), -np.sin(found["dphi"]), np.sinh(jet_eta)])
    sure = np.isfinite(stored) & (stored != 0)
    agree = np.sign((nearest * axis).sum(axis=0)) == np.sign(stored)
    assert sure.sum() > 700
    assert agree[sure].mean() > 0.99
    transverse = found["lifetimeSignedD0Significance"]
    clear = sure & (np.abs(transverse) > 5) & (np.abs(stored) > 5)
    assert (np.sign(transverse) == np.sign(stored))[clear].mean() > 0.85
