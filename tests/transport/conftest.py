"""One synthetic world for all tests of this folder."""

from __future__ import annotations

import pytest

from selfcal.transport.calibration import Calibration, collect
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import derive
from tests.transport.synthetic_world import REGIONS, SyntheticWorld, make_world, prepare


@pytest.fixture(scope="session")
def world() -> SyntheticWorld:
    return make_world(4000, 3000, seed=3)


@pytest.fixture(scope="session")
def derived(world: SyntheticWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Derivation, ScoreFrame]:
    frame, folder = prepare(world, tmp_path_factory.mktemp("derivation"))
    return derive(folder, 1, lambda done, total: None), frame


@pytest.fixture(scope="session")
def calibration(derived: tuple[Derivation, ScoreFrame]) -> Calibration:
    return collect(derived[0], REGIONS, derived[1])
