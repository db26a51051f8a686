"""Monotonic rational-quadratic splines (arXiv 1906.04032): value and slope at once, both ways."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import zuko
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SPLINE_BOUND = 5.0
"""Splines act within this many standard deviations; the identity continues outside."""

SLOPE_MIN = 1e-3
"""Slopes stay above this, and the widths of two bins, or their heights, within its inverse of each other."""

SOFTENING_OF_SIDES = 2 / -math.log(SLOPE_MIN)
SOFTENING_OF_SLOPES = 1 / -math.log(SLOPE_MIN)


def spline_parameters(bins: int) -> int:
    """Numbers that one spline takes: widths and heights of its bins, slopes at the knots between them."""
    return 3 * bins - 1


def rational_quadratic(
    raw: Float[Tensor, "*batch parameters"], value: Float[Tensor, "*batch"], *, inverse: bool
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The spline y = f(x), or x = f⁻¹(y), and the logarithm of the slope in that direction.

    ``raw`` are unconstrained widths (K), heights (K) and slopes at the inner knots (K - 1) of K bins, in the
    parametrisation of zuko 1.6 (zeros are the identity): shares softmax(u / (1 + |2 u / ln s|)) of [-B, B]
    and slopes exp(d / (1 + |d / ln s|)), with s = ``SLOPE_MIN`` and B = ``SPLINE_BOUND``. In the bin from
    (x₀, y₀) to (x₁, y₁), with end slopes d₀, d₁, mean slope m and z = (x - x₀) / (x₁ - x₀),

    f  = y₀ + (y₁ - y₀) [m z² + d₀ z(1-z)] / [m + (d₀ + d₁ - 2m) z(1-z)]
    f' = m² [2m z(1-z) + d₀ (1-z)² + d₁ z²] / [m + (d₀ + d₁ - 2m) z(1-z)]²

    Gradients are those of these formulas, the inverse's by the implicit function theorem; second derivatives
    are not available. This is the arithmetic in which fits of maps spend their time: values and slope share
    one search and one set of knots, and bins come first in memory, so that a processor works on many jets
    at a time.
    """
    rows = raw.reshape(-1, raw.shape[-1])
    moved, log_slope = _RationalQuadratic.apply(rows, value.reshape(-1), inverse)  # type: ignore[no-untyped-call]
    return moved.reshape(value.shape), log_slope.reshape(value.shape)


