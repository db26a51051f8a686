"""Splines with value and slope at once: zuko's numbers, gradients of the formulas, both ways."""

from __future__ import annotations

import pytest
import torch
import zuko
from torch import Tensor

from selfcal.transport.rational_quadratic import (
    SPLINE_BOUND,
    RationalQuadraticSpline,
    rational_quadratic,
    spline_parameters,
)

JETS, COORDINATES = 400, 3


def drawn(bins: int) -> tuple[Tensor, Tensor]:
    """Bent splines, and points of which some lie beyond them."""
    random = torch.Generator().manual_seed(bins)
    raw = 2.0 * torch.randn(JETS, COORDINATES, spline_parameters(bins), generator=random, dtype=torch.float64)
    points = 3.0 * torch.randn(JETS, COORDINATES, generator=random, dtype=torch.float64)
    assert (points.abs() > SPLINE_BOUND).any()
    return raw.requires_grad_(), points.requires_grad_()


def by_zuko(raw: Tensor, value: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    bins = (raw.shape[-1] + 1) // 3
    spline = zuko.transforms.MonotonicRQSTransform(
        *raw.split([bins, bins, bins - 1], dim=-1), bound=SPLINE_BOUND
    )
    if not inverse:
        forward: tuple[Tensor, Tensor] = spline.call_and_ladj(value)
        return forward
    origin = spline.inv(value)
    return origin, -spline.call_and_ladj(origin)[1]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 4, 8])
def test_values_slopes_and_gradients_are_those_of_zuko(bins: int, *, inverse: bool) -> None:
    raw, points = drawn(bins)
    weights = torch.linspace(-1.0, 1.0, 2 * points.numel(), dtype=torch.float64).view(2, *points.shape)
    found = []
    for evaluate in (rational_quadratic, by_zuko):
        moved, log_slope = evaluate(raw, points, inverse=inverse)
        together = (weights[0] * moved + weights[1] * log_slope).sum()
        found.append((moved, log_slope, *torch.autograd.grad(together, (raw, points))))
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_are_those_of_finite_differences(*, inverse: bool) -> None:
    raw, points = (tensor[:20].detach().requires_grad_() for tensor in drawn(4))
    assert torch.autograd.gradcheck(lambda r, x: rational_quadratic(r, x, inverse=inverse), (raw, points))


@pytest.mark.parametrize("bins", [2, 8])
def test_the_inverse_undoes_the_spline_and_its_slope(bins: int) -> None:
    raw, points = drawn(bins)
    moved, log_slope = rational_quadratic(raw, points, inverse=False)
    back, log_slope_back = rational_quadratic(raw, moved, inverse=True)
    assert (back - points).abs().max() < 1e-10
    assert (log_slope + log_slope_back).abs().max() < 1e-9
    assert (moved - points).abs().mean() > 0.1


def test_beyond_the_bound_nothing_moves_and_parameters_have_no_say() -> None:
    raw, _ = drawn(4)
    beyond = torch.full((JETS, COORDINATES), SPLINE_BOUND + 1e-6, dtype=torch.float64)
    beyond[::2] *= -1
    beyond.requires_grad_()
    for inverse in (False, True):
        moved, log_slope = rational_quadratic(raw, beyond, inverse=inverse)
        assert torch.equal(moved, beyond)
        assert not log_slope.any()
        by_raw, by_value = torch.autograd.grad((moved + log_slope).sum(), (raw, beyond))
        assert not by_raw.any()
        assert torch.equal(by_value, torch.ones_like(beyond))


def test_what_is_not_a_number_stays_so() -> None:
    raw, points = drawn(4)
    broken = points.detach().clone()
    broken[0, 0] = float("nan")
    for inverse in (False, True):
        for found in rational_quadratic(raw, broken, inverse=inverse):
            assert found.isnan().sum() == 1
            assert found[0, 0].isnan()


def test_parameters_that_are_not_numbers_are_no_identity() -> None:
    """A diverged network is noticed by its loss."""
    raw, points = drawn(4)
    broken = torch.full_like(raw, float("nan"))
    for inverse in (False, True):
        for found in rational_quadratic(broken, points, inverse=inverse):
            assert found[points > -SPLINE_BOUND].isnan().all()


def test_bins_join_with_their_slopes() -> None:
    raw = drawn(4)[0][:1, 0].detach()
    edges = SPLINE_BOUND * (2 * torch.softmax(_softened(raw[:, :4]), dim=1).cumsum(1) - 1)
    step = 1e-9
    for edge in edges[0, :-1]:
        near = torch.stack([edge - step, edge + step])
        moved, log_slope = rational_quadratic(raw.expand(2, -1), near, inverse=False)
        assert (moved[1] - moved[0]).abs() < 1e-5
        assert (log_slope[1] - log_slope[0]).abs() < 1e-5


def _softened(raw: Tensor) -> Tensor:
    return raw / (1 + (2 * raw / torch.tensor(1e-3).log()).abs())


def test_a_flow_of_these_splines_is_zukos_flow() -> None:
    """The same parameters, the same density: what was stored with one opens with the other."""
    shape = {"transforms": 2, "hidden_features": (16, 16)}
    stock = zuko.flows.NSF(3, 2, bins=4, **shape).double()
    ours = zuko.flows.MAF(
        3, 2, univariate=RationalQuadraticSpline, shapes=[(spline_parameters(4),)], **shape
    ).double()
    ours.load_state_dict(stock.state_dict())
    random = torch.Generator().manual_seed(5)
    points = 2.0 * torch.randn(200, 3, generator=random, dtype=torch.float64)
    context = torch.randn(200, 2, generator=random, dtype=torch.float64)
    assert torch.allclose(ours(context).log_prob(points), stock(context).log_prob(points), rtol=0, atol=1e-11)
    noise = torch.randn(200, 3, generator=random, dtype=torch.float64)
    assert torch.allclose(
        ours(context).transform.inv(noise), stock(context).transform.inv(noise), rtol=0, atol=1e-9
    )
