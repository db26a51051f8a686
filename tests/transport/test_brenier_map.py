"""Newton's way back through a Brenier map: its steps are damped, and it says where it did not arrive."""

from __future__ import annotations

import pytest
import torch

from selfcal.config.calibration import MapConfig
from selfcal.errors import FitError
from selfcal.transport import brenier_map
from selfcal.transport.brenier_map import BrenierMap
from selfcal.transport.choice import build_maps


@pytest.fixture
def bent() -> BrenierMap:
    """A map far from the identity."""
    built = build_maps(MapConfig(family="brenier"), 3, 2).of(0).double()
    assert isinstance(built, BrenierMap)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return built


@pytest.fixture
def points() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return 2.0 * torch.randn(20, 3, **draw), torch.randn(20, 2, **draw)


def newton_step(bent: BrenierMap, u: torch.Tensor, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    moved, hessian = bent._gradient_and_hessian(u, c)
    return torch.linalg.solve(hessian, (y - moved)[:, :, None])[:, :, 0]


@torch.no_grad()
def test_a_step_too_far_is_halved_and_one_uphill_is_hardly_made(bent: BrenierMap, points) -> None:
    u, c = points
    y = u + 1.0
    step = newton_step(bent, u, y, c)
    far = bent._damping(u, 64.0 * step, y, c)[:, 0]
    assert (far <= 0.125).all()
    assert torch.equal(far.log2(), far.log2().round())
    uphill = bent._damping(u, -step, y, c)[:, 0]
    assert (uphill == 2.0**-30).all()


def test_too_few_steps_are_said_with_the_number_of_jets(bent: BrenierMap, points, monkeypatch) -> None:
    monkeypatch.setattr(brenier_map, "NEWTON_STEPS", 1)
    u, c = points
    with pytest.raises(FitError, match="the inverse of a map was not found for 20 of 20 jets") as caught:
        bent.inverse_and_log_det(bent(u, c).detach() + 1.0, c)
    assert caught.value.where == "BrenierMap"
    assert caught.value.expected == "|T(u) - y| below 1e-11 after 1 steps"


def test_only_the_conditions_move_the_kinks(bent: BrenierMap) -> None:
    """Constants come from the network of the conditions: a second one would be left to chance."""
    assert {name for name, _ in bent.named_parameters() if name.startswith(("inner", "skip"))} == {
        "inner.weight",
        "skip.weight",
    }
