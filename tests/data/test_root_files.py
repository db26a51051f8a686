"""Damaged, truncated and foreign ROOT files; ranges of events."""

from __future__ import annotations

import shutil

import awkward as ak
import numpy as np
import pytest
import uproot

from selfcal.config.card import DataCard
from selfcal.data.jet_reader import Wanted
from selfcal.data.reading import count_jets, format_of, read_dataset, reader_of
from selfcal.data.root_files import EventBlock, events_if_any, open_events
from selfcal.errors import DataError

N_EVENTS = 500


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """500 events of i % 4 jets, as NanoAOD, in baskets of 100 events."""
    path = tmp_path_factory.mktemp("whole") / "events.root"
    counts = np.arange(N_EVENTS) % 4
    total = int(counts.sum())
    generator = np.random.default_rng(5)

    def jagged(values):
        return ak.unflatten(values.astype(np.float32), counts)

    jets = ak.zip(
        {
            "pt": jagged(np.arange(total) + 20.0),
            "eta": jagged(generator.uniform(-2, 2, total)),
            "phi": jagged(generator.uniform(-3, 3, total)),
            "hadronFlavour": jagged(generator.choice([0.0, 4.0, 5.0], total)),
        }
    )
    flat = {
        "run": np.ones(N_EVENTS, np.uint32),
        "luminosityBlock": np.ones(N_EVENTS, np.uint32),
        "event": np.arange(N_EVENTS, dtype=np.uint64),
    }
    with uproot.recreate(path) as file:
        file.mktree(
            "Events", {"Jet": jets.type.content} | {name: values.dtype for name, values in flat.items()}
        )
        for start in range(0, N_EVENTS, 100):
            part = slice(start, start + 100)
            file["Events"].extend({"Jet": jets[part]} | {name: values[part] for name, values in flat.items()})
    return path


def card_for(path, **more):
    given = {"name": "x", "role": "simulation", "region": "r", "format": "nanoaod", "files": (str(path),)}
    return DataCard.model_validate(given | more)


def read(path, chunk_jets=1000):
    parts = read_dataset(card_for(path), [path], Wanted(tracks=False), chunk_jets=chunk_jets)
    return np.concatenate([part.pt_gev for part in parts])


def test_the_format_is_told_by_content(whole):
    assert format_of(whole) == "nanoaod"


@pytest.mark.parametrize("chunk_jets", [20, 37, 10_000])
def test_every_jet_once_in_file_order(whole, chunk_jets):
    pt = read(whole, chunk_jets)
    np.testing.assert_allclose(pt, np.arange(len(pt)) + 20.0)
    assert len(pt) == count_jets(card_for(whole), whole) == 750


def test_ranges_hold_about_the_jets_asked_for(whole):
    with open_events(whole, ("Events",)) as table:
        ranges = list(table.ranges("Jet_pt", 75))
        assert ranges[0] == (0, 50)
        assert ranges[-1] == (450, 500)
        blocks = [EventBlock(table, start, stop, "Jet_pt") for start, stop in ranges]
        assert {block.n_jets for block in blocks} <= {73, 75, 77}
        np.testing.assert_array_equal(blocks[1].per_jet("event"), 50 + blocks[1].event_of_jet)
        np.testing.assert_array_equal(blocks[0].index_in_event[:6], [0, 0, 1, 0, 1, 2])
        assert table.count_jets("nJet", events_at_a_time=33) == table.count_jets("Jet_pt", 33) == 750


@pytest.mark.fault(4, "truncated ROOT files without a digest in the card")
def test_a_truncated_file_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    path = tmp_path / "cut.root"
    fractions = np.linspace(0.05, 0.98, 25)
    for length in [4, 60, 100, 300, *(int(f * len(content)) for f in fractions)]:
        path.write_bytes(content[:length])
        for action in (read, lambda p: reader_of("nanoaod").recognises(p), reader_of("nanoaod").contents):
            with pytest.raises(DataError) as caught:
                action(path)
            assert str(path) in (caught.value.where or "")
    for length in (0, 3):
        path.write_bytes(content[:length])
        assert not reader_of("nanoaod").recognises(path)
        with pytest.raises(DataError):
            read(path)


def test_a_flipped_bit_never_gives_another_error(whole, tmp_path):
    """Either the damage is met, or it lies where nothing is read: then the SHA-256 of the card tells."""
    content = whole.read_bytes()
    path = tmp_path / "flipped.root"
    generator = np.random.default_rng(11)
    places = np.concatenate([np.arange(8), generator.integers(0, len(content), 150)])
    met = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            read(path)
        except DataError:
            met += 1
    assert met > 0.2 * len(places)


def test_a_flipped_bit_in_a_basket_of_momenta_is_met(whole, tmp_path):
    """Compressed baskets carry a checksum."""
    with uproot.open(whole) as file:
        branch = file["Events"]["Jet_pt"]
        places = [int(branch.member("fBasketSeek")[i]) for i in range(branch.num_baskets)]
    content = bytearray(whole.read_bytes())
    content[places[2] + 200] ^= 8
    path = tmp_path / "basket.root"
    path.write_bytes(content)
    assert len(read(path.with_name(shutil.copy(whole, tmp_path / "fine.root").name))) == 750
    with pytest.raises(DataError, match="cannot read column Jet_pt"):
        read(path)


def test_histogram_files_are_said_to_be_histograms(tmp_path):
    path = tmp_path / "histograms.root"
    with uproot.recreate(path) as file:
        file["data/first"] = np.histogram([1.0, 2.0], bins=3)
        file["second"] = np.histogram([1.0, 2.0], bins=3)
    for name in ("physlite", "nanoaod", "pfnano"):
        reader = reader_of(name)
        assert not reader.recognises(path)
        with pytest.raises(DataError, match=r"holds 2 histograms and no jets \(data/first, second"):
            reader.contents(path)
    with pytest.raises(DataError, match="holds histograms and no jets"):
        format_of(path)


@pytest.mark.parametrize(
    "name",
    ["cms_jpcalib/calibeHistoWrite_MC2022_NANO130X_v2.root", "cms_frag/bfragweights_vs_pt.root"],
)
def test_published_histogram_files_are_said_to_be_histograms(shared_file, name):
    with pytest.raises(DataError, match="histograms and no jets"):
        reader_of("nanoaod").contents(shared_file(f"published/{name}"))


def test_other_files_are_not_recognised(tmp_path):
    trees = tmp_path / "trees.root"
    with uproot.recreate(trees) as file:
        file.mktree("Ntuple", {"x": np.int64})
        file["Ntuple"].extend({"x": np.arange(3)})
    with pytest.raises(DataError, match="has no Events") as caught:
        reader_of("nanoaod").contents(trees)
    assert "Ntuple (TTree)" in (caught.value.fix or "")
    text = tmp_path / "notes.root"
    text.write_text("no ROOT file at all")
    absent = tmp_path / "absent.root"
    for name in ("physlite", "nanoaod", "pfnano"):
        assert not reader_of(name).recognises(trees)
        assert not reader_of(name).recognises(text)
        with pytest.raises(DataError, match="cannot read the file as ROOT"):
            reader_of(name).contents(text)
        with pytest.raises(DataError, match="file not found"):
            reader_of(name).recognises(absent)
    with pytest.raises(DataError, match="not a file with jets"):
        format_of(trees)
    with events_if_any(trees, ("Ntuple",)) as table:
        assert table is not None
        assert table.columns == ("x",)
        with pytest.raises(DataError, match="lacks the field"):
            table.read("y")
