"""Guards: each refuses what it is for, says why, lets the right data pass, and can be overridden by name."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.run import DataConfig
from selfcal.data.guards import DatasetGuard, jet_keys, overlap_problems
from selfcal.data.hdf5 import write_jets
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import Jets
from selfcal.data.reading import read_dataset
from selfcal.data.validation import render_report, scarce_flavours, validate_dataset
from selfcal.errors import DataError

SELECTION = DataConfig(cards=("any",))
REASON = "checked by eye against the detector's own monitoring"


@pytest.fixture
def jets(make_jets: Callable[..., Jets]) -> Jets:
    """Two hundred jets whose tracks have d0 uncertainties of 20 micrometres."""
    made = make_jets(6, jets=200)
    column = made.track_fields.index
    tracks = made.tracks.copy()
    tracks[:, column("d0")] = 0.02 * tracks[:, column("lifetimeSignedD0Significance")]
    return replace(made, tracks=tracks)


def card(**keys: Any) -> DataCard:
    return DataCard.model_validate(
        {"name": "sim", "role": "simulation", "region": "ttbar", "files": ["sim.h5"], **keys}
    )


def check(folder: Path, jets: Jets, **keys: Any) -> dict[str, Any]:
    write_jets(folder / "sim.h5", jets, labels=True)
    one = card(**keys)
    return validate_dataset(one, [folder / "sim.h5"], folder, SELECTION, Wanted()).report


def scaled(jets: Jets, factors: dict[str, float]) -> Jets:
    """Tracks with some columns in another unit."""
    tracks = jets.tracks.copy()
    for name, factor in factors.items():
        tracks[:, jets.track_fields.index(name)] *= factor
    return replace(jets, tracks=tracks)


def test_good_jets_pass_with_nothing_accepted(tmp_path: Path, jets: Jets) -> None:
    report = check(tmp_path, jets)
    assert report["accepted"] == []
    assert report["units"] == {"momentum": "MeV", "length": "mm", "angle": "rad"}
    assert report["quantiles"]["d0_sigma"] == pytest.approx((0.02, 0.02, 0.02), rel=1e-5)
    assert report["effective_size"] == report["selected"]


WRONG_UNITS: dict[str, tuple[dict[str, float], float, dict[str, str]]] = {
    "momentum_unit": ({}, 1e-3, {"momentum": "GeV"}),
    "length_unit": ({"d0": 0.1, "z0SinTheta": 0.1}, 1.0, {"length": "cm"}),
    "angle_unit": (
        {"dphi": 180 / np.pi, "phiUncertainty": 180 / np.pi, "thetaUncertainty": 180 / np.pi},
        1.0,
        {"angle": "deg"},
    ),
}


@pytest.mark.fault(6, "momenta, lengths and angles in a wrong unit")
@pytest.mark.parametrize("guard", WRONG_UNITS)
def test_a_wrong_unit_is_refused_and_the_right_one_mends_it(tmp_path: Path, jets: Jets, guard: str) -> None:
    factors, momentum, units = WRONG_UNITS[guard]
    wrong = scaled(replace(jets, pt_gev=jets.pt_gev * np.float32(momentum)), factors)
    with pytest.raises(DataError, match=r"1/50/99 % quantiles .* expected") as caught:
        check(tmp_path, wrong)
    assert f"accept: {{{guard}: <reason>}}" in str(caught.value)
    if guard == "momentum_unit":
        wrong = scaled(wrong, {"qOverP": 1e3, "qOverPUncertainty": 1e3})  # 1/GeV as the card now says
    mended = check(tmp_path, wrong, units=units)
    assert mended["accepted"] == []
    (back,) = read_dataset(card(units=units), [tmp_path / "sim.h5"], Wanted())
    np.testing.assert_allclose(back.pt_gev, jets.pt_gev, rtol=1e-6)
    np.testing.assert_allclose(back.tracks, jets.tracks, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("guard", WRONG_UNITS)
def test_an_override_is_recorded_with_its_evidence(tmp_path: Path, jets: Jets, guard: str) -> None:
    factors, momentum, _ = WRONG_UNITS[guard]
    wrong = scaled(replace(jets, pt_gev=jets.pt_gev * np.float32(momentum)), factors)
    (accepted,) = check(tmp_path, wrong, accept={guard: REASON})["accepted"]
    assert (accepted["guard"], accepted["reason"]) == (guard, REASON)
    assert "quantiles" in accepted["found"]
    report = check(tmp_path, wrong, accept={guard: REASON})
    assert f"sim: accepted {guard}: {REASON}" in render_report([report])


@pytest.mark.fault(6, "duplicated jets")
def test_duplicates_over_chunks_and_files(tmp_path: Path, jets: Jets) -> None:
    write_jets(tmp_path / "a.h5", jets, labels=True)
    write_jets(tmp_path / "b.h5", jets.select(np.arange(195, 200)), labels=True)
    both = [tmp_path / "a.h5", tmp_path / "b.h5"]
    with pytest.raises(DataError, match=r"5 duplicate jets .* as jets 195 and 200"):
        validate_dataset(card(files=["a.h5", "b.h5"]), both, tmp_path, SELECTION, Wanted())


@pytest.mark.fault(8, "negative weights counted, negative totals refused")
def test_negative_weights_are_counted_and_cost_effective_size(tmp_path: Path, jets: Jets) -> None:
    weight = np.where(np.arange(len(jets)) % 4 == 0, -1.0, 1.0)
    report = check(tmp_path, replace(jets, weight=weight), weights="event")
    n = report["selected"]
    negative = report["negative_weights"]
    assert 0 < negative < n
    assert report["effective_size"] == pytest.approx((n - 2 * negative) ** 2 / n)
    said = f"effective sample of {report['effective_size']:.0f} jets ({negative} weights are negative)"
    assert said in render_report([report])
    with pytest.raises(DataError, match=r"add up to .*, not above zero"):
        check(tmp_path, replace(jets, weight=-np.ones(len(jets))), weights="event")


def with_scores(path: Path, jets: Jets, probabilities: np.ndarray) -> None:
    names = ("Other_pb", "Other_pc", "Other_pu", "Other_ptau")[: probabilities.shape[1]]
    write_jets(path, jets, labels=True, jet_fields=dict(zip(names, probabilities.T, strict=True)))


def test_missing_scores_are_refused_or_left_out(tmp_path: Path, jets: Jets) -> None:
    probabilities = np.random.default_rng(3).dirichlet(np.ones(3), len(jets))
    probabilities[::10] = -1.0
    with_scores(tmp_path / "sim.h5", jets, probabilities)
    scores = {"tagger": "Other"}
    wanted = Wanted(tracks=False, scores=True)
    with pytest.raises(DataError, match=r"20 of 200 jets .* have no score"):
        validate_dataset(card(scores=scores), [tmp_path / "sim.h5"], tmp_path, SELECTION, wanted)
    accepting = card(scores=scores, accept={"missing_scores": REASON})
    report = validate_dataset(accepting, [tmp_path / "sim.h5"], tmp_path, SELECTION, wanted).report
    assert (report["missing_scores"], report["selected"]) == (20, 180)
    (read,) = read_dataset(accepting, [tmp_path / "sim.h5"], wanted)
    assert read.score_classes == ("b", "c", "light")
    assert read.log_score is not None
    np.testing.assert_array_equal(np.isnan(read.log_score).any(axis=1), np.arange(200) % 10 == 0)
    kept = probabilities[:, 0] >= 0
    np.testing.assert_allclose(np.exp(read.log_score[kept]), probabilities[kept], rtol=1e-12)


def test_saturated_scores_have_finite_log_ratios(tmp_path: Path, jets: Jets) -> None:
    probabilities = np.tile([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], (100, 1))
    with_scores(tmp_path / "sim.h5", jets, probabilities)
    (read,) = read_dataset(
        card(scores={"tagger": "Other"}), [tmp_path / "sim.h5"], Wanted(tracks=False, scores=True)
    )
    assert read.log_score is not None
    assert np.isfinite(read.log_score).all()
    np.testing.assert_allclose(np.exp(read.log_score).sum(axis=1), 1.0, rtol=1e-8)


@pytest.mark.fault(6, "columns that are no probabilities")
def test_scores_that_are_no_probabilities_are_refused(tmp_path: Path, jets: Jets) -> None:
    with_scores(tmp_path / "sim.h5", jets, np.full((200, 4), 0.2))
    with pytest.raises(DataError, match="200 jets do not add up to 1"):
        list(
            read_dataset(
                card(scores={"tagger": "Other"}), [tmp_path / "sim.h5"], Wanted(tracks=False, scores=True)
            )
        )


@pytest.mark.fault(6, "a renamed field of scores")
def test_an_unknown_tagger_is_named_with_the_nearest_field(tmp_path: Path, jets: Jets) -> None:
    with_scores(tmp_path / "sim.h5", jets, np.full((200, 4), 0.25))
    with pytest.raises(DataError, match="for Othr_pb perhaps Other_pb"):
        list(read_dataset(card(scores={"tagger": "Othr"}), [tmp_path / "sim.h5"], Wanted(scores=True)))


@pytest.mark.fault(6, "datasets that share jets, and folds that would")
@pytest.mark.parametrize("run", [0, 410470])
def test_overlaps_of_datasets_count_where_runs_are_known(jets: Jets, run: int) -> None:
    numbered = replace(jets, run=np.full(len(jets), run))
    guards = []
    for name, part in (("one", numbered), ("two", numbered.select(np.arange(190, 200)))):
        guards.append(DatasetGuard(card(name=name), SELECTION))
        guards[-1].add(replace(part, dataset=name))
    problems = overlap_problems(guards)
    assert len(problems) == (1 if run else 0)
    assert not run or "share 10 jets" in problems[0]


SCORES = ("Other_pb", "Other_pc", "Other_pu", "Other_ptau")


def informative_scores(jets: Jets) -> np.ndarray:
    """Probabilities that know a little of the flavour."""
    known = np.full((len(jets), 4), 0.2)
    known[np.arange(len(jets)), jets.flavour] = 0.4
    return 0.5 * known + 0.5 * np.random.default_rng(4).dirichlet(np.ones(4), len(jets))


@pytest.mark.fault(6, "swapped columns of scores, of jets and of tracks")
def test_swapped_columns_are_refused(tmp_path: Path, make_jets: Callable[..., Jets], attempts) -> None:
    many = make_jets(6, jets=600)
    path = tmp_path / "sim.h5"
    scored, tracked = Wanted(tracks=False, scores=True), Wanted()

    def validate(wanted: Wanted, **keys: Any) -> dict[str, Any]:
        one = card(**keys, **({"scores": {"tagger": "Other"}} if wanted.scores else {}))
        return validate_dataset(one, [path], tmp_path, SELECTION, wanted).report

    probabilities = informative_scores(many)
    with_scores(path, many, probabilities)
    assert validate(scored)["accepted"] == []
    for one, other in combinations(range(4), 2):
        with attempts(f"{SCORES[one]} and {SCORES[other]}"):
            order = np.arange(4)
            order[[one, other]] = other, one
            with_scores(path, many, probabilities[:, order])
            with pytest.raises(DataError, match="may be swapped"):
                validate(scored)
            (accepted,) = validate(scored, accept={"score_columns": REASON})["accepted"]
            assert accepted["guard"] == "score_columns"
    for dataset, one, other in (
        ("jets", "pt_btagJes", "eta_btagJes"),
        ("jets", "pt_btagJes", "mcEventWeight"),
        ("jets", "pt_btagJes", "eventNumber"),
        ("tracks", "d0", "lifetimeSignedD0Significance"),
        ("tracks", "d0", "qOverP"),
        ("tracks", "dphi", "phiUncertainty"),
        ("tracks", "qOverP", "qOverPUncertainty"),
    ):
        with attempts(f"{one} and {other}"):
            write_jets(path, many, labels=True)
            with h5py.File(path, "r+") as file:
                table = file[dataset][:]
                changed = table.copy()
                changed[one], changed[other] = table[other], table[one].astype(table.dtype[other])
                file[dataset][...] = changed
            with pytest.raises(DataError):
                validate(tracked, accept={"length_unit": REASON} if dataset == "jets" else {})


def test_scores_that_know_nothing_are_no_swapped_columns(tmp_path: Path, jets: Jets) -> None:
    with_scores(tmp_path / "sim.h5", jets, np.random.default_rng(5).dirichlet(np.ones(4), len(jets)))
    one = card(scores={"tagger": "Other"})
    wanted = Wanted(tracks=False, scores=True)
    assert validate_dataset(one, [tmp_path / "sim.h5"], tmp_path, SELECTION, wanted).report["accepted"] == []


def test_keys_tell_runs_events_and_jets_apart(jets: Jets) -> None:
    again = replace(jets, run=jets.event, event=jets.run)
    for other in (replace(jets, run=jets.run + 1), replace(jets, jet_index=1 - jets.jet_index), again):
        same = jet_keys(jets) == jet_keys(other)
        assert same.sum() == (0 if other is not again else 2)
    assert len(np.unique(jet_keys(jets))) == len(jets)


@pytest.mark.parametrize("chunk_jets", [1, 7, 64, 1000])
def test_chunks_make_up_the_whole(tmp_path: Path, jets: Jets, chunk_jets: int) -> None:
    write_jets(tmp_path / "sim.h5", jets, labels=True)
    with h5py.File(tmp_path / "sim.h5", "r+") as file:  # no event numbers and no ranks
        table = file["jets"][:]
        kept = [name for name in table.dtype.names if name != "jet_rank"]
        del file["jets"]
        file["jets"] = table[kept]
    chosen = card(selection=[{"field": "pt_btagJes", "min": 50_000.0}])
    (whole,) = read_dataset(chosen, [tmp_path / "sim.h5"], Wanted())
    parts = list(read_dataset(chosen, [tmp_path / "sim.h5"], Wanted(), chunk_jets=chunk_jets))
    assert 0 < len(whole) == (jets.pt_gev >= 50).sum()
    for name in ("pt_gev", "eta", "flavour", "event", "jet_index", "row", "tracks", "track_origin"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
    np.testing.assert_array_equal(whole.row, np.flatnonzero(jets.pt_gev >= 50))
    np.testing.assert_array_equal(whole.jet_index, jets.jet_index[jets.pt_gev >= 50])


def test_memory_does_not_grow_with_the_file(tmp_path: Path, make_jets: Callable[..., Jets]) -> None:
    def peak(n: int) -> int:
        path = tmp_path / f"{n}.h5"
        write_jets(path, make_jets(3, jets=n), labels=True)
        tracemalloc.start()
        for _ in read_dataset(card(), [path], Wanted(), chunk_jets=2000):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(4_000)  # what is loaded once
    assert peak(32_000) < 1.1 * peak(8_000)


def test_flavours_with_too_few_simulated_jets_for_a_calibration_are_named() -> None:
    def report(use: str, flavours: dict[str, int] | None) -> dict[str, Any]:
        return {"use": use, "flavours": flavours}

    enough = dict.fromkeys(("b", "c", "light", "tau"), 25)
    held_out = report("validation", {"tau": 1000})
    assert scarce_flavours([report("control", enough), report("control", enough), held_out]) == []
    (warning,) = scarce_flavours([report("control", enough | {"b": 50, "c": 50, "light": 50}), held_out])
    assert warning.startswith("only 25 simulated tau jets in all control regions")
    assert scarce_flavours([report("control", None)]) == []  # data alone are not judged
