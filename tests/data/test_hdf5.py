"""The native file: round trips, what it must survive, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from selfcal.data.closure_truth import read_closure_truth
from selfcal.data.hdf5 import TRACK_SLOTS, write_jets
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jets import TRACK_FIELDS, Jets
from selfcal.errors import DataError

MakeJets = Callable[..., Jets]
ARRAYS = ("eta", "flavour", "weight", "run", "event", "jet_index", "track_offsets", "tracks", "track_origin")


@pytest.fixture
def jets(make_jets: MakeJets) -> Jets:
    return make_jets([3, 0, 12, 1, 40])


def rewritten(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace one dataset by a changed one."""
    with h5py.File(path, "r+") as file:
        table = file[name][:]
        del file[name]
        file.create_dataset(name, data=change(table))


def without(*fields: str) -> Callable[[np.ndarray], np.ndarray]:
    def change(table: np.ndarray) -> np.ndarray:
        kept = [name for name in table.dtype.names if name not in fields]
        smaller = np.zeros(table.shape, dtype=[(name, table.dtype[name]) for name in kept])
        for name in kept:
            smaller[name] = table[name]
        return smaller

    return change


def test_round_trip(tmp_path: Path, jets: Jets) -> None:
    assert write_jets(tmp_path / "a.h5", jets, labels=True) == 0
    back = read_jets(tmp_path / "a.h5", jets.dataset)
    np.testing.assert_allclose(back.pt_gev, jets.pt_gev, rtol=3e-7)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(jets, name), err_msg=name)
    np.testing.assert_array_equal(back.track_vertex, jets.track_vertex)
    assert back.track_fields == TRACK_FIELDS


def test_layout_is_that_of_atlas(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True, attributes={"region": "toy"})
    with h5py.File(tmp_path / "a.h5") as file:
        table, tracks = file["jets"], file["tracks"]
        assert tracks.shape == (5, 40)
        assert tracks.fletcher32
        assert list(table.attrs["flavour_label"]) == ["bjets", "cjets", "ujets", "taujets"]
        np.testing.assert_allclose(table["pt_btagJes"], jets.pt_gev * 1000, rtol=1e-6)
        cone = np.array([5, 4, 0, 15])[jets.flavour]
        np.testing.assert_array_equal(table["HadronConeExclTruthLabelID"], cone)
        np.testing.assert_array_equal(tracks["valid"].sum(axis=1), table["n_tracks"])
        assert (tracks["ftagTruthOriginLabel"][~tracks["valid"]] == -1).all()
        assert file.attrs["region"] == "toy"
        assert file.attrs["tracks_dropped"] == 0


def test_more_than_forty_tracks_are_counted(tmp_path: Path, make_jets: MakeJets) -> None:
    jets = make_jets([2, 47, 5])
    assert write_jets(tmp_path / "a.h5", jets, labels=True) == 7
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["tracks_dropped"] == 7
        assert file["jets"]["n_tracks"].tolist() == [2, 47, 5]
    back = read_jets(tmp_path / "a.h5", "toy")
    assert back.n_tracks.tolist() == [2, TRACK_SLOTS, 5]
    column = TRACK_FIELDS.index("lifetimeSignedD0Significance")
    significance = np.abs(jets.tracks[2:49, column])
    kept = np.abs(back.tracks[2:42, column])
    np.testing.assert_array_equal(np.sort(kept), np.sort(significance)[7:])
    np.testing.assert_array_equal(kept, significance[significance >= kept.min()])


def test_pseudo_data_hide_their_truth(tmp_path: Path, jets: Jets) -> None:
    unlabelled = replace(jets, flavour=np.full(5, -1, dtype=np.int8))
    write_jets(tmp_path / "d.h5", unlabelled, labels=False, closure_truth=jets.flavour)
    back = read_jets(tmp_path / "d.h5", "d")
    assert not back.labelled
    assert (back.flavour == -1).all()
    assert (back.track_origin == -1).all()
    assert (back.track_vertex == -2).all()
    np.testing.assert_array_equal(read_closure_truth(tmp_path / "d.h5"), jets.flavour)


def test_reading_does_not_touch_the_hidden_truth(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "d.h5", jets, labels=False, closure_truth=jets.flavour)
    with h5py.File(tmp_path / "d.h5", "r+") as file:
        del file["closure_truth"]
    assert len(read_jets(tmp_path / "d.h5", "d")) == 5
    with pytest.raises(DataError, match="closure_truth"):
        read_closure_truth(tmp_path / "d.h5")


