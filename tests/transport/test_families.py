"""Other families from the same derivation: what is shared is shared, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.config.evaluation import FAMILIES
from selfcal.errors import ConfigError
from selfcal.run.atomic import write_arrays
from selfcal.transport.calibration import collect, load_calibration, save_calibration
from selfcal.transport.choice import family_of, map_config
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import derive, number_of_tasks
from selfcal.transport.families import derive_families, with_other_maps
from tests.transport.synthetic_world import CONFIG, REGIONS, SyntheticWorld, prepare


def test_the_family_of_a_configuration_is_found_again() -> None:
    base = MapConfig(steps=7, displacement_scale=0.3)
    for name in FAMILIES:
        changed = map_config(name, base)
        assert family_of(changed) == name
        assert changed.steps == 7
        assert changed.displacement_scale == 0.3
    assert family_of(MapConfig(family="flow", fit_by="distance")) == "flow_energy"
    assert family_of(MapConfig(family="brenier", fit_by="distance")) is None
    assert family_of(MapConfig(family="residual")) == "residual"


@pytest.fixture(scope="module")
def families(
    derived: tuple[Derivation, ScoreFrame], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Derivation], Path]:
    scratch = tmp_path_factory.mktemp("families")
    done: list[tuple[int, int]] = []
    found = derive_families(derived[0], scratch, ["identity", "flow"], 1, 1, lambda *at: done.append(at))
    assert done[-1][0] == done[-1][1]
    return found, scratch


def test_the_family_in_use_comes_out_as_it_was(
    derived: tuple[Derivation, ScoreFrame], families: tuple[dict[str, Derivation], Path]
) -> None:
    """The same inputs, shared tasks and seed: bit for bit, the replica too."""
    for task in ("mixture", "replica-0"):
        ours, again = derived[0].mixture(task), families[0]["flow"].mixture(task)
        assert torch.equal(ours.fractions, again.fractions)
        state, other = ours.maps.state_dict(), again.maps.state_dict()
        assert all(torch.equal(state[key], other[key]) for key in state)


def test_fractions_and_densities_are_shared_and_finished_work_is_kept(
    derived: tuple[Derivation, ScoreFrame], families: tuple[dict[str, Derivation], Path]
) -> None:
    source, identity = derived[0], families[0]["identity"]
    for task in ("inputs", "composition", "densities", "bulk-0"):
        assert identity.path(task).samefile(source.path(task))
    assert not identity.path("mixture").samefile(source.path("mixture"))
    assert not identity.path("replica-1").exists()
    assert not list(identity.mixture().maps.parameters())
    before = identity.path("mixture").stat().st_mtime_ns
    derive_families(source, families[1], ["identity", "flow"], 1, 1, lambda done, total: None)
    assert identity.path("mixture").stat().st_mtime_ns == before


def test_other_families_of_a_calibration_are_derived_with_it_and_kept(
    derived: tuple[Derivation, ScoreFrame], families: tuple[dict[str, Derivation], Path], tmp_path: Path
) -> None:
    """Bit for bit the maps that the comparison of families derives, and the same after a save and a load."""
    source, frame = derived
    config = source.config.model_copy(update={"families": ("identity", "residual")})
    assert number_of_tasks(config) == number_of_tasks(source.config) + 2
    folder = shutil.copytree(source.folder, tmp_path / "own")
    (folder / "config.json").write_text(config.model_dump_json())
    again = derive(folder, 1, lambda done, total: None)
    judged = derive_families(source, tmp_path / "judged", ["residual"], 0, 1, lambda *at: None)["residual"]
    calibration = collect(again, REGIONS, frame)
    assert set(calibration.families) == {"identity", "residual"}
    assert torch.equal(again.mixture("family-residual").fractions, judged.mixture().fractions)
    save_calibration(calibration, config.map, tmp_path)
    loaded = load_calibration(tmp_path)
    expected = judged.mixture().maps.state_dict()
    for maps in (calibration.families["residual"], loaded.families["residual"]):
        assert all(torch.equal(value, expected[key]) for key, value in maps.state_dict().items())
    assert not list(loaded.families["identity"].parameters())
    assert loaded.nominal.state_dict().keys() == calibration.nominal.state_dict().keys()


def test_a_configuration_of_no_family_has_none() -> None:
    assert family_of(MapConfig(family="switch", structure="autoregressive")) is None


def test_replicas_of_a_map_by_distance_are_not_shared_with_one_by_likelihood(
    world: SyntheticWorld, tmp_path: Path
) -> None:
    """They come without densities of their own, which the likelihood needs."""
    by_likelihood, by_distance = (MapConfig(family=family, steps=3) for family in ("flow", "residual"))
    config = CONFIG.model_copy(update={"map": by_distance})
    source = Derivation.open(prepare(world, tmp_path, config)[1])
    for task in ("composition", "densities", "identifiability", "bulk-0", "bulk-1"):
        write_arrays(source.path(task), {"of": np.zeros(1)})
    likelihood = config.model_copy(update={"map": by_likelihood})
    folder = with_other_maps(source, tmp_path / "likelihood", likelihood)
    names = {"inputs", "composition", "densities", "identifiability"}
    assert {path.stem for path in folder.glob("*.safetensors")} == names
    longer = config.model_copy(update={"map": by_distance.model_copy(update={"steps": 4})})
    other = with_other_maps(source, tmp_path / "distance", longer)
    assert {path.stem for path in other.glob("*.safetensors")} == names | {"bulk-0", "bulk-1"}
    assert (other / "bulk-1.safetensors").samefile(source.path("bulk-1"))
    assert other == with_other_maps(source, tmp_path / "distance", longer.model_copy(update={"workers": 7}))
    with pytest.raises(ConfigError, match="only the settings of the maps may differ"):
        with_other_maps(source, tmp_path / "seeds", config.model_copy(update={"seeds": 3}))
