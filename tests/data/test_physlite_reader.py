"""PHYSLITE: small files with known content, and the published ones against independent reading."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from selfcal.config.card import DataCard
from selfcal.data.jet_reader import Wanted
from selfcal.data.physlite_reader import PhysliteReader
from selfcal.data.physlite_tracks import INDET_KEY
from selfcal.data.reading import read_dataset, reader_of
from selfcal.errors import DataError

BTAG_KEY = 582299515
JET = "AnalysisJetsAuxDyn:"
TRACK = "InDetTrackParticlesAuxDyn:"
CORRELATION_Z0_THETA = 0.75
RNTUPLE = "skhep_uproot-physlite-rntuple_v1-0-0-0.root"
TTREE = "skhep_uproot-issue-798.root"


def links(*jets):
    """Element links of one event's jets: ``(key, index)`` pairs."""
    return [[{"m_persKey": key, "m_persIndex": index} for key, index in jet] for jet in jets]


def content():
    """Three events with two, no and one jet; jet 0 of event 0 has tracks 2 and 0, jet 1 track 1."""
    variances = np.array([[4e-4, 9e-4, 1e-6, 4e-6, 1e-12]])
    correlations = np.zeros(10)
    correlations[4] = CORRELATION_Z0_THETA
    n_tracks = [3, 1, 2]
    theta = [[np.pi / 2, 1.0, 2.0], [1.1], [0.5, np.pi / 2]]
    return {
        f"{JET}pt": [[50e3, 30e3], [], [100e3]],
        f"{JET}eta": [[0.0, 1.0], [], [-1.5]],
        f"{JET}phi": [[0.0, 3.0], [], [-3.1]],
        f"{JET}HadronConeExclTruthLabelID": [[5, 0], [], [15]],
        f"{JET}HadronConeExclExtendedTruthLabelID": [[54, 44], [], [15]],
        f"{JET}GhostTrack": [
            links([(0, 0), (INDET_KEY, 2), (INDET_KEY, 0)], [(77, 0), (INDET_KEY, 1), (0, 0)]),
            [],
            links([(INDET_KEY, 1), (INDET_KEY, 0)]),
        ],
        f"{JET}btaggingLink": [links([(BTAG_KEY, 1), (BTAG_KEY, 0)])[0], [], links([(BTAG_KEY, 0)])[0]],
        "BTagging_AntiKt4EMPFlowAuxDyn:GN2v01_pb": [[0.1, 0.7], [], [0.0]],
        "BTagging_AntiKt4EMPFlowAuxDyn:GN2v01_pc": [[0.2, 0.1], [], [0.0]],
        "BTagging_AntiKt4EMPFlowAuxDyn:GN2v01_pu": [[0.4, 0.1], [], [1.0]],
        "BTagging_AntiKt4EMPFlowAuxDyn:GN2v01_ptau": [[0.3, 0.1], [], [0.0]],
        f"{TRACK}d0": [[0.1, -0.2, 0.3], [9.0], [0.5, -0.5]],
        f"{TRACK}z0": [[1.0, 2.0, 3.0], [9.0], [5.0, -5.0]],
        f"{TRACK}vz": [[0.5] * 3, [0.5], [0.5] * 2],
        f"{TRACK}phi": [[0.1, 2.9, -0.1], [0.0], [3.1, -3.0]],
        f"{TRACK}theta": theta,
        f"{TRACK}qOverP": [[1e-4, -2e-4, 3e-4], [1.0], [5e-4, -5e-4]],
        f"{TRACK}definingParametersCovMatrixDiag": [[variances[0].tolist()] * n for n in n_tracks],
        f"{TRACK}definingParametersCovMatrixOffDiag": [[correlations.tolist()] * n for n in n_tracks],
        f"{TRACK}numberOfPixelHits": [[4, 5, 6], [1], [2, 3]],
        "PrimaryVerticesAuxDyn:z": [[7.0, 0.5], [0.0], [0.5, 8.0]],
        "PrimaryVerticesAuxDyn:vertexType": [[3, 1], [1], [1, 3]],
        "EventInfoAuxDyn:runNumber": np.array([450000, 450000, 450001], np.uint32),
        "EventInfoAuxDyn:eventNumber": np.array([11, 12, 2**40], np.uint64),
        "EventInfoAuxDyn:mcChannelNumber": np.array([601229] * 3, np.uint32),
        "EventInfoAuxDyn:eventTypeBitmask": np.array([1, 1, 1], np.uint32),
        "EventInfoAuxDyn:averageInteractionsPerCrossing": np.array([30.0, 40.0, 50.0], np.float32),
        "EventInfoAuxDyn:mcEventWeights": [[2.0, 9.0], [3.0, 9.0], [-4.0, 9.0]],
    }


