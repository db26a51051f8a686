"""Data cards and files with one thing wrong each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from selfcal.data.hdf5 import write_jets
from selfcal.data.hdf5_reader import read_jets


@pytest.fixture
def rewrite(project):
    """Change the jets of the simulation."""
    path = project / "files" / "sim.h5"

    def change(**values):
        jets = read_jets(path, "sim")
        write_jets(
            path,
            replace(jets, **{name: new(getattr(jets, name)) for name, new in values.items()}),
            labels=True,
        )

    return change


def replaced(index, value):
    def change(values):
        values = values.copy()
        values[index] = value
        return values

    return change


def test_counts_of_a_good_dataset(selfcal, project):
    answer = selfcal("validate", "run.yaml", "-q")
    assert answer.code == 0
    report = json.loads((project / "runs/small/results/validation.json").read_text())
    for row in report["datasets"]:
        jets = read_jets(project / "files" / f"{row['name']}.h5", row["name"])
        inside = (jets.pt_gev >= 20) & (jets.pt_gev < 250) & (abs(jets.eta) < 2.5)
        assert row["selected"] == inside.sum() == sum(row["folds"].values())
        assert row["tracks"] == len(jets.tracks)
        if row["role"] == "data":
            assert row["flavours"] is None
        else:
            assert row["flavours"] == {
                name: int((jets.flavour[inside] == i).sum())
                for i, name in enumerate(("b", "c", "light", "tau"))
            }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pt_gev": lambda pt: pt / 1000}, "The file is probably in GeV: say 'units: {momentum: GeV}'"),
        ({"pt_gev": replaced(17, 3e4)}, "1 jets with more pT than 7000 GeV"),
        ({"pt_gev": replaced(slice(2, 5), np.nan)}, "pt_btagJes (3)"),
        (
            {"event": replaced(5, 0), "jet_index": replaced(5, 0)},
            "1 duplicate jets by (run, event, jet index), as jets 0 and 5 of the dataset",
        ),
        ({"event": lambda event: event * 0}, "no selected jet in the"),
    ],
)
def test_one_thing_wrong_with_the_jets(selfcal, project, rewrite, change, message):
    if message.startswith("no selected"):
        change = {**change, "jet_index": lambda index: np.arange(len(index), dtype=np.int32)}
    rewrite(**change)
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 3
    assert message in answer.err
    assert not (project / "runs/small/results").exists()


@pytest.mark.fault(6, "missing fields and unknown labels")
def test_unknown_label_and_missing_field(selfcal, project):
    with h5py.File(project / "files/sim.h5", "a") as file:
        table = file["jets"][:]
        table["HadronConeExclTruthLabelID"][3] = 7
        file["jets"][...] = table
    assert "unknown truth label(s) [7]" in selfcal("validate", "run.yaml").err
    with h5py.File(project / "files/sim.h5", "a") as file:
        table = file["jets"][:][["eta_btagJes"]]
        del file["jets"]
        file["jets"] = table
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 3
    assert "pt_btagJes" in answer.err


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "folder of other datasets"])
def test_damaged_files_are_data_errors(selfcal, project, damage):
    path = project / "files/sim.h5"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("these are not jets")
    else:
        with h5py.File(path, "w") as file:
            file["other"] = [1, 2]
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 3
    assert "sim.h5" in answer.err
    assert "Traceback" not in answer.err


def test_checksums_of_the_card(selfcal, project):
    card = project / "cards/sim.yaml"
    digest = hashlib.sha256((project / "files/sim.h5").read_bytes()).hexdigest()
    original = card.read_text()
    card.write_text(original + f"sha256: {{sim.h5: {digest}}}\n")
    assert selfcal("validate", "run.yaml", "-q").code == 0
    card.write_text(original + f"sha256: {{sim.h5: {'ab' * 32}}}\n")
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 3
    assert f"SHA-256 is {digest}, the card says {'ab' * 32}" in answer.err
    card.write_text(original + f"sha256: {{other.h5: {digest}}}\n")
    assert "other.h5: the card gives a SHA-256, but no such file" in selfcal("validate", "run.yaml").err


def test_datasets_with_other_track_fields_do_not_go_together(selfcal, project, make_jets):
    jets = make_jets(4, jets=300, dataset="data")
    fewer = replace(jets, tracks=jets.tracks[:, 1:], track_fields=jets.track_fields[1:])
    write_jets(project / "files/data.h5", fewer, labels=False)
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 3
    assert "data and sim differ in the track field(s) d0" in answer.err


def test_cards_on_their_own(selfcal, project):
    (project / "cards/made.yaml").write_text(
        "name: made\nrole: simulation\nregion: r\ngenerate: {process: dijet, jets: 5}\n"
    )
    for name in ("sim", "data"):
        text = (project / f"cards/{name}.yaml").read_text()
        (project / f"cards/{name}.yaml").write_text(text.replace(f"[{name}.h5]", f"[../files/{name}.h5]"))
    before = sorted(project.rglob("*"))
    answer = selfcal("validate", "cards/sim.yaml", "cards/made.yaml", "cards/data.yaml", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["datasets"]
    assert [row["checked_files"] for row in rows] == [True, False, True]
    assert rows[0]["jets"] == 300
    assert sorted(project.rglob("*")) == before
    answer = selfcal("validate", "cards/sim.yaml", "run.yaml")
    assert answer.code == 2
    (project / "cards/sim.yaml").write_text("name: sim\nrole: simulatio\nregion: r\nfiles: [x]\n")
    answer = selfcal("validate", "cards/sim.yaml")
    assert answer.code == 2
    assert "cards/sim.yaml, line 2, key 'role'" in answer.err
