"""One synthetic world for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.transport.synthetic_world import SyntheticWorld, make_world


@pytest.fixture(scope="session")
def world() -> SyntheticWorld:
    return make_world(4000, 3000, seed=3)
