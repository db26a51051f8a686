"""Maps between Gaussians, where the optimal transport is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from selfcal.config.calibration import MapConfig
from selfcal.transport.averaged_descent import DistanceSchedule, averaged_descent
from selfcal.transport.between import fit_between
from selfcal.transport.choice import build_maps
from selfcal.transport.maps import CalibrationMap
from selfcal.transport.optimality import optimal_cost


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


START = tensor([1.0, 0.3], [0.3, 0.8])
END = tensor([1.3, -0.2], [-0.2, 0.7])
SHIFT, SLOPE = tensor(2.0, -1.5), tensor([0.3, 0.1])


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T


def optimal(u: Tensor, c: Tensor) -> Tensor:
    """T(u | c) = A u + b + B c with A = S⁻½ (S½ S' S½)½ S⁻½ for covariances S and S'."""
    half = root(START)
    inverse = torch.linalg.inv(half)
    return u @ (inverse @ root(half @ END @ half) @ inverse) + SHIFT + c @ SLOPE


@dataclass(frozen=True)
class Gaussians:
    start: tuple[Tensor, Tensor]
    end: tuple[Tensor, Tensor]


def draw(n: int, seed: int) -> Gaussians:
    options = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    c, c_end = torch.randn(n, 1, **options), torch.randn(n, 1, **options)
    u = torch.randn(n, 2, **options) @ torch.linalg.cholesky(START).T
    u_end = torch.randn(n, 2, **options) @ torch.linalg.cholesky(END).T + SHIFT + c_end @ SLOPE
    return Gaussians((u, c), (u_end, c_end))


def fitted(config: MapConfig, schedule: DistanceSchedule) -> CalibrationMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transport = build_maps(config, 2, 1).of(0)
    known = draw(100_000, seed=2)
    generator = torch.Generator().manual_seed(3)
    fit_between(transport, known.start, known.end, schedule, generator, condition_length=1.0)
    return transport


@pytest.mark.parametrize(("family", "steps", "rate"), [("brenier", 600, 0.1), ("residual", 1000, 0.03)])
def test_between_gaussians_the_map_is_the_optimal_one(family: str, steps: int, rate: float) -> None:
    """Within 2 % of the displacement, on jets that the fit did not see; cost within 5 % of the exact one."""
    config = MapConfig(family=family, hidden_width=8, displacement_scale=1.0)  # type: ignore[arg-type]
    transport = fitted(config, DistanceSchedule(steps, 384, rate))
    u, c = draw(2000, seed=77).start
    moved, wanted = transport(u, c), optimal(u, c)
    error = (moved - wanted).square().sum(1).mean().sqrt()
    assert error <= 0.02 * (wanted - u).square().sum(1).mean().sqrt()

    u, fixed = u[:800], torch.full_like(c[:800], 0.5)
    moved = transport(u, fixed)
    cost = float((moved - u).square().sum(1).mean())
    assert cost <= 1.05 * optimal_cost(u.numpy(), moved.numpy())


@pytest.mark.parametrize(
    "settings",
    [
        {"family": "flow"},
        {"family": "flow", "structure": "autoregressive"},
        {"family": "flow", "library": "nflows"},
        {"family": "switch"},
        {"family": "brenier"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_maximum_likelihood_pushes_the_moments_to_where_they_belong(settings: dict[str, str]) -> None:
    """ln p(T⁻¹ y) + ln |det ∂T⁻¹/∂y| with the known density p: the derivative of the inverse is used."""
    config = MapConfig(hidden_width=8, **settings)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transport = build_maps(config, 2, 1).invertible(0)
    known = draw(40_000, seed=2)
    generator = torch.Generator().manual_seed(3)
    start = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), START)

    def loss() -> Tensor:
        rows = torch.randint(40_000, (1000,), generator=generator)
        inner, log_det = transport.inverse_and_log_det(known.end[0][rows], known.end[1][rows])
        return -(start.log_prob(inner) + log_det).mean()

    averaged_descent(list(transport.parameters()), loss, DistanceSchedule(200, 1000, 0.03))
    u, c = draw(20_000, seed=77).start
    with torch.no_grad():
        moved = transport(u, c) - c @ SLOPE
    assert (moved.mean(0) - SHIFT).abs().max() < 0.05
    assert (moved.T.cov() - END).abs().max() < 0.07


def test_families_say_why_jets_move_no_farther_than_they_must() -> None:
    said = {
        family: build_maps(MapConfig(family=family), 2, 1).of(0).minimality  # type: ignore[arg-type]
        for family in ("brenier", "flow", "residual", "switch")
    }
    assert said == {
        "brenier": "by construction",
        "flow": "by its price",
        "residual": "by its price",
        "switch": "none",
    }
