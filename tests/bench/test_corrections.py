"""What two taggers leave to be corrected, on the same jets: known shifts come back, and pairing pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from bench.corrections import Scored, TruthOfRun, compare
from selfcal.data.flavours import LIGHT, B
from selfcal.errors import DataError

JETS = 20000


def jets_of(generator, shift):
    """Half b jets at 2, half light jets at ``shift``; two jets of an event have the same flavour."""
    flavour = np.repeat([B, LIGHT], JETS // 2).astype(np.int8)
    middle = np.where(flavour == B, 2.0, shift)
    return Scored(generator.normal(middle), flavour, np.ones(JETS), np.arange(JETS) // 2)


@pytest.fixture
def run():
    generator = np.random.default_rng(3)
    return TruthOfRun({"tt": (jets_of(generator, 0.3), jets_of(generator, 0.0))}, "tt")


def rows_of(arms, **wanted):
    rows = compare(arms, number=60)
    return [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]


def test_a_known_shift_is_the_correction(run):
    """Light jets 0.3 higher in data: the correction is Φ(0.3 - t)/Φ(-t) at the threshold t of b jets."""
    threshold = 2.0 + norm.ppf(1 - 0.77)
    expected = norm.sf(threshold - 0.3) / norm.sf(threshold)
    (row,) = rows_of([[run]], flavour="light", working_point=0.77)
    correction = row.correction
    assert correction.value == pytest.approx(expected, abs=3 * correction.jets_error)
    assert 0.01 < correction.jets_error < 0.1
    assert correction.trainings_error is None
    (b,) = rows_of([[run]], flavour="b", working_point=0.77)
    assert b.correction.value == pytest.approx(1.0, abs=3 * b.correction.jets_error)


def test_the_same_tagger_changes_nothing_and_says_so_without_error(run):
    for row in rows_of([[run], [run]], arm=1):
        assert (row.change.value, row.change.jets_error) == (0.0, 0.0)
        assert (row.cost.value, row.cost.jets_error) == (1.0, 0.0)


def steadier(run, by: float) -> TruthOfRun:
    """Another tagger, whose light jets in data are lower by ``by``."""
    data, simulation = run.samples["tt"]
    moved = replace(data, discriminant=data.discriminant - by * (data.flavour == LIGHT))
    return TruthOfRun({"tt": (moved, simulation)}, "tt")


def test_a_tagger_that_moves_with_the_data_less_is_seen_with_a_smaller_error_than_both_have(run):
    (row,) = rows_of([[run], [steadier(run, 0.2)]], arm=1, flavour="light", working_point=0.77)
    assert row.change.value < -5 * row.change.jets_error
    assert row.change.jets_error < row.correction.jets_error
    assert row.cost.value == 1.0


def test_trainings_are_averaged_in_pairs(run):
    """Changes of three trainings: their mean, and their standard deviation over the root of three."""
    arms = [[run] * 3, [steadier(run, by) for by in (0.1, 0.2, 0.3)]]
    (row,) = rows_of(arms, arm=1, flavour="light", working_point=0.77)
    single = [
        one.change.value
        for other in arms[1]
        for one in rows_of([[run], [other]], arm=1, flavour="light", working_point=0.77)
    ]
    assert row.change.value == pytest.approx(np.mean(single))
    assert row.change.trainings_error == pytest.approx(np.std(single, ddof=1) / np.sqrt(3))
    (first,) = rows_of(arms, arm=0, flavour="light", working_point=0.77)
    assert first.correction.trainings_error == 0.0


@pytest.mark.filterwarnings("error")
def test_rows_without_passing_jets_are_left_out(run):
    assert rows_of([[run], [steadier(run, 50.0)]], flavour="light") == []
    assert len(rows_of([[run], [steadier(run, 50.0)]], flavour="b")) == 6


def test_runs_with_other_jets_are_refused(run):
    data, simulation = run.samples["tt"]
    fewer = TruthOfRun({"tt": (replace(data, event=data.event + 1), simulation)}, "tt")
    with pytest.raises(DataError, match="other jets"):
        compare([[run], [fewer]], number=1)
    elsewhere = TruthOfRun({"tt": (data, simulation), "dijet": (data, simulation)}, "tt")
    with pytest.raises(DataError, match="other regions"):
        compare([[run], [elsewhere]], number=1)
    with pytest.raises(DataError, match="other numbers of trainings"):
        compare([[run], [run, run]], number=1)
