"""Normalizing-flow maps: a conditional affine map, then coupling neural splines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import zuko
from jaxtyping import Float
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
from torch import Tensor, nn

from selfcal.config.run import MapConfig
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.maps import CalibrationMap

SPLINE_BOUND = 5.0
"""Splines act within this many standard deviations; the identity continues outside."""


@dataclass(frozen=True)
class CouplingLayer:
    """One coupling layer laid open: the coordinate that it moves, and the network that gives its knots."""

    moved: int
    conditioner: nn.Module
    bins: int
    library: str


class Couplings(Protocol):
    """A stack of coupling splines, the identity when new."""

    def forward_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]: ...

    def inverse_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]: ...


def _masks(coordinates: int, transforms: int) -> list[Tensor]:
    """Each coordinate is moved in turn, given all others."""
    return [torch.arange(coordinates) == index % coordinates for index in range(transforms * coordinates)]


class ZukoCouplings(nn.Module):
    """Coupling rational-quadratic splines (1906.04032) of zuko 1.6."""

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        bins = config.spline_bins
        self.layers = nn.ModuleList(
            zuko.flows.GeneralCouplingTransform(
                coordinates,
                conditions,
                mask=~moved,  # zuko's mask marks the coordinates that stay
                univariate=_zuko_spline,
                shapes=[(bins,), (bins,), (bins - 1,)],
                hidden_features=(config.hidden_width,) * 2,
                activation=nn.SiLU,
            )
            for moved in _masks(coordinates, config.transforms)
        )
        for layer in self.layers:
            last: nn.Linear = layer.hyper[-1]  # type: ignore[assignment,index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def layers_in_order(self) -> list[CouplingLayer]:
        """The layers, first to last."""
        found = []
        for layer in self.layers:
            moved, bins = int((~layer.mask).nonzero()), int(layer.shapes[0][0])  # type: ignore[operator,index]
            found.append(CouplingLayer(moved, layer.hyper, bins, "zuko"))  # type: ignore[arg-type]
        return found

    def forward_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(c).call_and_ladj(x)
            total = total + log_det
        return x, total

    def inverse_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            x, log_det = layer(c).inv.call_and_ladj(x)
            total = total + log_det
        return x, total


def _zuko_spline(
    widths: Tensor, heights: Tensor, derivatives: Tensor
) -> zuko.transforms.MonotonicRQSTransform:
    return zuko.transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=SPLINE_BOUND)


class NflowsCouplings(nn.Module):
    """The same splines by nflows 0.14: an independent implementation as cross-check."""

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        min_derivative = 1e-3
        self.stack = CompositeTransform(
            [
                PiecewiseRationalQuadraticCouplingTransform(
                    mask=moved.int(),
                    transform_net_create_fn=lambda inputs, outputs: _ContextNetwork(
                        inputs + conditions, config.hidden_width, outputs
                    ),
                    num_bins=config.spline_bins,
                    tails="linear",
                    tail_bound=SPLINE_BOUND,
                    min_derivative=min_derivative,
                )
                for moved in _masks(coordinates, config.transforms)
            ]
        )
        # nflows takes softplus of the derivatives: unit slope is not at zero.
        unit_slope = math.log(math.expm1(1.0 - min_derivative))
        for layer in self.stack._transforms:
            last = layer.transform_net.network[-1]
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                bias = last.bias.view(-1, 3 * config.spline_bins - 1)
                bias.zero_()
                bias[:, 2 * config.spline_bins :] = unit_slope

    def layers_in_order(self) -> list[CouplingLayer]:
        """The layers, first to last."""
        return [
            CouplingLayer(
                int(layer.transform_features), layer.transform_net.network, layer.num_bins, "nflows"
            )
            for layer in self.stack._transforms
        ]

    def forward_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        moved, log_det = self.stack(x, c)
        return moved, log_det

    def inverse_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        moved, log_det = self.stack.inverse(x, c)
        return moved, log_det


class _ContextNetwork(nn.Module):
    """The conditioner that nflows calls with (inputs, context)."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        # nflows divides widths and heights by sqrt(hidden_features) where this attribute exists.
        self.hidden_features = width
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
        )

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        result: Tensor = self.network(torch.cat([inputs, context], dim=1))
        return result


CouplingsFactory = Callable[[int, int, MapConfig], nn.Module]


def zuko_couplings(coordinates: int, conditions: int, config: MapConfig) -> nn.Module:
    """Coupling splines by zuko."""
    return ZukoCouplings(coordinates, conditions, config)


def nflows_couplings(coordinates: int, conditions: int, config: MapConfig) -> nn.Module:
    """Coupling splines by nflows."""
    return NflowsCouplings(coordinates, conditions, config)


class FlowMap(CalibrationMap):
    """T = couplings ∘ affine, both conditional on c and both the identity when new.

    The affine part carries what a detector does to first order (shift, scale,
    correlation); the splines carry the rest.
    """

    couplings: ZukoCouplings | NflowsCouplings

    def __init__(
        self, coordinates: int, conditions: int, config: MapConfig, couplings: CouplingsFactory
    ) -> None:
        super().__init__()
        self.affine = AffineMap(coordinates, conditions, config.displacement_scale)
        self.couplings = couplings(coordinates, conditions, config)  # type: ignore[assignment]

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        return self.couplings.forward_and_log_det(self.affine(coordinates, conditions), conditions)[0]

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        inner, log_det_couplings = self.couplings.inverse_and_log_det(coordinates, conditions)
        outer, log_det_affine = self.affine.inverse_and_log_det(inner, conditions)
        return outer, log_det_couplings + log_det_affine

    def stiffness(self) -> Float[Tensor, ""]:
        return self.affine.stiffness()


__all__: Sequence[str] = ["FlowMap", "nflows_couplings", "zuko_couplings"]
