"""Core and tails from two histograms: against tracks smeared one by one, and on published histograms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uproot

from selfcal.cli.app import main
from selfcal.errors import DataError
from selfcal.sbi.histogram_inference import (
    PARAMETER_NAMES,
    PRIOR_WIDTHS,
    infer_from_files,
    infer_from_histograms,
    smeared_histogram,
)

EDGES = np.linspace(0.0, 50.0, 1001)
WIDE = 10.0 * np.ones(3)
"""Priors that leave everything to the histograms."""


def significances(tracks: int, random: np.random.Generator) -> np.ndarray:
    """A core, a tail and a far tail, as of tracks without lifetime."""
    width = random.choice([1.0, 2.2, 6.0], size=tracks, p=[0.93, 0.06, 0.01])
    return np.abs(width * random.standard_normal(tracks))


def smeared_tracks(
    values: np.ndarray, core: float, tail: float, far_tail: float, random: np.random.Generator
) -> np.ndarray:
    """The model's formula, track by track."""
    values = core * values
    for scale, fraction, factor, start in ((tail, 0.06, 2.0, 2.5), (far_tail, 0.008, 5.0, 5.0)):
        uniform = random.random(len(values))
        if scale >= 1:
            noise = np.sqrt(factor**2 - 1) * random.standard_normal(len(values))
            values = np.abs(values + np.where(uniform < fraction * (scale - 1), noise, 0.0))
        else:
            values = np.where((values >= start) & (uniform < 1 - scale), values / factor, values)
    return values


def histogram(values: np.ndarray) -> np.ndarray:
    return np.histogram(np.minimum(values, 49.99), EDGES)[0].astype(float)


@pytest.mark.parametrize("theta", [(1.06, 1.8, 2.5), (0.95, 0.6, 0.7), (1.0, 1.0, 1.0)])
def test_a_smeared_histogram_is_that_of_smeared_tracks(theta: tuple[float, float, float]) -> None:
    random = np.random.default_rng(3)
    values = significances(400_000, random)
    expected = histogram(smeared_tracks(values, *theta, random))
    found = smeared_histogram(histogram(values), EDGES, np.array(theta))
    assert found.sum() == pytest.approx(len(values))
    compared = ((0, 1), (1, 2), (2, 3), (3, 5), (5, 10), (10, 50))
    for part in (slice(*np.searchsorted(EDGES, pair)) for pair in compared):
        n = expected[part].sum()
        assert found[part].sum() == pytest.approx(n, abs=4 * np.sqrt(n))


def test_pulls_of_the_posterior_have_width_one() -> None:
    pulls = []
    for seed in range(16):
        random = np.random.default_rng([11, seed])
        theta = np.array([random.uniform(0.95, 1.08), random.uniform(1.2, 2.2), random.uniform(1.3, 2.5)])
        simulation = histogram(significances(200_000, random))
        data = histogram(smeared_tracks(significances(60_000, random), *theta, random))
        found = infer_from_histograms("h", data, simulation, EDGES, modelling_error=0.0, prior_widths=WIDE)
        pulls.append((found.mean - theta) / found.sigma)
        assert found.p_value > 1e-4
    table = np.array(pulls)
    assert np.abs(table.mean(axis=0)).max() < 0.75
    assert 0.7 < table.std() < 1.35


def test_equal_histograms_leave_the_simulation_as_it_is() -> None:
    content = histogram(significances(100_000, np.random.default_rng(5)))
    found = infer_from_histograms("same", content, content, EDGES)
    assert found.mean == pytest.approx(np.ones(3), abs=1e-3)
    assert found.tail_ratio == pytest.approx(1.0)
    assert (found.sigma < PRIOR_WIDTHS).all()


def test_what_no_smearing_makes_is_told_and_the_uncertainty_is_larger() -> None:
    random = np.random.default_rng(6)
    simulation = histogram(significances(300_000, random))
    plain = infer_from_histograms("plain", histogram(significances(100_000, random)), simulation, EDGES)
    # A narrow peak of tracks at 1.9: alignment, not resolution.
    strange = np.concatenate([significances(95_000, random), random.normal(1.9, 0.05, 5_000)])
    found = infer_from_histograms("strange", histogram(strange), simulation, EDGES)
    assert plain.p_value > 1e-3
    assert found.p_value < 1e-6
    assert (found.sigma > 1.5 * plain.sigma).all()


@pytest.mark.parametrize(
    ("data", "edges", "words"),
    [
        (np.zeros(1000), EDGES, "empty"),
        (-np.ones(1000), EDGES, "negative"),
        (np.ones(1000), EDGES - 1.0, "does not begin at zero"),
    ],
)
def test_histograms_that_cannot_be_used_are_refused(data: np.ndarray, edges: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        infer_from_histograms("bad", data, np.ones(1000), edges)


def test_published_histograms_lie_within_what_the_priors_cover(
    shared_file: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_file("published/cms_jpcalib/calibeHistoWrite_Data2022C_NANO130X_v1.root")
    simulation = shared_file("published/cms_jpcalib/calibeHistoWrite_MC2022_NANO130X_v2.root")
    plot = tmp_path / "resolution.pdf"
    assert main(["histograms", str(data), str(simulation), "--json", "--plot", str(plot)]) == 0
    rows = json.loads(capsys.readouterr().out)["histograms"]
    assert [row["name"] for row in rows] == [f"histoCat{i}" for i in range(10)]
    for row in rows:
        assert [one["name"] for one in row["parameters"]] == list(PARAMETER_NAMES)
        assert 0.97 < row["parameters"][0]["mean"] < 1.10
        assert 0.80 < row["tail_ratio"] < 1.45
    assert plot.read_bytes().startswith(b"%PDF")


def test_files_without_a_common_histogram_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("data.root", "simulation.root")]
    for path, name in zip(paths, ("one", "other"), strict=True):
        with uproot.recreate(path) as file:
            file[name] = np.histogram([1.0], EDGES)
    with pytest.raises(DataError, match="no histogram of this file"):
        infer_from_files(*paths, 0.01)


def test_histograms_with_other_bins_are_refused_and_those_of_one_file_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("data.root", "simulation.root")]
    values = significances(20_000, np.random.default_rng(5))
    for path, name in zip(paths, ("data", "simulation"), strict=True):
        with uproot.recreate(path) as file:
            file["both"] = np.histogram(values, EDGES)
            file[f"only_in_{name}"] = np.histogram(values, EDGES)
    assert [one.name for one in infer_from_files(*paths, 0.01)] == ["both"]
    with uproot.recreate(paths[1]) as file:
        file["both"] = np.histogram(values, EDGES + 0.01)
    with pytest.raises(DataError, match="'both' has other bins in data than in simulation"):
        infer_from_files(*paths, 0.01)
    with uproot.recreate(paths[1]) as file:
        file["both"] = np.histogram(values, EDGES[:-1])
    with pytest.raises(DataError, match="'both' has other bins"):
        infer_from_files(*paths, 0.01)
