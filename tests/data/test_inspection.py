"""Inspection: what it says of a file is true, and the card that it guesses reads the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import uproot
import yaml

from selfcal.cli.app import main
from selfcal.data.guessed_fields import guessed_jet_fields
from selfcal.data.hdf5 import write_jets
from selfcal.data.jets import Jets

PUBLISHED = (
    "published/coffea_nano_dimuon.root",
    "published/coffea_nano_tt_v12.root",
    "published/coffea_pfnano.root",
    "published/puma_file1.h5",
    "published/skhep_nanoAOD_2015_CMS_Open_Data_ttbar.root",
    "published/skhep_uproot-issue-798.root",
    "published/skhep_uproot-physlite-rntuple_v1-0-0-0.root",
)
BENCHMARK = tuple(
    f"benchmark/{kind}_{region}.h5"
    for kind in ("sim", "data")
    for region in ("ttbar_emu", "w_charm", "dijet", "z_tautau", "ttbar_ljets")
)


@pytest.fixture
def jets(make_jets: Callable[..., Jets]) -> Jets:
    made = make_jets(6, jets=300)
    tracks = made.tracks.copy()
    column = made.track_fields.index
    tracks[:, column("d0")] = 0.02 * tracks[:, column("lifetimeSignedD0Significance")]
    return replace(made, tracks=tracks)


def inspected(path: Path, card: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["inspect", str(path), "--card", str(card), "--json"]) == 0, capsys.readouterr().err
    (document,) = json.loads(capsys.readouterr().out)["files"]
    assert isinstance(document, dict)
    return document


def test_a_native_file(tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]) -> None:
    write_jets(tmp_path / "sim_dijet.h5", jets, labels=True)
    found = inspected(tmp_path / "sim_dijet.h5", tmp_path / "card.yaml", capsys)
    assert found["jets"] == found["jets_read"] == 300
    assert list(found["flavours"].values()) == [int((jets.flavour == index).sum()) for index in range(4)]
    low, middle, high = (found["ranges"]["pt_gev"][index] for index in (0, 2, 4))
    expected = (jets.pt_gev.min(), np.median(jets.pt_gev), jets.pt_gev.max())
    assert (low, middle, high) == pytest.approx(expected)
    assert found["notes"] == found["findings"] == []
    card = yaml.safe_load((tmp_path / "card.yaml").read_text())
    assert (card["role"], card["region"], card["format"]) == ("simulation", "dijet", "ftag_hdf5")
    assert main(["validate", str(tmp_path / "card.yaml"), "-q"]) == 0


def test_unlabelled_jets_are_data_with_a_composition(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jets(tmp_path / "data_dijet.h5", jets, labels=False)
    found = inspected(tmp_path / "data_dijet.h5", tmp_path / "card.yaml", capsys)
    assert found["flavours"] is None
    assert found["card"]["role"] == "data"
    assert found["card"]["composition"] == {"relative_uncertainty": 0.25}
    assert main(["validate", str(tmp_path / "card.yaml"), "-q"]) == 0


def test_momenta_in_gev_are_seen(tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]) -> None:
    write_jets(tmp_path / "a.h5", replace(jets, pt_gev=jets.pt_gev / np.float32(1000)), labels=True)
    found = inspected(tmp_path / "a.h5", tmp_path / "card.yaml", capsys)
    assert found["card"]["units"] == {"momentum": "GeV"}
    assert "momenta that no jet has" in found["notes"][0]
    assert found["ranges"]["pt_gev"][2] == pytest.approx(float(np.median(jets.pt_gev)), rel=1e-5)


def test_what_the_guards_find_is_accepted_in_words_only(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    tracks = jets.tracks.copy()
    tracks[:, jets.track_fields.index("d0")] *= 0.1
    write_jets(tmp_path / "a.h5", replace(jets, tracks=tracks), labels=True)
    found = inspected(tmp_path / "a.h5", tmp_path / "card.yaml", capsys)
    assert found["card"]["accept"]["length_unit"].startswith("found by selfcal inspect, not looked into")
    assert any(note.startswith("LOOK INTO THIS: d0 uncertainty") for note in found["notes"])
    assert "LOOK INTO THIS" in (tmp_path / "card.yaml").read_text().partition("name:")[0]


def test_the_tagger_that_scores_most_jets_is_chosen(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    full = np.random.default_rng(1).dirichlet(np.ones(4), len(jets))
    few = np.where(np.arange(len(jets))[:, None] % 2 == 0, full, -1.0)
    broken = full * 0.5
    suffixes = ("pb", "pc", "pu", "ptau")
    fields = {
        f"{name}_{suffix}": values[:, index]
        for name, values in (("Full", full), ("Few", few), ("Broken", broken))
        for index, suffix in enumerate(suffixes)
    }
    write_jets(tmp_path / "a.h5", jets, labels=True, jet_fields=fields)
    found = inspected(tmp_path / "a.h5", tmp_path / "card.yaml", capsys)
    assert sorted(found["taggers"]) == ["Broken", "Few", "Full"]
    assert found["card"]["scores"] == {"tagger": "Full"}
    assert any("Broken cannot be used" in note for note in found["notes"])


def test_histograms_and_other_files_are_said_to_be_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with uproot.recreate(tmp_path / "h.root") as file:
        file["h"] = np.histogram(np.arange(10.0), bins=5)
    (tmp_path / "x.txt").write_text("no jets here")
    (tmp_path / "empty.h5").write_bytes(b"")
    for name, words in (("h.root", "holds histograms"), ("x.txt", "not a file"), ("empty.h5", "not a file")):
        assert main(["inspect", str(tmp_path / name)]) == 3
        assert words in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none.h5")]) == 3
    assert "file not found" in capsys.readouterr().err


def test_a_card_is_never_overwritten(tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    (tmp_path / "card.yaml").write_text("mine")
    assert main(["inspect", str(tmp_path / "a.h5"), "--card", str(tmp_path / "card.yaml")]) == 2
    assert (tmp_path / "card.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", [*PUBLISHED, *BENCHMARK])
def test_the_card_of_a_file_of_others_validates(
    name: str, shared_file: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected(shared_file(name), tmp_path / "card.yaml", capsys)
    assert main(["validate", str(tmp_path / "card.yaml"), "-q"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("folder", ["published/cms_jpcalib", "published/cms_frag"])
def test_published_histograms_are_said_to_be_histograms(
    folder: str, shared_file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(shared_file(folder).glob("*.root"))
    assert files
    for path in files:
        assert main(["inspect", str(path)]) == 3
        assert "histogram" in capsys.readouterr().err


def renamed(path: Path, target: Path, names: dict[str, str]) -> None:
    """A native file with other names of jet fields, and momenta in GeV."""
    with h5py.File(path) as file, h5py.File(target, "w") as other:
        jets = file["jets"][:]
        jets["pt_btagJes"] /= 1000
        jets.dtype.names = tuple(names.get(name, name) for name in jets.dtype.names)
        other["jets"], other["tracks"] = jets, file["tracks"][:]


def test_other_names_and_units_of_jet_fields_are_guessed(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jets(tmp_path / "native.h5", jets, labels=True)
    names = {"pt_btagJes": "jet_pt", "eta_btagJes": "jet_eta", "eventNumber": "event_id"}
    label = {"HadronConeExclTruthLabelID": "truth_label"}
    renamed(tmp_path / "native.h5", tmp_path / "sim_own.h5", names | label)
    card = tmp_path / "sim_own.yaml"
    found = inspected(tmp_path / "sim_own.h5", card, capsys)
    fields = {"pt": "jet_pt", "eta": "jet_eta", "label": "truth_label", "event": "event_id"}
    assert found["card"]["fields"] == fields
    assert found["card"]["units"] == {"momentum": "GeV"}
    assert found["card"]["role"] == "simulation"
    assert list(found["flavours"].values()) == [int((jets.flavour == index).sum()) for index in range(4)]
    assert "LOOK INTO THIS" in card.read_text()
    assert main(["validate", str(card)]) == 0, capsys.readouterr().err


def test_labels_that_are_none_of_ours_leave_a_card_of_data(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jets(tmp_path / "native.h5", jets, labels=True)
    names = {"HadronConeExclTruthLabelID": "other_flavour"}
    renamed(tmp_path / "native.h5", tmp_path / "own.h5", names)
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        table = file["jets"][:]
        table["other_flavour"] = 77
        file["jets"][:] = table
    found = inspected(tmp_path / "own.h5", tmp_path / "own.yaml", capsys)
    assert (found["card"]["role"], found["flavours"]) == ("data", None)
    assert any("no labels are read from other_flavour" in note for note in found["notes"])


def test_nothing_is_guessed_where_two_names_fit_or_the_usual_one_is_there() -> None:
    assert guessed_jet_fields(["jet_pt", "fat_pt", "truth_eta", "n_jet", "eventNumber", "event_id"]) == {}


def test_impact_parameters_under_unknown_names_are_asked_for(
    tmp_path: Path, jets: Jets, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jets(tmp_path / "sim_dijet.h5", jets, labels=True)
    with h5py.File(tmp_path / "sim_dijet.h5", "r+") as file:
        tracks = file["tracks"][:]
        tracks.dtype.names = tuple("ip" if name == "d0" else name for name in tracks.dtype.names)
        del file["tracks"]
        file["tracks"] = tracks
    (note,) = inspected(tmp_path / "sim_dijet.h5", tmp_path / "card.yaml", capsys)["notes"]
    assert "tracks without d0; name them under 'fields.tracks'" in note
