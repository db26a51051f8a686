"""NanoAOD: small files with known content, and the published ones against independent reading."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from selfcal.config.card import DataCard
from selfcal.data.folds import event_hash
from selfcal.data.jet_reader import Wanted
from selfcal.data.reading import read_dataset, reader_of
from selfcal.errors import DataError

TT = "coffea_nano_tt_v12.root"
PFNANO = "coffea_pfnano.root"
DIMUON = "coffea_nano_dimuon.root"
OPEN_DATA = "skhep_nanoAOD_2015_CMS_Open_Data_ttbar.root"


def content():
    """Three events with two, no and one jet."""
    return {
        "Jet_pt": [[50.0, 30.0], [], [100.0]],
        "Jet_eta": [[0.0, 1.0], [], [-1.5]],
        "Jet_phi": [[0.0, 3.1], [], [-3.1]],
        "Jet_hadronFlavour": ak.values_astype(ak.Array([[5, 0], [], [4]]), np.uint8),
        "Jet_btagPNetB": [[0.5, -1.0], [], [0.25]],
        "Jet_btagPNetCvB": [[0.375, -1.0], [], [0.5]],  # p_c / (p_c + p_b) of (0.5, 0.3, 0.2)
        "Jet_btagPNetCvL": [[0.6, -1.0], [], [1 / 3]],
        "Jet_btagPNetTauVJet": [[0.2, -1.0], [], [0.0]],
        "run": np.array([1, 1, 1], np.uint32),
        "luminosityBlock": np.array([7, 7, 8], np.uint32),
        "event": np.array([11, 12, 11], np.uint64),
        "genWeight": np.array([2.0, 3.0, -4.0], np.float32),
        "PV_npvs": np.array([10, 20, 30], np.int32),
    }


def write(path, columns):
    """A TTree whose jagged columns share counts, as NanoAOD has them, or are single numbers."""
    groups, flat = {}, {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            flat[name] = values
        else:
            collection, field = name.split("_", 1)
            groups.setdefault(collection, {})[field] = ak.Array(values)
    arrays = {name: ak.zip(fields) for name, fields in groups.items()}
    with uproot.recreate(path) as file:
        types = {name: array.type.content for name, array in arrays.items()}
        file.mktree("Events", types | {name: values.dtype for name, values in flat.items()})
        file["Events"].extend(arrays | flat)
    return path


def card_for(path, **more):
    given = {"name": "tt", "role": "simulation", "region": "tt", "format": "nanoaod", "files": (str(path),)}
    if more.get("role") == "data":
        given["composition"] = {}
    return DataCard.model_validate(given | more)


def read(card, chunk_jets=1000, tracks=False, **wanted):
    wanted = Wanted(tracks=tracks, **wanted)
    return list(read_dataset(card, [Path(card.files[0])], wanted, chunk_jets=chunk_jets))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "small.root", content())


def test_jets_labels_keys_and_weights(path):
    (jets,) = read(card_for(path))
    np.testing.assert_allclose(jets.pt_gev, [50, 30, 100])
    np.testing.assert_allclose(jets.eta, [0, 1, -1.5])
    np.testing.assert_array_equal(jets.flavour, [0, 2, 1])
    np.testing.assert_array_equal(jets.event, [11, 11, 11])
    np.testing.assert_array_equal(jets.jet_index, [0, 1, 0])
    np.testing.assert_array_equal(jets.row, [0, 1, 2])
    np.testing.assert_allclose(jets.weight, [2, 2, -4])
    assert jets.track_fields == ()


def test_blocks_keep_equal_event_numbers_apart(path):
    (jets,) = read(card_for(path))
    np.testing.assert_array_equal(jets.run, [2**32 + 7, 2**32 + 7, 2**32 + 8])
    hashes = event_hash("tt", jets.run, jets.event)
    assert hashes[0] == hashes[1] != hashes[2]
    by_run = read(card_for(path, fields={"run": "run"}))[0]
    np.testing.assert_array_equal(by_run.run, 1)


def test_scores_from_ratios_with_a_sentinel(path):
    (jets,) = read(card_for(path, scores={"tagger": "PNet"}), scores=True)
    assert jets.score_classes == ("b", "c", "light", "tau")
    p = np.exp(jets.log_score)
    np.testing.assert_allclose(p[0], [0.4, 0.24, 0.16, 0.2], rtol=1e-6)
    assert np.isnan(p[1]).all()
    np.testing.assert_allclose(p[2], [0.25, 0.25, 0.5, 0.0], atol=1e-6)
    assert np.isfinite(jets.log_score[2]).all()


def test_scores_that_the_card_names_one_by_one(path):
    fields = {"b": "Jet_btagPNetB", "light": "Jet_btagPNetTauVJet"}
    first = ({"field": "Jet_pt", "min": 60},)
    card = card_for(path, scores={"tagger": "Mine", "fields": fields}, selection=first)
    with pytest.raises(DataError, match="do not add up to 1"):
        read(card, scores=True)
    fields = {"b": "Jet_btagPNetCvL", "light": "Jet_lightness"}
    with pytest.raises(DataError, match="lacks the field"):
        read(card_for(path, scores={"tagger": "Mine", "fields": fields}), scores=True)


def test_light_jets_near_a_hadronic_tau_are_tau_jets(tmp_path):
    columns = content() | {
        "Jet_hadronFlavour": ak.values_astype(ak.Array([[5, 0], [], [0]]), np.int32),
        "GenVisTau_pt": [[30.0, 30.0], [20.0], [3.0]],
        "GenVisTau_eta": [[0.0, 1.1], [0.0], [-1.5]],
        "GenVisTau_phi": [[0.0, -3.1], [0.0], [-3.1]],  # the second is 0.08 from the jet across pi
    }
    (jets,) = read(card_for(write(tmp_path / "tau.root", columns)))
    np.testing.assert_array_equal(jets.flavour, [0, 3, 2])  # b stays b; a tau of 3 GeV is too soft


def test_selection_uses_fields_of_jets_and_events(path):
    cuts = ({"field": "PV_npvs", "max": 25}, {"field": "Jet_eta", "min": -0.5, "max": 0.5})
    (jets,) = read(card_for(path, selection=cuts))
    np.testing.assert_array_equal(jets.row, [0])
    values = ({"field": "Jet_hadronFlavour", "values": (4, 5)},)
    np.testing.assert_array_equal(read(card_for(path, selection=values))[0].row, [0, 2])


def test_a_selection_comes_before_the_checks(tmp_path):
    columns = content() | {
        "Jet_eta": [[0.0, np.nan], [], [-1.5]],
        "Jet_hadronFlavour": ak.values_astype(ak.Array([[5, 21], [], [4]]), np.int32),
    }
    path = write(tmp_path / "bad.root", columns)
    with pytest.raises(DataError, match=r"Jet_eta \(1\)"):
        read(card_for(path))
    with pytest.raises(DataError, match=r"unknown truth label\(s\) \[21\]"):
        read(card_for(path, fields={"eta": "Jet_phi"}))
    assert len(read(card_for(path, selection=({"field": "Jet_pt", "min": 40},)))[0]) == 2


@pytest.mark.parametrize("chunk_jets", [1, 2])
def test_chunks_make_no_difference(path, chunk_jets):
    card = card_for(path, scores={"tagger": "PNet"})
    (whole,) = read(card, scores=True)
    parts = read(card, chunk_jets=chunk_jets, scores=True)
    assert len(parts) > 1
    for name in ("pt_gev", "run", "event", "jet_index", "row", "weight", "flavour", "log_score"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(found, getattr(whole, name))


def test_missing_things_name_what_is_there(tmp_path, path):
    with pytest.raises(DataError, match="holds no tracks"):
        read(card_for(path), tracks=True)
    with pytest.raises(DataError, match="names no 'scores'"):
        read(card_for(path), scores=True)
    with pytest.raises(DataError, match="Jets") as caught:
        read(card_for(path, collection="Jets"))
    assert "for Jets perhaps Jet" in (caught.value.fix or "")
    columns = {name: values for name, values in content().items() if name != "Jet_hadronFlavour"}
    unlabelled = write(tmp_path / "data.root", columns)
    with pytest.raises(DataError, match="Jet_hadronFlavour"):
        read(card_for(unlabelled))
    assert (read(card_for(unlabelled, role="data"), labels=False)[0].flavour == -1).all()


def test_a_file_without_jets_gives_no_jets(tmp_path):
    columns = {
        name: values[:1] if isinstance(values, np.ndarray) else ak.Array(values)[1:2]
        for name, values in content().items()
    }
    (jets,) = read(card_for(write(tmp_path / "empty.root", columns), scores={"tagger": "PNet"}), scores=True)
    assert len(jets) == 0
    assert jets.log_score.shape == (0, 4)


def test_contents_and_count(path):
    reader = reader_of("nanoaod")
    assert reader.recognises(path)
    assert not reader_of("pfnano").recognises(path)
    assert not reader_of("physlite").recognises(path)
    assert reader.count(path, card_for(path)) == 3
    contents = reader.contents(path)
    assert (contents.format, contents.n_jets, contents.labelled) == ("nanoaod", 3, True)
    assert contents.taggers == ("PNet",)
    assert contents.collections == ("Jet",)


@pytest.mark.parametrize(
    ("name", "n_jets", "taggers", "labelled"),
    [
        (DIMUON, 264, ("Deep", "DeepFlav"), False),
        (TT, 1504, ("DeepFlav", "PNet", "RobustParTAK4"), True),
        (OPEN_DATA, 537, ("Deep", "DeepFlav"), True),
    ],
)
def test_published_contents(shared_file, name, n_jets, taggers, labelled):
    contents = reader_of("nanoaod").contents(shared_file(f"published/{name}"))
    assert (contents.n_jets, contents.taggers, contents.labelled) == (n_jets, taggers, labelled)
    assert "Jet" in contents.collections
    assert not any(one.startswith("n") for one in contents.collections)


@pytest.mark.parametrize(("tagger", "missing"), [("DeepFlav", 0), ("PNet", 291), ("RobustParTAK4", 291)])
def test_published_scores_reproduce_the_stored_ratios(shared_file, tagger, missing):
    """B, CvB, CvL and TauVJet computed from our probabilities are those in the file."""
    path = shared_file(f"published/{TT}")
    parts = read(card_for(path, scores={"tagger": tagger}), chunk_jets=400, scores=True)
    assert len(parts) > 2
    p = np.exp(np.concatenate([part.log_score for part in parts]))
    absent = np.isnan(p).any(axis=1)
    assert absent.sum() == missing
    with uproot.open(path) as file:

        def of(name):
            return ak.to_numpy(ak.flatten(file["Events"][f"Jet_{name}"].array()))

        stored = {part: of(f"btag{tagger}{part}") for part in ("B", "CvB", "CvL")}
        np.testing.assert_array_equal(absent, stored["CvL"] < 0)
        np.testing.assert_allclose(np.concatenate([part.pt_gev for part in parts]), of("pt"))
        labels = {5: 0, 4: 1, 0: 2}
        expected = [labels[int(one)] for one in of("hadronFlavour")]
        np.testing.assert_array_equal(np.concatenate([part.flavour for part in parts]), expected)
        tau = of("btagPNetTauVJet") if tagger == "PNet" else None
    b, c, light = (p[~absent, k] for k in range(3))
    np.testing.assert_allclose(c / (b + c), stored["CvB"][~absent], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(c / (c + light), stored["CvL"][~absent], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b / (b + c + light), stored["B"][~absent], atol=6e-4)
    if tau is not None:
        np.testing.assert_allclose(p[~absent, 3], tau[~absent], rtol=1e-5, atol=1e-8)


def test_published_data_and_all_sentinel_scores(shared_file):
    data = card_for(shared_file(f"published/{DIMUON}"), role="data", scores={"tagger": "DeepFlav"})
    (jets,) = read(data, labels=False, scores=True)
    assert (jets.flavour == -1).all()
    np.testing.assert_array_equal(jets.weight, 1)
    np.testing.assert_array_equal(jets.run, (315267 << 32) + 205)
    assert np.isfinite(jets.log_score).all()
    none = card_for(shared_file(f"published/{OPEN_DATA}"), scores={"tagger": "DeepFlav"})
    (jets,) = read(none, scores=True)
    assert np.isnan(jets.log_score).all()
    assert np.bincount(jets.flavour, minlength=4)[:2].tolist() == [6, 28]
    assert (jets.flavour == 3).sum() == 33


def test_split_and_ratios_of_a_published_file_agree(shared_file):
    from selfcal.data.cms_scores import probabilities, score_scheme

    path = shared_file(f"published/{PFNANO}")
    card = card_for(path, scores={"tagger": "DeepFlav"})
    with uproot.open(path) as file:
        events = file["Events"]
        names = events.keys(filter_name="*_btagDeepFlav*")
        forms = {
            "split": names,
            "ratios": [name for name in names if not name.endswith(("_b", "C"))],
            "direct": [name for name in names if name.endswith(("FlavB", "FlavC"))],
        }
        found = {}
        for kind, present in forms.items():
            scheme = score_scheme(card.scores, "Jet_btag", present, "f")
            assert scheme.kind == kind
            columns = {
                part: ak.to_numpy(ak.flatten(events[field].array())).astype(float)
                for part, field in scheme.fields.items()
            }
            found[kind] = probabilities(scheme, columns, "f")
    np.testing.assert_allclose(found["ratios"], found["split"], atol=1e-3)
    np.testing.assert_allclose(found["direct"], found["split"], atol=1e-3)
