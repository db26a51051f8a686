"""Composition and maps on synthetic scores whose true map and fractions are known."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.data.scored import concatenate
from selfcal.errors import DataError, FitError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.sealed import write_sealed
from selfcal.transport import derivation_tasks
from selfcal.transport.calibration import Calibration, collect, load_calibration, save_calibration
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import Derivation, write_inputs
from selfcal.transport.derivation_tasks import derive, run_task, run_tasks
from selfcal.transport.kinematics import kinematic_weights
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.optimality import displacement_table
from selfcal.transport.sample import build_sample, simulated_fractions
from tests.transport.synthetic_world import (
    CONFIG,
    REGIONS,
    SHIFTS,
    SyntheticWorld,
    prepare,
    wrong_prior,
)


def true_fractions(world: SyntheticWorld) -> np.ndarray:
    return np.stack([np.bincount(world.data_flavour[r], minlength=4) / len(world.data[r]) for r in REGIONS])


def test_main_fractions_are_recovered_from_a_wrong_prior(
    calibration: Calibration, world: SyntheticWorld
) -> None:
    truth, prior = true_fractions(world), calibration.prior.fractions.numpy()
    main = truth > 0.35
    assert np.abs(prior - truth)[main].max() > 0.06
    assert np.abs(calibration.fractions.numpy() - truth)[main].max() < 0.035


def test_replicas_draw_their_prior_anew(derived: tuple[Derivation, ScoreFrame]) -> None:
    """Otherwise the spread of the replicas would miss what only the prior decides."""
    drawn = torch.stack([derived[0].drawn_prior(index).fractions for index in range(400)])
    prior = derived[0].prior
    small = prior.fractions < 0.1
    assert torch.allclose(drawn.mean(0)[small], prior.fractions[small], rtol=0.1)
    # Renormalising after the draw widens the small fractions; it must not narrow them.
    assert (drawn.std(0)[small] > 0.9 * prior.uncertainty[small]).all()
    assert (drawn.std(0)[small] < 2.0 * prior.uncertainty[small]).all()


def test_light_jets_move_by_the_true_shift(calibration: Calibration, world: SyntheticWorld) -> None:
    jets = concatenate(list(world.simulation.values()))
    light = jets.select(jets.flavour == 2)
    before = calibration.frame.enter(torch.from_numpy(light.log_probability))
    moved = calibration.frame.enter(
        torch.from_numpy(calibration.apply(light, calibration.nominal).log_probability)
    )
    expected = SHIFTS[2] / np.array(calibration.frame.scale)
    assert np.abs((moved - before).mean(0).numpy() - expected).max() < 0.06


@pytest.mark.parametrize("settings", [{"family": "residual"}, {"family": "brenier", "fit_by": "distance"}])
def test_maps_by_distance_move_light_jets_by_the_true_shift(
    settings: dict[str, str], world: SyntheticWorld, tmp_path: Path
) -> None:
    """Families without likelihood: the same tasks, the same files, the distance in the fit."""
    chosen = MapConfig(hidden_width=8, steps=100, learning_rate=1e-2, **settings)  # type: ignore[arg-type]
    config = CONFIG.model_copy(update={"map": chosen})
    frame, folder = prepare(world, tmp_path, config)
    found = collect(derive(folder, 1, lambda done, total: None), REGIONS, frame)
    save_calibration(found, chosen, tmp_path / "map")
    found = load_calibration(tmp_path / "map")
    jets = concatenate(list(world.simulation.values()))
    light = jets.select(jets.flavour == 2)
    before, after = (
        frame.enter(torch.from_numpy(part.log_probability))
        for part in (light, found.apply(light, found.nominal))
    )
    expected = SHIFTS[2] / np.array(frame.scale)
    assert np.abs((after - before).mean(0).numpy() - expected).max() < 0.08
    assert len(found.replicas) == config.bootstraps


@pytest.mark.fault(1, "a derivation shared by processes, one of them killed: an error, then the same numbers")
def test_numbers_depend_neither_on_a_killed_process_nor_on_how_many_there_are(
    derived: tuple[Derivation, ScoreFrame], world: SyntheticWorld, tmp_path: Path
) -> None:
    """Some tasks are taken over, the others are done anew in other processes and another order."""
    _, folder = prepare(world, tmp_path)
    finished = derived[0]
    for task in ("composition", "bulk-1"):
        (folder / f"{task}.safetensors").write_bytes(finished.path(task).read_bytes())
    torch.rand(17)

    def kill_one(done: int, total: int) -> None:
        if done == 3:
            process = multiprocessing.active_children()[0]
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(FitError, match="a calibration process ended unexpectedly") as caught:
        derive(folder, 2, kill_one)
    assert caught.value.where == str(folder)
    assert "finished tasks are kept" in (caught.value.fix or "")
    assert not (folder / "replica-0.safetensors").exists()
    begun_with: list[int] = []
    resumed = derive(folder, 2, lambda done, total: begun_with.append(done))
    assert begun_with[0] >= 3
    for task in ("densities", "identifiability", "bulk-0", "mixture", "replica-0", "replica-1"):
        first, second = (read_arrays(d.path(task)) for d in (finished, resumed))
        assert all(np.array_equal(first[name], second[name]) for name in first), task
    assert not np.array_equal(
        read_arrays(resumed.path("replica-0"))["fractions"],
        read_arrays(resumed.path("replica-1"))["fractions"],
    )


def test_a_replica_of_the_very_same_events_is_the_nominal_fit(
    derived: tuple[Derivation, ScoreFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same events and constraint, densities and maps to the last bit."""
    nominal = derived[0]
    for task in ("inputs", "composition", "densities", "identifiability", "mixture"):
        (tmp_path / f"{task}.safetensors").write_bytes(nominal.path(task).read_bytes())
    (tmp_path / "config.json").write_bytes((nominal.folder / "config.json").read_bytes())
    constraint = nominal.constraint()
    with monkeypatch.context() as patch:
        patch.setattr(Derivation, "resampled", lambda self, index: (self.simulation, self.data))
        patch.setattr(Derivation, "constraint", lambda self, task: constraint)
        for task in ("bulk-0", "replica-0"):
            run_task(tmp_path, task)
    same = Derivation.open(tmp_path)
    expected, first = nominal.densities(), nominal.first_densities()
    assert all(map(torch.equal, same.densities("bulk-0").parameters(), expected.parameters()))
    assert not all(map(torch.equal, first.parameters(), expected.parameters()))
    for found, wanted in zip(
        same.mixture("replica-0").maps.parameters(), nominal.mixture().maps.parameters(), strict=True
    ):
        assert torch.equal(found, wanted)
    assert torch.equal(same.mixture("replica-0").fractions, nominal.mixture().fractions)
    assert not torch.equal(nominal.mixture("replica-0").fractions, nominal.mixture().fractions)


