"""Scores written back into files: the same numbers, the rest untouched, and other programs read them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from selfcal.cli.app import main
from selfcal.data.flavours import FLAVOURS
from selfcal.data.hdf5 import write_jets
from selfcal.data.hdf5_reader import read_jets
from selfcal.data.jets import Jets
from selfcal.data.score_values import log_scores
from selfcal.tagger.bundle import TaggerBundle, build_tagger, save_bundle
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.scoring import score_jets
from selfcal.tagger.working_points import thresholds

FIELDS = ("SelfCal_pb", "SelfCal_pc", "SelfCal_pu", "SelfCal_ptau")


@pytest.fixture
def bundle(setup: Callable[[], Any]) -> TaggerBundle:
    made = setup()
    made.run()
    result: TaggerBundle = made.bundle
    return result


@pytest.fixture
def run(tmp_path: Path, bundle: TaggerBundle) -> Path:
    save_bundle(bundle, tmp_path / "run" / "checkpoints" / "tagger_final")
    return tmp_path / "run"


@pytest.fixture
def source(tmp_path: Path, make_jets: Callable[..., Jets]) -> Path:
    jets = make_jets(5, jets=3000, seed=9, dataset="x")
    write_jets(tmp_path / "x.h5", jets, labels=True, closure_truth=jets.flavour, attributes={"note": "kept"})
    return tmp_path / "x.h5"


def scores_in(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.column_stack([file["jets"][name] for name in FIELDS])


def test_a_copy_is_the_file_with_four_more_fields(run: Path, source: Path, bundle: TaggerBundle) -> None:
    assert main(["predict", str(run), str(source), "-q"]) == 0
    copy = run / "predictions" / "x.h5"
    jets = read_jets(source, "x")
    expected = score_jets(bundle, jets).log_probability
    stored = scores_in(copy)
    # What is read back is the score to the last bit: fits of maps magnify any difference.
    np.testing.assert_array_equal(log_scores(stored, FLAVOURS, "copy"), expected)
    np.testing.assert_allclose(stored.sum(axis=1), 1.0, rtol=2e-7)
    with h5py.File(source) as old, h5py.File(copy) as new:
        assert set(old) == set(new) == {"jets", "tracks", "closure_truth"}
        assert dict(new.attrs) == dict(old.attrs)
        assert list(new["jets"].attrs["flavour_label"]) == list(old["jets"].attrs["flavour_label"])
        assert set(new["jets"].dtype.names) - set(old["jets"].dtype.names) == {*FIELDS, "pt", "eta"}
        np.testing.assert_array_equal(new["jets"]["pt"], old["jets"]["pt_btagJes"])
        for name in old["jets"].dtype.names:
            np.testing.assert_array_equal(new["jets"][name], old["jets"][name])
        for name in ("tracks", "closure_truth"):
            np.testing.assert_array_equal(new[name][:], old[name][:])


def test_a_friend_joins_by_keys(run: Path, source: Path, tmp_path: Path) -> None:
    assert main(["predict", str(run), str(source), "--friend", "-q", "-o", str(tmp_path / "f")]) == 0
    assert main(["predict", str(run), str(source), "-q", "-o", str(tmp_path / "c")]) == 0
    friend = tmp_path / "f" / "x.friend.h5"
    np.testing.assert_array_equal(scores_in(friend), scores_in(tmp_path / "c" / "x.h5"))
    with h5py.File(friend) as one, h5py.File(source) as other:
        for name in ("runNumber", "eventNumber", "jet_rank", "eta_btagJes"):
            np.testing.assert_array_equal(one["jets"][name], other["jets"][name])


@pytest.mark.parametrize(("unit", "momentum_gev"), [("MeV", 1e-3), ("GeV", 1.0)])
def test_a_regressed_pt_is_written_in_the_unit_of_the_file(
    unit: str, momentum_gev: float, source: Path, bundle: TaggerBundle, tmp_path: Path
) -> None:
    """A file in GeV, read with a card that says so, has the same momenta; a friend is in MeV always."""
    config = bundle.config.model_copy(update={"regress_pt": True})
    model = build_tagger(config, bundle.inputs, bundle.normalisation, seed=4)
    model.eval()
    regressing = TaggerBundle(config, bundle.inputs, bundle.normalisation, model)
    save_bundle(regressing, tmp_path / "run" / "checkpoints" / "tagger_final")
    with h5py.File(source, "r+") as file:
        jets = file["jets"][:]
        jets["pt_btagJes"] *= 1e-3 / momentum_gev
        file["jets"][...] = jets
        tracks = file["tracks"][:]
        for name in ("qOverP", "qOverPUncertainty"):
            tracks[name] *= momentum_gev / 1e-3
        file["tracks"][...] = tracks
    card = tmp_path / "card.yaml"
    card.write_text(f"name: x\nrole: simulation\nregion: any\nfiles: [x.h5]\nunits: {{momentum: {unit}}}\n")
    words = ["predict", str(tmp_path / "run"), str(source), "--card", str(card), "-q"]
    assert main([*words, "-o", str(tmp_path / "c")]) == 0
    assert main([*words, "--friend", "-o", str(tmp_path / "f")]) == 0
    with h5py.File(tmp_path / "c" / "x.h5") as copy, h5py.File(tmp_path / "f" / "x.friend.h5") as friend:
        in_file = read_jets(source, "x") if unit == "MeV" else None
        ratio = copy["jets"]["SelfCal_pt"] / copy["jets"]["pt_btagJes"]
        if in_file is not None:
            np.testing.assert_allclose(ratio, np.exp(score_jets(regressing, in_file).log_response), rtol=1e-6)
        np.testing.assert_allclose(
            friend["jets"]["SelfCal_pt"] / friend["jets"]["pt_btagJes"], ratio, rtol=1e-5
        )
        assert 1e4 < np.median(friend["jets"]["SelfCal_pt"]) < 1e6
        assert 1e4 < np.median(copy["jets"]["SelfCal_pt"]) * momentum_gev / 1e-3 < 1e6
        assert np.ptp(ratio) > 1e-3


def test_nothing_is_overwritten_and_nothing_half_written(
    run: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert main(["predict", str(run), str(source), "--dry-run", "--json", "-o", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["jets"] == 3000
    assert not out.exists()
    assert main(["predict", str(run), str(source), "-q", "-o", str(out)]) == 0
    assert main(["predict", str(run), str(source), "-q", "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    scored = out / "x.h5"
    assert main(["predict", str(run), str(scored), "-q", "-o", str(tmp_path / "again")]) == 3
    assert "SelfCal_pb" in capsys.readouterr().err
    assert not list((tmp_path / "again").glob("*"))
    assert main(["predict", str(tmp_path), str(source), "-q"]) == 3
    assert "no tagger" in capsys.readouterr().err


def test_a_missing_input_is_named(run: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(source, "r+") as file:
        tracks = file["tracks"][:]
        del file["tracks"]
        file["tracks"] = tracks[[name for name in tracks.dtype.names if name != "d0"]]
    assert main(["predict", str(run), str(source), "-q"]) == 3
    assert "d0" in capsys.readouterr().err
    assert not list((run / "predictions").glob("*"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_working_point_tool_of_atlas_gives_our_thresholds(
    run: Path, source: Path, bundle: TaggerBundle, tmp_path: Path
) -> None:
    tool = pytest.importorskip("ftag.working_points", reason="needs atlas-ftag-tools (extra 'puma')")
    assert main(["predict", str(run), str(source), "-q", "-o", str(tmp_path / "c")]) == 0
    scored = tmp_path / "c" / "x.h5"
    with contextlib.redirect_stdout(io.StringIO()):
        points = tool.main(
            ["--ttbar", str(scored), "--tagger", "SelfCal", "--fc", "0.2", "--fu", "0.79", "--ftau", "0.01",
             "--effs", "60", "77", "--num_jets", "3000"]
        )  # fmt: skip
    jets = read_jets(source, "x")
    discriminant = discriminant_b(score_jets(bundle, jets).log_probability, 0.2, 0.01)
    signal = discriminant[jets.flavour == 0]
    expected = thresholds(signal, np.ones(len(signal)), [0.60, 0.77])
    found = [points["SelfCal"][point]["cut_value"] for point in ("60", "77")]
    # The tool reads half-precision scores, rounds to three digits, and takes a place between two jets where
    # ours is the lower one.
    np.testing.assert_allclose(found, np.percentile(signal, [40, 23]), atol=5e-3)
    for cut, ours in zip(found, expected, strict=True):
        assert ((signal > ours) & (signal < cut - 5e-3)).sum() == 0


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_puma_reads_the_scores(run: Path, source: Path, tmp_path: Path) -> None:
    hlplots = pytest.importorskip("puma.hlplots", reason="needs puma-hep (extra 'puma')")
    assert main(["predict", str(run), str(source), "-q", "-o", str(tmp_path / "c")]) == 0
    scored = tmp_path / "c" / "x.h5"
    results = hlplots.Results(signal="bjets", sample="selfcal", output_dir=tmp_path / "plots")
    tagger = hlplots.Tagger(name="SelfCal", fxs={"fc": 0.2, "fu": 0.79, "ftau": 0.01}, aux_tasks=[])
    results.load_taggers_from_file([tagger], scored, num_jets=3000)
    (loaded,) = results.taggers.values()
    read = loaded.scores
    found, written = np.column_stack([read[name] for name in FIELDS]), scores_in(scored)
    by_first = [rows[np.argsort(rows[:, 0])] for rows in (found, written)]  # puma shuffles the jets
    np.testing.assert_allclose(*by_first, rtol=1e-6)