def test_labels_and_tracks_can_be_left_out(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    assert (read_jets(tmp_path / "a.h5", "a", with_labels=False).flavour == -1).all()
    bare = read_jets(tmp_path / "a.h5", "a", with_tracks=False)
    assert bare.track_fields == ()
    np.testing.assert_array_equal(bare.flavour, jets.flavour)
    assert bare.n_tracks.tolist() == [0] * 5


def test_valid_need_not_be_a_prefix(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    order = np.random.default_rng(2).permutation(TRACK_SLOTS)
    rewritten(tmp_path / "a.h5", "tracks", lambda table: table[:, order])
    back = read_jets(tmp_path / "a.h5", "a")
    np.testing.assert_array_equal(back.track_offsets, jets.track_offsets)
    for i in range(5):
        rows = slice(jets.track_offsets[i], jets.track_offsets[i + 1])
        np.testing.assert_array_equal(np.sort(back.tracks[rows], axis=0), np.sort(jets.tracks[rows], axis=0))


def test_absent_fields_have_stated_defaults(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    rewritten(tmp_path / "a.h5", "jets", without("runNumber", "mcEventWeight", "jet_rank"))
    rewritten(tmp_path / "a.h5", "tracks", without("phiUncertainty", "numberOfSCTSharedHits"))
    back = read_jets(tmp_path / "a.h5", "a")
    assert back.run.tolist() == [0] * 5
    assert back.weight.tolist() == [1.0] * 5
    assert back.jet_index.tolist() == [0, 1, 0, 1, 0]
    expected = tuple(f for f in TRACK_FIELDS if f not in ("phiUncertainty", "numberOfSCTSharedHits"))
    assert back.track_fields == expected
    np.testing.assert_array_equal(back.tracks, jets.tracks[:, [TRACK_FIELDS.index(f) for f in expected]])


TYPES = {
    "text": ("S12", lambda values: values.astype("S12")),
    "pairs": (("<f4", (2,)), lambda values: np.stack([values, values], axis=-1)),
    "complex numbers": ("<c16", lambda values: values),
    "times": ("<i8", lambda values: values.astype("<i8")),
}
"""Other types in which a field may be stored; the last is one that may be."""


@pytest.mark.fault(6, "every field of HDF5 missing, renamed, and of another type")
def test_every_field_of_another_type(tmp_path: Path, jets: Jets, attempts) -> None:
    path = tmp_path / "a.h5"
    write_jets(path, jets, labels=True)
    with h5py.File(path) as file:
        fields = {dataset: set(file[dataset].dtype.names) - {"n_tracks"} for dataset in ("jets", "tracks")}
    for dataset, names in fields.items():
        for name in sorted(names):  # n_tracks is for others: the program counts
            for what, (kind, convert) in TYPES.items():
                with attempts(f"{dataset}/{name} holds {what}"):

                    def changed(table: np.ndarray) -> np.ndarray:
                        types = [(n, kind if n == name else table.dtype[n]) for n in table.dtype.names]  # noqa: B023
                        new = np.zeros(table.shape, types)
                        for n in table.dtype.names:
                            new[n] = convert(table[n]) if n == name else table[n]  # noqa: B023
                        return new

                    write_jets(path, jets, labels=True)
                    rewritten(path, dataset, changed)
                    if what == "times":
                        read_jets(path, "a")
                    else:
                        with pytest.raises(DataError, match=f"'{name}' holds"):
                            read_jets(path, "a")
            with attempts(f"{dataset}/{name} renamed"):

                def renamed(table: np.ndarray) -> np.ndarray:
                    table.dtype.names = tuple(f"{n}X" if n == name else n for n in table.dtype.names)  # noqa: B023
                    return table

                write_jets(path, jets, labels=True)
                rewritten(path, dataset, renamed)
                if name in ("pt_btagJes", "eta_btagJes", "valid"):
                    with pytest.raises(DataError, match=f"perhaps {name}X"):
                        read_jets(path, "a")
                else:  # a stated default; a track field is left out, and training says which it has
                    assert name not in read_jets(path, "a").track_fields


def test_older_names_of_the_significances(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    old = {
        "lifetimeSignedD0Significance": "IP3D_signed_d0_significance",
        "lifetimeSignedZ0SinThetaSignificance": "IP3D_signed_z0_significance",
    }

    def renamed(table: np.ndarray) -> np.ndarray:
        table.dtype.names = tuple(old.get(name, name) for name in table.dtype.names)
        return table

    rewritten(tmp_path / "a.h5", "tracks", renamed)
    back = read_jets(tmp_path / "a.h5", "a")
    assert back.track_fields == TRACK_FIELDS
    np.testing.assert_array_equal(back.tracks, jets.tracks)


def test_no_jets_at_all(tmp_path: Path, make_jets: MakeJets) -> None:
    none = make_jets([2]).select(np.array([False]))
    write_jets(tmp_path / "a.h5", none, labels=True)
    back = read_jets(tmp_path / "a.h5", "a")
    assert len(back) == 0
    assert back.tracks.shape == (0, len(TRACK_FIELDS))


def test_not_finite_values_are_counted_per_field(tmp_path: Path, jets: Jets) -> None:
    jets.tracks[[0, 4], TRACK_FIELDS.index("d0")] = np.nan
    jets.tracks[2, TRACK_FIELDS.index("qOverP")] = np.inf
    write_jets(tmp_path / "a.h5", jets, labels=True)
    with pytest.raises(DataError, match=r"d0 \(2\), qOverP \(1\)"):
        read_jets(tmp_path / "a.h5", "a")


def test_padding_may_hold_anything(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)

    def poisoned(table: np.ndarray) -> np.ndarray:
        table["d0"][~table["valid"]] = np.nan
        return table

    rewritten(tmp_path / "a.h5", "tracks", poisoned)
    np.testing.assert_array_equal(read_jets(tmp_path / "a.h5", "a").tracks, jets.tracks)


def test_missing_file_dataset_and_field(tmp_path: Path, jets: Jets) -> None:
    with pytest.raises(DataError, match="file not found"):
        read_jets(tmp_path / "none.h5", "a")
    write_jets(tmp_path / "a.h5", jets, labels=True)
    rewritten(tmp_path / "a.h5", "tracks", without("valid"))
    with pytest.raises(DataError, match="valid"):
        read_jets(tmp_path / "a.h5", "a")
    rewritten(tmp_path / "a.h5", "jets", without("pt_btagJes"))
    with pytest.raises(DataError, match="pt_btagJes"):
        read_jets(tmp_path / "a.h5", "a", with_tracks=False)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["jets"]
    with pytest.raises(DataError, match="'jets'"):
        read_jets(tmp_path / "a.h5", "a")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path: Path, make_jets: MakeJets, kept: float) -> None:
    path = tmp_path / "a.h5"
    write_jets(path, make_jets(8, jets=300), labels=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match="HDF5"):
        read_jets(path, "a")


@pytest.mark.fault(4, "a damaged block of HDF5")
def test_damaged_block_is_found_by_its_checksum(tmp_path: Path, make_jets: MakeJets) -> None:
    path = tmp_path / "a.h5"
    write_jets(path, make_jets(8, jets=300), labels=True)
    with h5py.File(path) as file:
        start = file["tracks"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        read_jets(path, "a")


def test_unknown_label(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)

    def strange(table: np.ndarray) -> np.ndarray:
        table["HadronConeExclTruthLabelID"][1] = 7
        return table

    rewritten(tmp_path / "a.h5", "jets", strange)
    with pytest.raises(DataError, match="7"):
        read_jets(tmp_path / "a.h5", "a")


def test_writing_refuses_what_does_not_fit(tmp_path: Path, jets: Jets) -> None:
    unlabelled = replace(jets, flavour=np.full(5, -1, dtype=np.int8))
    with pytest.raises(DataError, match="labels"):
        write_jets(tmp_path / "a.h5", unlabelled, labels=True)
    with pytest.raises(DataError, match="3 entries for 5 jets"):
        write_jets(tmp_path / "a.h5", jets, labels=True, jet_fields={"mass": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_true_pt_is_read_where_it_is_known_and_only_with_labels(tmp_path, make_jets):
    jets = make_jets([1, 2, 0])
    true_mev = np.array([50e3, 0.0, 20.5e3], np.float32)  # 0: no true jet
    write_jets(tmp_path / "a.h5", jets, labels=True, jet_fields={"ptTruth": true_mev})
    found = read_jets(tmp_path / "a.h5", "a")
    np.testing.assert_allclose(found.truth_pt_gev, [50.0, np.nan, 20.5], rtol=1e-6)
    np.testing.assert_allclose(found.select(np.array([2])).truth_pt_gev, [20.5], rtol=1e-6)
    assert read_jets(tmp_path / "a.h5", "a", with_labels=False).truth_pt_gev is None
    write_jets(tmp_path / "b.h5", jets, labels=True)
    assert read_jets(tmp_path / "b.h5", "b").truth_pt_gev is None
