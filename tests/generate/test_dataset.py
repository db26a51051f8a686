"""Whole datasets: the same whatever the workers, the cache or an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from selfcal.config.detector_parameters import DetectorParameters
from selfcal.data.closure_truth import read_closure_truth
from selfcal.data.hdf5_reader import read_jets
from selfcal.errors import ConfigError
from selfcal.generate import dataset as dataset_module
from selfcal.generate.dataset import GenerateRequest, chunk_plan, generate_dataset, generate_datasets
from selfcal.generate.pileup import MinimumBiasPool
from selfcal.generate.workers import load_chunk

REQUEST = GenerateRequest("small", "w_charm", 60, 5)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 30 jets, so that a small dataset has several."""
    monkeypatch.setattr(dataset_module, "CHUNK_JETS", 30)


def made(
    request: GenerateRequest, output: Path, cache: Path, pool: MinimumBiasPool, workers: int
) -> dict[str, np.ndarray]:
    """Generate with a cache that has the pool of the session and nothing else."""
    if not cache.exists():
        cache.mkdir()
        for file in POOL_CACHE[0].glob("minimum-bias*"):
            (cache / file.name).write_bytes(file.read_bytes())
    reports: list[tuple[int, int]] = []
    generate_dataset(request, output, cache, workers, lambda done, total: reports.append((done, total)))
    assert reports[-1][0] == reports[-1][1]
    return contents(output)


POOL_CACHE: list[Path] = []


@pytest.fixture(autouse=True)
def _pool_cache(cache: Path, pool: MinimumBiasPool) -> None:
    POOL_CACHE[:] = [cache]


def test_workers_cache_and_interruption_change_nothing(
    small_chunks: None, tmp_path: Path, pool: MinimumBiasPool
) -> None:
    one = made(REQUEST, tmp_path / "one.h5", tmp_path / "cache1", pool, workers=1)
    two = made(REQUEST, tmp_path / "two.h5", tmp_path / "cache2", pool, workers=2)
    # what a kill leaves: some chunks missing, one cut short
    chunks = sorted((tmp_path / "cache2").rglob("0*.safetensors"))
    assert len(chunks) == 3
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:1000])
    again = made(REQUEST, tmp_path / "again.h5", tmp_path / "cache2", pool, workers=2)
    assert len(one["jets"]) == REQUEST.n_jets
    for other in (two, again):
        assert other.keys() == one.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_pseudo_data_carry_no_labels(tmp_path: Path, cache: Path) -> None:
    request = replace(REQUEST, n_jets=40, is_data=True, detector=DetectorParameters(d0_core_scale=1.1))
    simulation = replace(request, is_data=False)
    pair = [(request, tmp_path / "data.h5"), (simulation, tmp_path / "sim.h5")]
    generate_datasets(pair, cache, 1, lambda done, total: None)
    with h5py.File(tmp_path / "data.h5") as file:
        names = file["jets"].dtype.names + file["tracks"].dtype.names
        assert not [name for name in names if "Truth" in name or "ftag" in name or "Label" in name]
        assert "d0_core_scale" not in str(dict(file.attrs))
    data, labelled = read_jets(tmp_path / "data.h5", "d"), read_jets(tmp_path / "sim.h5", "s")
    assert (data.flavour == -1).all()
    assert (data.track_origin == -1).all()
    assert labelled.labelled
    np.testing.assert_array_equal(read_closure_truth(tmp_path / "data.h5"), labelled.flavour)
    np.testing.assert_array_equal(data.tracks, labelled.tracks)


def test_events_are_numbered_apart(tmp_path: Path, small_chunks: None, cache: Path) -> None:
    generate_dataset(REQUEST, tmp_path / "a.h5", cache, 1, lambda done, total: None)
    jets = read_jets(tmp_path / "a.h5", "a")
    keys = set(zip(jets.event.tolist(), jets.jet_index.tolist(), strict=True))
    assert len(keys) == len(jets)
    assert len(np.unique(jets.event // 10_000_000)) == 3


def test_a_low_energy_scale_takes_more_chunks(tmp_path: Path, small_chunks: None, cache: Path) -> None:
    request = replace(REQUEST, detector=DetectorParameters(jet_energy_scale=0.75))
    planned = chunk_plan(request)
    generate_dataset(request, tmp_path / "low.h5", cache, 1, lambda done, total: None)
    assert len(read_jets(tmp_path / "low.h5", "low")) == request.n_jets
    assert load_chunk(replace(planned[-1], chunk=len(planned), quota=1), cache) is not None


def test_seeds_and_settings_make_other_jets() -> None:
    tasks = [chunk_plan(r)[0] for r in (REQUEST, replace(REQUEST, seed=6))]
    tasks.append(chunk_plan(replace(REQUEST, pythia_settings=("StringZ:rFactB = 1.05",)))[0])
    tasks.append(replace(tasks[0], chunk=1))
    assert len({task.pythia_seed() for task in tasks}) == 4
    assert all(1 <= task.pythia_seed() <= 900_000_000 for task in tasks)
    assert len({task.path(Path("cache")) for task in tasks}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": "higgs"}, "unknown process"),
        ({"n_jets": 0}, "n_jets is 0"),
        ({"pythia_settings": ("Random:seed = 1",)}, "not for users"),
    ],
)
def test_requests_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(REQUEST, **changes)  # type: ignore[arg-type]


def test_unknown_setting_is_named_by_the_worker(tmp_path: Path, cache: Path) -> None:
    request = replace(REQUEST, pythia_settings=("StringZ:nonsense = 1",))
    with pytest.raises(ConfigError, match="StringZ:nonsense"):
        generate_dataset(request, tmp_path / "x.h5", cache, 1, lambda done, total: None)
    assert not (tmp_path / "x.h5").exists()