class RationalQuadraticSpline(zuko.transforms.Transform):  # type: ignore[misc]
    """:func:`rational_quadratic` as an element-wise transform of zuko's flows."""

    domain = torch.distributions.constraints.real
    codomain = torch.distributions.constraints.real
    bijective = True
    sign = +1

    def __init__(self, raw: Float[Tensor, "*batch parameters"]) -> None:
        super().__init__()
        self.raw = raw

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """ln f'(x)."""
        del y
        return self.call_and_ladj(x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and ln f'(x)."""
        return rational_quadratic(self.raw, x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """f⁻¹(y) and ln (f⁻¹)'(y)."""
        return rational_quadratic(self.raw, y, inverse=True)


class _Kept(NamedTuple):
    """What gradients need: of all bins, of every jet's own bin, and where in it the jet is."""

    inside: Tensor
    softening: Tensor
    shares: Tensor
    own_bin: Tensor
    starts: Tensor
    extents: Tensor
    slopes: Tensor
    slope_softening: Tensor
    z: Tensor


class _Curve(NamedTuple):
    """f in its bin: m, d₀ + d₁ - 2m, z(1-z), both sums in f', the share of the bin's height, and f'."""

    mean: Tensor
    bend: Tensor
    mixed: Tensor
    below: Tensor
    above: Tensor
    height: Tensor
    slope: Tensor


def _curve(z: Tensor, extents: Tensor, slopes: Tensor) -> _Curve:
    mean = extents[1] / extents[0]
    bend = slopes[0] + slopes[1] - 2.0 * mean
    mixed = z * (1.0 - z)
    below = mean + bend * mixed
    above = 2.0 * mean * mixed + slopes[0] * (1.0 - z).square() + slopes[1] * z.square()
    return _Curve(
        mean=mean,
        bend=bend,
        mixed=mixed,
        below=below,
        above=above,
        height=(mean * z.square() + slopes[0] * mixed) / below,
        slope=mean.square() * above / below.square(),
    )


class _RationalQuadratic(torch.autograd.Function):
    """Of (M, 3K - 1) parameters and (M,) values; inside, bins come before jets: (K, M)."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        bins = (raw.shape[1] + 1) // 3
        by_bin = raw.t().contiguous()
        sides = by_bin[: 2 * bins].view(2, bins, -1)
        softening = sides.abs().mul_(SOFTENING_OF_SIDES).add_(1)
        shares = torch.softmax(sides / softening, dim=1)
        knots = torch.cumsum(shares, dim=1).mul_(2.0 * SPLINE_BOUND).sub_(SPLINE_BOUND)
        searched = knots[int(inverse)]
        # So written that what is not a number is inside, and stays so.
        inside = ~((value <= -SPLINE_BOUND) | (value > searched[-1]))
        at = value.clamp(-SPLINE_BOUND, SPLINE_BOUND)
        index = (searched[:-1] < at).sum(0)
        chosen = index.expand(2, 1, -1)
        extents = shares.gather(1, chosen)[:, 0].mul_(2.0 * SPLINE_BOUND)
        starts = knots.gather(1, chosen)[:, 0] - extents
        # The slopes at the outermost knots are one: their parameters would be zero.
        raw_slopes = nn.functional.pad(by_bin[2 * bins :], (0, 0, 1, 1))
        raw_slopes = raw_slopes.gather(0, torch.stack([index, index + 1]))
        slope_softening = raw_slopes.abs().mul_(SOFTENING_OF_SLOPES).add_(1)
        slopes = raw_slopes.div_(slope_softening).exp_()
        if inverse:
            z = _share_of_bin((at - starts[1]) / extents[1], extents, slopes)
        else:
            z = (at - starts[0]) / extents[0]
        curve = _curve(z, extents, slopes)
        ctx.inverse = inverse
        kept = _Kept(
            inside=inside,
            softening=softening,
            shares=shares,
            own_bin=index,
            starts=starts,
            extents=extents,
            slopes=slopes,
            slope_softening=slope_softening,
            z=z,
        )
        ctx.save_for_backward(*kept)
        moved = starts[0] + extents[0] * z if inverse else starts[1] + extents[1] * curve.height
        log_slope = -curve.slope.log() if inverse else curve.slope.log()
        return torch.where(inside, moved, value), torch.where(inside, log_slope, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """With r the share of the bin's height below y: f = y₀ + (y₁ - y₀) r(z, m, d₀, d₁)."""
        kept = _Kept(*ctx.saved_tensors)
        inside, z, extents, slopes = kept.inside, kept.z, kept.extents, kept.slopes
        mean, bend, mixed, below, above, height, slope = _curve(z, extents, slopes)
        of_moved, of_log_slope = upstream[0] * inside, upstream[1] * inside
        tilt, other = 1.0 - 2.0 * z, 1.0 - z
        # ln f' by z, m, d0 and d1
        log_by_z = 2.0 * (mean * tilt - slopes[0] * other + slopes[1] * z) / above - 2.0 * bend * tilt / below
        log_by_mean = 2.0 / mean + 2.0 * mixed / above - 2.0 * (1.0 - 2.0 * mixed) / below
        log_by_slope = -2.0 * mixed / below
        if ctx.inverse:
            # x = f⁻¹(y), ln (f⁻¹)' = -ln f'(x): dx = (dy - ∂f) / f'
            of_log_slope = -of_log_slope
            of_value = (of_moved + of_log_slope * log_by_z / extents[0]) / slope
            of_moved = -of_value
        rise = of_moved * extents[1]
        by_z = rise * slope / mean + of_log_slope * log_by_z
        by_mean = rise * (z.square() - height * (1.0 - 2.0 * mixed)) / below + of_log_slope * log_by_mean
        by_slopes = torch.stack(
            [
                rise * mixed * (1.0 - height) / below
                + of_log_slope * (other.square() / above + log_by_slope),
                -rise * mixed * height / below + of_log_slope * (z.square() / above + log_by_slope),
            ]
        )
        if not ctx.inverse:
            of_value = by_z / extents[0]
        # Ends of the bin: x₀ and x₁ move z and the mean slope, y₀ and y₁ the value and the mean slope.
        bent = by_mean * mean
        by_starts = torch.stack(
            [(bent - by_z * other) / extents[0], of_moved * (1.0 - height) - by_mean / extents[0]]
        )
        by_ends = torch.stack([-(bent + by_z * z) / extents[0], of_moved * height + by_mean / extents[0]])
        bins = kept.shares.shape[1]
        number = torch.arange(bins, device=z.device)[:, None]
        by_shares = torch.where(number < kept.own_bin, (by_starts + by_ends)[:, None], 0.0)
        by_shares = torch.where(number == kept.own_bin, by_ends[:, None], by_shares).mul_(2.0 * SPLINE_BOUND)
        common = by_starts * (kept.starts + SPLINE_BOUND) + by_ends * (kept.starts + extents + SPLINE_BOUND)
        by_sides = (by_shares - common[:, None]).mul_(kept.shares).div_(kept.softening.square())
        by_knots = z.new_zeros(bins + 1, len(z))
        by_knots.scatter_(
            0,
            torch.stack([kept.own_bin, kept.own_bin + 1]),
            by_slopes * slopes / kept.slope_softening.square(),
        )
        by_raw = torch.cat([by_sides.view(2 * bins, -1), by_knots[1:bins]]).t()
        return by_raw, torch.where(inside, of_value, upstream[0]), None


def _share_of_bin(height: Tensor, extents: Tensor, slopes: Tensor) -> Tensor:
    """z at the share r = ``height`` of the bin's height: the root of a z² + b z - m r in [0, 1]."""
    mean = extents[1] / extents[0]
    bend = slopes[0] + slopes[1] - 2.0 * mean
    a = mean - slopes[0] + bend * height
    b = slopes[0] - bend * height
    c = mean * height
    return 2 * c / (b + (b.square() + 4 * a * c).sqrt())