def write(path, columns, tree="EventData"):
    with uproot.recreate(path) as file:
        file.mkrntuple(tree, {name: ak.Array(values) for name, values in columns.items()})
    return path


def card_for(path, **more):
    given = {"name": "tt", "role": "simulation", "region": "tt", "format": "physlite", "files": (str(path),)}
    return DataCard.model_validate(given | more)


def read(card, chunk_jets=1000, **wanted):
    return list(read_dataset(card, [Path(card.files[0])], Wanted(**wanted), chunk_jets=chunk_jets))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "small.root", content())


def test_jets_labels_keys_and_weights(path):
    (jets,) = read(card_for(path), tracks=False)
    np.testing.assert_allclose(jets.pt_gev, [50, 30, 100])
    np.testing.assert_allclose(jets.eta, [0, 1, -1.5])
    np.testing.assert_array_equal(jets.flavour, [0, 2, 3])
    channel = 601229 << 32
    np.testing.assert_array_equal(jets.run, [channel + 450000] * 2 + [channel + 450001])
    np.testing.assert_array_equal(jets.event, [11, 11, 2**40])
    np.testing.assert_array_equal(jets.jet_index, [0, 1, 0])
    np.testing.assert_array_equal(jets.row, [0, 1, 2])
    np.testing.assert_allclose(jets.weight, [2, 2, -4])
    extended = card_for(path, fields={"label": "HadronConeExclExtendedTruthLabelID"})
    np.testing.assert_array_equal(read(extended, tracks=False)[0].flavour, [0, 1, 3])
    assert (read(card_for(path), tracks=False, labels=False)[0].flavour == -1).all()


def test_data_have_the_run_number_alone(tmp_path):
    columns = content() | {"EventInfoAuxDyn:eventTypeBitmask": np.zeros(3, np.uint32)}
    jets = read(card_for(write(tmp_path / "data.root", columns)), tracks=False)[0]
    np.testing.assert_array_equal(jets.run, [450000, 450000, 450001])