def test_other_inputs_get_another_folder(world: SyntheticWorld, tmp_path: Path) -> None:
    _, first = prepare(world, tmp_path)
    assert prepare(world, tmp_path)[1] == first
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    simulation = build_sample(world.simulation, REGIONS, frame)
    other = write_inputs(tmp_path, simulation, simulation, wrong_prior(), CONFIG, seed=5)
    assert other != first
    assert not first.exists()


def test_calibration_survives_a_round_trip(
    calibration: Calibration, world: SyntheticWorld, tmp_path: Path
) -> None:
    save_calibration(calibration, CONFIG.map, tmp_path)
    again = load_calibration(tmp_path)
    jets = world.simulation[REGIONS[0]]
    for maps in ("nominal", "stiff"):
        first = calibration.apply(jets, getattr(calibration, maps)).log_probability
        assert np.array_equal(first, again.apply(jets, getattr(again, maps)).log_probability)
    with pytest.raises(DataError, match="without flavour label"):
        again.apply(world.data[REGIONS[0]], again.nominal)
    (tmp_path / "map.safetensors").write_bytes((tmp_path / "map.safetensors").read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        load_calibration(tmp_path)


def test_bootstrap_keeps_events_together(world: SyntheticWorld) -> None:
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    sample = build_sample(world.data, REGIONS, frame)
    replica = sample.resampled(np.random.default_rng(1))
    pairs = replica.weight.reshape(-1, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert abs(float(replica.weight.mean()) - 1.0) < 0.05
    assert abs(float(pairs[:, 0].var()) - 1.0) < 0.1


def test_kinematic_weights_give_the_data_spectrum() -> None:
    generator = torch.Generator().manual_seed(1)
    simulation = torch.randn(20000, 2, generator=generator, dtype=torch.float64)
    data = torch.randn(20000, 2, generator=generator, dtype=torch.float64) * 0.9 + 0.2
    ones = torch.ones(20000, dtype=torch.float64)
    weight = kinematic_weights(simulation, data, ones, ones)
    mean = (weight[:, None] * simulation).mean(0)
    variance = (weight[:, None] * (simulation - mean).square()).mean(0)
    assert weight.mean() == pytest.approx(1.0)
    assert torch.allclose(mean, data.mean(0), atol=0.03)
    assert torch.allclose(variance, data.var(0), atol=0.04)


def test_fractions_follow_the_kinematics(world: SyntheticWorld) -> None:
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    simulation = build_sample(world.simulation, REGIONS, frame)
    simulated = simulated_fractions(simulation, len(REGIONS))
    model = KinematicFractions(simulation, simulated)
    local = torch.softmax(model.log_prior(simulation) + simulated.log()[simulation.region], dim=1)
    for region in range(len(REGIONS)):
        rows = simulation.region == region
        assert torch.allclose(local[rows].mean(0), simulated[region], atol=0.003)


def test_a_shift_is_its_own_optimal_transport(calibration: Calibration, world: SyntheticWorld) -> None:
    jets = concatenate(list(world.simulation.values()))
    rows = displacement_table(calibration.nominal, calibration.frame, jets, seed=1)
    assert {row["flavour"] for row in rows} == {"b", "c", "light", "tau"}
    assert all(row["excess_cost"] >= -1e-9 for row in rows)
    light = next(row for row in rows if row["flavour"] == "light")
    assert light["excess_cost"] < 0.25
    assert light["root_mean_square_displacement"] == pytest.approx(0.2, abs=0.1)


def test_nothing_is_started_where_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcal.transport.derivation_tasks.worker_pool", None)
    seen: list[tuple[int, int]] = []
    run_tasks([[], []], 5, 2, lambda done, total: seen.append((done, total)))
    assert seen == [(5, 5)]


def test_a_map_of_another_version_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "map.safetensors", {"prior/fractions": np.ones((1, 4))})
    for content, message in (
        ({"format_version": 99}, "format version 99, expected 2"),
        ({}, "'format_version'"),
    ):
        write_sealed(tmp_path / "map.json", content)
        with pytest.raises(DataError, match=f"not a calibration of this version: {message}") as caught:
            load_calibration(tmp_path)
        assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(("asked", "wanted"), [(3, 3), (0, os.cpu_count())])
def test_as_many_processes_share_the_tasks_as_were_asked_for(asked, wanted, monkeypatch, tmp_path) -> None:
    started = []

    class NoPool(Exception):
        """In place of processes."""

    def pool(number):
        started.append(number)
        raise NoPool

    monkeypatch.setattr(derivation_tasks, "worker_pool", pool)
    with pytest.raises(NoPool):
        derivation_tasks.run_tasks([[(tmp_path, "composition")]], 0, asked, lambda done, total: None)
    assert started == [wanted]


def test_the_number_of_processes_leaves_no_trace(world: SyntheticWorld, tmp_path: Path) -> None:
    """Else judging a calibration with other workers would make it stale."""
    frame = ScoreFrame.from_jets(concatenate(list(world.simulation.values())))
    sample = build_sample(world.simulation, REGIONS, frame)
    left = []
    for workers in (1, 2):
        config = CONFIG.model_copy(update={"workers": workers})
        folder = write_inputs(tmp_path / str(workers), sample, sample, wrong_prior(), config, seed=5)
        left.append((folder.name, (folder / "config.json").read_bytes()))
    assert left[0] == left[1]