def test_scores_follow_the_links_and_saturation_is_finite(path):
    (jets,) = read(card_for(path, scores={"tagger": "GN2v01"}), tracks=False, scores=True)
    assert jets.score_classes == ("b", "c", "light", "tau")
    p = np.exp(jets.log_score)
    np.testing.assert_allclose(p[0], [0.7, 0.1, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(p[1], [0.1, 0.2, 0.4, 0.3], rtol=1e-6)
    assert np.isfinite(jets.log_score).all()
    assert p[2, 2] > 0.999999


def test_a_jet_without_link_has_no_scores(tmp_path):
    columns = content()
    columns[f"{JET}btaggingLink"] = [links([(0, 0), (BTAG_KEY, 0)])[0], [], links([(BTAG_KEY, 0)])[0]]
    card = card_for(write(tmp_path / "a.root", columns), scores={"tagger": "GN2v01"})
    (jets,) = read(card, tracks=False, scores=True)
    np.testing.assert_array_equal(np.isnan(jets.log_score).all(axis=1), [True, False, False])
    columns[f"{JET}btaggingLink"] = [links([(BTAG_KEY, 5), (BTAG_KEY, 0)])[0], [], links([(BTAG_KEY, 0)])[0]]
    with pytest.raises(DataError, match="point beyond"):
        read(replace_files(card, write(tmp_path / "b.root", columns)), tracks=False, scores=True)


def replace_files(card, path):
    return card.model_copy(update={"files": (str(path),)})


def test_tracks_in_the_order_of_the_links(path):
    reader = PhysliteReader()
    (jets,) = reader.chunks(path, card_for(path), Wanted(), 1000)
    assert reader.dropped == {"links to thinned tracks": 2, "links to tracks of other containers": 1}
    np.testing.assert_array_equal(jets.track_offsets, [0, 2, 3, 5])
    column = {name: jets.tracks[:, i].astype(float) for i, name in enumerate(jets.track_fields)}
    d0 = np.array([0.3, 0.1, -0.2, -0.5, 0.5])
    phi = np.array([-0.1, 0.1, 2.9, -3.0, 3.1])
    theta = np.array([2.0, np.pi / 2, 1.0, np.pi / 2, 0.5])
    z0 = np.array([3.0, 1.0, 2.0, -5.0, 5.0])  # vz cancels the vertex of type 1, which is not the first
    jet_phi = np.array([0, 0, 3.0, -3.1, -3.1])
    jet_eta = np.array([0, 0, 1.0, -1.5, -1.5])
    eta = -np.log(np.tan(theta / 2))
    np.testing.assert_allclose(column["d0"], d0, rtol=1e-6)
    np.testing.assert_allclose(column["z0SinTheta"], z0 * np.sin(theta), rtol=1e-6)
    np.testing.assert_allclose(column["qOverP"], [3e-4, 1e-4, -2e-4, -5e-4, 5e-4], rtol=1e-6)
    np.testing.assert_allclose(column["deta"], eta - jet_eta, atol=1e-6)
    dphi = np.array([-0.1, 0.1, -0.1, 0.1, 6.2 - 2 * np.pi])
    np.testing.assert_allclose(column["dphi"], dphi, atol=1e-6)
    np.testing.assert_allclose(column["phiUncertainty"], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(column["thetaUncertainty"], 2e-3, rtol=1e-6)
    np.testing.assert_allclose(column["qOverPUncertainty"], 1e-6, rtol=1e-6)
    np.testing.assert_array_equal(column["numberOfPixelHits"], [6, 4, 5, 3, 2])
    sign_d0 = np.sign(d0 * np.sin(jet_phi - phi))
    np.testing.assert_allclose(column["lifetimeSignedD0Significance"], sign_d0 * abs(d0) / 0.02, rtol=1e-5)
    covariance = CORRELATION_Z0_THETA * 0.03 * 0.002
    sigma = np.sqrt(
        (np.sin(theta) * 0.03) ** 2
        + (z0 * np.cos(theta) * 0.002) ** 2
        + 2 * z0 * np.sin(theta) * np.cos(theta) * covariance
    )
    expected = np.where(z0 * (jet_eta - eta) >= 0, 1, -1) * np.abs(z0) * np.sin(theta) / sigma
    np.testing.assert_allclose(column["lifetimeSignedZ0SinThetaSignificance"], expected, rtol=1e-5)


def test_both_forms_of_the_covariance_agree(tmp_path, path):
    columns = content()
    variances = np.array(columns.pop(f"{TRACK}definingParametersCovMatrixDiag")[0][0])
    correlations = columns.pop(f"{TRACK}definingParametersCovMatrixOffDiag")[0][0]
    sigma = np.sqrt(variances)
    below = iter(correlations)
    triangle = [
        sigma[i] ** 2 if i == j else next(below) * sigma[i] * sigma[j] for i in range(5) for j in range(i + 1)
    ]
    columns[f"{TRACK}definingParametersCovMatrix"] = [[triangle] * n for n in (3, 1, 2)]
    (one,) = read(card_for(path))
    (other,) = read(card_for(write(tmp_path / "triangle.root", columns)))
    assert one.track_fields == other.track_fields
    np.testing.assert_allclose(one.tracks, other.tracks, rtol=1e-5)


def test_fields_that_the_file_cannot_give_are_left_out(tmp_path):
    columns = {
        name: values
        for name, values in content().items()
        if "CovMatrix" not in name and "PrimaryVertices" not in name
    }
    (jets,) = read(card_for(write(tmp_path / "bare.root", columns)))
    assert jets.track_fields == ("d0", "deta", "dphi", "qOverP", "numberOfPixelHits")


@pytest.mark.parametrize(("chunk_jets", "n_chunks"), [(1, 3), (2, 2), (3, 1)])
def test_chunks_make_no_difference(path, chunk_jets, n_chunks):
    card = card_for(path, scores={"tagger": "GN2v01"})
    (whole,) = read(card, scores=True)
    parts = read(card, chunk_jets=chunk_jets, scores=True)
    assert len(parts) == n_chunks
    for name in ("pt_gev", "run", "event", "jet_index", "row", "log_score", "tracks"):
        found = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(found, getattr(whole, name))


def test_selection_on_fields_of_jets_and_events(path):
    cuts = ({"field": "pt", "min": 40e3}, {"field": "averageInteractionsPerCrossing", "max": 45})
    card = card_for(path, selection=cuts)
    (jets,) = read(card)
    np.testing.assert_array_equal(jets.row, [0])
    assert len(jets.tracks) == 2
    with pytest.raises(DataError, match="lacks the field") as caught:
        read(card_for(path, selection=({"field": "ptt", "min": 1},)))
    assert "for ptt perhaps pt" in (caught.value.fix or "")


def test_units_and_field_names_of_the_card(path):
    card = card_for(path, units={"momentum": "GeV", "length": "cm"}, fields={"pt": "phi", "eta": "pt"})
    (jets,) = read(card)
    np.testing.assert_allclose(jets.pt_gev, [0, 3, -3.1], rtol=1e-6)
    np.testing.assert_allclose(jets.eta, [50e3, 30e3, 100e3])
    column = dict(zip(jets.track_fields, jets.tracks.T, strict=True))
    np.testing.assert_allclose(column["d0"], [3, 1, -2, -5, 5], rtol=1e-6)
    np.testing.assert_allclose(column["qOverP"], np.array([3e-4, 1e-4, -2e-4, -5e-4, 5e-4]) * 1e-3, rtol=1e-6)
    mapped = card_for(path, fields={"tracks": {"numberOfSCTHits": "numberOfPixelHits"}})
    (jets,) = read(mapped)
    column = dict(zip(jets.track_fields, jets.tracks.T, strict=True))
    np.testing.assert_array_equal(column["numberOfSCTHits"], column["numberOfPixelHits"])


def test_damaged_links_and_bad_numbers_are_refused(tmp_path):
    columns = content()
    columns[f"{JET}GhostTrack"][2] = links([(INDET_KEY, 2)])
    with pytest.raises(DataError, match="1 of 4 GhostTrack links point beyond"):
        read(card_for(write(tmp_path / "a.root", columns)))
    columns = content() | {f"{TRACK}d0": [[0.1, np.nan, 0.3], [9.0], [0.5, np.inf]]}
    with pytest.raises(DataError, match=r"d0 \(2\)"):
        read(card_for(write(tmp_path / "b.root", columns)))
    for name, values in {
        f"{TRACK}phi": [[0.1, 2.9], [0.0], [3.1, -3.0]],
        f"{JET}eta": [[0.0, 1.0], [2.0], [-1.5]],
        "PrimaryVerticesAuxDyn:vertexType": [[3], [1], [1, 3]],
        f"{TRACK}definingParametersCovMatrixDiag": [[[1.0] * 5] * 3, [[1.0] * 4], [[1.0] * 5] * 2],
    }.items():
        with pytest.raises(DataError, match=name):
            read(card_for(write(tmp_path / "lengths.root", content() | {name: values})))
    columns = content() | {f"{JET}HadronConeExclTruthLabelID": [[5, 7], [], [15]]}
    with pytest.raises(DataError, match=r"unknown truth label\(s\) \[7\]"):
        read(card_for(write(tmp_path / "c.root", columns)), tracks=False)


def test_missing_collection_tagger_and_label_name_what_is_there(tmp_path, path):
    with pytest.raises(DataError, match="AnalysisJet") as caught:
        read(card_for(path, collection="AnalysisJet"))
    assert "AnalysisJets" in (caught.value.fix or "")
    with pytest.raises(DataError, match="GN2_pb") as caught:
        read(card_for(path, scores={"tagger": "GN2"}), tracks=False, scores=True)
    assert "GN2v01_pb" in (caught.value.expected or "")
    unlabelled = {name: values for name, values in content().items() if "TruthLabel" not in name}
    without = write(tmp_path / "unlabelled.root", unlabelled)
    with pytest.raises(DataError, match="HadronConeExclTruthLabelID"):
        read(card_for(without), tracks=False)
    assert (read(card_for(without), tracks=False, labels=False)[0].flavour == -1).all()


def test_contents_and_count(path):
    reader = reader_of("physlite")
    assert reader.recognises(path)
    assert reader.count(path, card_for(path)) == 3
    contents = reader.contents(path)
    assert (contents.format, contents.n_jets, contents.labelled) == ("physlite", 3, True)
    assert contents.taggers == ("GN2v01",)
    assert contents.collections == ("AnalysisJets",)
    assert "GhostTrack" in contents.jet_fields
    assert "d0" in contents.track_fields


def test_the_ttree_spelling_without_tracks_and_links(tmp_path):
    """Columns with dots, event numbers in the static store, scores in the order of the jets."""
    jagged = {
        "AnalysisJetsAuxDyn.pt": [[50e3, 30e3], [], [100e3]],
        "AnalysisJetsAuxDyn.eta": [[0.0, 1.0], [], [-1.5]],
        "AnalysisJetsAuxDyn.phi": [[0.0, 3.0], [], [-3.1]],
        "AnalysisJetsAuxDyn.HadronConeExclTruthLabelID": [[5, 0], [], [4]],
        "BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_pb": [[0.7, 0.1], [], [0.2]],
        "BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_pc": [[0.2, 0.3], [], [0.3]],
        "BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_pu": [[0.1, 0.6], [], [0.5]],
    }
    flat = {
        "EventInfoAux.runNumber": np.array([1, 1, 2], np.uint32),
        "EventInfoAux.eventNumber": np.array([5, 6, 7], np.uint64),
    }
    path = tmp_path / "tree.root"
    with uproot.recreate(path) as file:
        types = dict.fromkeys(jagged, "var * float64")
        types |= {name: values.dtype for name, values in flat.items()}
        file.mktree("CollectionTree", types)
        file["CollectionTree"].extend({name: ak.Array(values) for name, values in jagged.items()} | flat)
    card = card_for(path, scores={"tagger": "DL1r"})
    (jets,) = read(card, tracks=False, scores=True)
    assert jets.score_classes == ("b", "c", "light")
    np.testing.assert_allclose(np.exp(jets.log_score), [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.3, 0.5]])
    np.testing.assert_array_equal(jets.flavour, [0, 2, 1])
    np.testing.assert_array_equal(jets.run, [1, 1, 2])
    np.testing.assert_array_equal(jets.event, [5, 5, 7])
    np.testing.assert_array_equal(jets.weight, 1)
    with pytest.raises(DataError, match="GhostTrack"):
        read(card)


@pytest.mark.parametrize(
    ("name", "tagger", "classes", "n_jets", "n_tracks", "thinned"),
    [(TTREE, "DL1r", 3, 372, 169, 4638), (RNTUPLE, "GN2v01", 4, 881, 2154, 7525)],
)
def test_published_files_against_a_loop(shared_file, name, tagger, classes, n_jets, n_tracks, thinned):
    """Every jet and track again by a slow loop over what uproot gives."""
    path = shared_file(f"published/{name}")
    reader = PhysliteReader()
    card = card_for(path, scores={"tagger": tagger})
    parts = list(reader.chunks(path, card, Wanted(scores=True), 100))
    assert sum(len(part) for part in parts) == n_jets == reader.count(path, card)
    assert reader.dropped["links to thinned tracks"] == thinned
    dot, tree = (".", "CollectionTree") if name == TTREE else (":", "EventData")
    with uproot.open(path) as file:
        events = file[tree]

        def of(column):
            return events[column].array()

        jet = {key: of(f"AnalysisJetsAuxDyn{dot}{key}") for key in ("pt", "eta", "phi", "GhostTrack")}
        track = {
            key: of(f"InDetTrackParticlesAuxDyn{dot}{key}").to_list() for key in ("d0", "z0", "phi", "theta")
        }
        z = of(f"PrimaryVerticesAuxDyn{dot}z").to_list()
        kind = of(f"PrimaryVerticesAuxDyn{dot}vertexType").to_list()
        if name == TTREE:
            scores = of("BTagging_AntiKt4EMPFlow_201903AuxDyn.DL1r_pb").to_list()
            link = of("AnalysisJetsAuxDyn.btaggingLink.m_persIndex").to_list()
        else:
            scores = of("BTagging_AntiKt4EMPFlowAuxDyn:GN2v01_pb").to_list()
            link = of("AnalysisJetsAuxDyn:btaggingLink")["m_persIndex"].to_list()
        ghosts = jet.pop("GhostTrack").to_list()
        jet = {key: values.to_list() for key, values in jet.items()}
    pt, pb, rows = [], [], []
    for e, event_jets in enumerate(jet["pt"]):
        vertex = z[e][kind[e].index(1)]
        for j, one_pt in enumerate(event_jets):
            pt.append(one_pt / 1000)
            pb.append(scores[e][link[e][j]])
            for ghost in ghosts[e][j]:
                if ghost["m_persKey"] == INDET_KEY:
                    t = ghost["m_persIndex"]
                    d0, phi = track["d0"][e][t], track["phi"][e][t]
                    sign = np.sign(d0 * np.sin(jet["phi"][e][j] - phi))
                    z0 = (track["z0"][e][t] - vertex) * np.sin(track["theta"][e][t])
                    rows.append((len(pt) - 1, d0, z0, sign))
    assert len(rows) == n_tracks
    np.testing.assert_allclose(np.concatenate([part.pt_gev for part in parts]), pt, rtol=1e-6)
    found = np.exp(np.concatenate([part.log_score for part in parts]))
    assert found.shape == (n_jets, classes)
    np.testing.assert_allclose(found[:, 0], pb, rtol=1e-5, atol=1e-9)
    tracks = np.concatenate([part.tracks for part in parts])
    column = dict(zip(parts[0].track_fields, tracks.T, strict=True))
    expected = np.array(rows)
    np.testing.assert_array_equal(
        np.repeat(np.arange(n_jets), np.concatenate([part.n_tracks for part in parts])), expected[:, 0]
    )
    np.testing.assert_allclose(column["d0"], expected[:, 1], rtol=1e-6)
    np.testing.assert_allclose(column["z0SinTheta"], expected[:, 2], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(np.sign(column["lifetimeSignedD0Significance"]), expected[:, 3])


def test_published_b_jets_have_larger_scores_and_more_positive_tracks(shared_file):
    path = shared_file(f"published/{RNTUPLE}")
    (jets,) = read(card_for(path, scores={"tagger": "GN2v01"}), scores=True)
    best = jets.log_score.argmax(axis=1)
    hard = jets.pt_gev > 20
    assert (best == jets.flavour)[hard & (jets.flavour == 0)].mean() > 0.7
    assert (best == jets.flavour)[hard & (jets.flavour == 2)].mean() > 0.5
    significance = jets.tracks[:, jets.track_fields.index("lifetimeSignedD0Significance")]
    from_b = np.repeat(jets.flavour == 0, jets.n_tracks)
    assert (significance[from_b] > 3).mean() > 3 * (significance[from_b] < -3).mean()
