"""Normalizing-flow maps: a conditional affine map, then neural splines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import zuko
from jaxtyping import Float
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
from torch import Tensor, nn

from selfcal.config.calibration import MapConfig
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.maps import InvertibleMap
from selfcal.transport.rational_quadratic import SPLINE_BOUND, RationalQuadraticSpline, spline_parameters


@dataclass(frozen=True)
class CouplingLayer:
    """One coupling layer laid open: the coordinate that it moves, and the network that gives its knots."""

    moved: int
    conditioner: nn.Module
    bins: int
    library: str


def _masks(coordinates: int, transforms: int) -> list[Tensor]:
    """Each coordinate is moved in turn, given all others."""
    return [torch.arange(coordinates) == index % coordinates for index in range(transforms * coordinates)]


class ZukoSplines(nn.Module):
    """Rational-quadratic splines (arXiv 1906.04032) of zuko 1.6, layer after layer."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for layer in layers:
            last: nn.Linear = layer.hyper[-1]  # type: ignore[assignment,index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(c).call_and_ladj(x)
            total = total + log_det
        return x, total


class ZukoCouplings(ZukoSplines):
    """Each layer moves one coordinate, given all others."""

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__(
            [
                zuko.flows.GeneralCouplingTransform(
                    coordinates,
                    conditions,
                    mask=~moved,  # zuko's mask marks the coordinates that stay
                    **_zuko_options(config),
                )
                for moved in _masks(coordinates, config.transforms)
            ]
        )
        self.bins = config.spline_bins

    def inverse_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            coupling = layer(c)
            stays, moves = coupling.split(x)
            origin, log_slope = coupling.meta(stays).base.inverse_and_ladj(moves)
            total = total + log_slope.sum(1)
            x = coupling.merge(stays, origin, x.shape)
        return x, total

    def layers_in_order(self) -> list[CouplingLayer]:
        """The layers, first to last."""
        found = []
        for layer in self.layers:
            moved = int((~layer.mask).nonzero())  # type: ignore[operator]
            found.append(CouplingLayer(moved, layer.hyper, self.bins, "zuko"))  # type: ignore[arg-type]
        return found


class ZukoAutoregressive(ZukoSplines):
    """Each layer moves all coordinates, each given those before it; the order turns from layer to layer.

    T takes one pass of the network per layer, its inverse as many as there are coordinates.
    """

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        order = torch.arange(coordinates)
        super().__init__(
            [
                zuko.flows.MaskedAutoregressiveTransform(
                    coordinates,
                    conditions,
                    order=order if layer % 2 == 0 else order.flip(0),
                    **_zuko_options(config),
                )
                for layer in range(2 * config.transforms)
            ]
        )

    def inverse_and_log_det(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            transform, y = layer(c), x
            x, log_slopes = torch.zeros_like(y), y
            # Each pass gets one more coordinate right, and the last one also the slopes.
            for _ in range(transform.passes):
                x, log_slopes = transform.meta(x).base.inverse_and_ladj(y)
            total = total + log_slopes.sum(1)
        return x, total


def _zuko_options(config: MapConfig) -> dict[str, Any]:
    return {
        "univariate": RationalQuadraticSpline,
        "shapes": [(spline_parameters(config.spline_bins),)],
        "hidden_features": (config.hidden_width,) * 2,
        "activation": nn.SiLU,
    }


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


def build_splines(
    coordinates: int, conditions: int, config: MapConfig
) -> ZukoCouplings | ZukoAutoregressive | NflowsCouplings:
    """The splines that a configuration asks for."""
    if config.structure == "autoregressive":
        return ZukoAutoregressive(coordinates, conditions, config)
    if config.library == "nflows":
        return NflowsCouplings(coordinates, conditions, config)
    return ZukoCouplings(coordinates, conditions, config)


class FlowMap(InvertibleMap):
    """T = splines ∘ affine, both conditional on c and both the identity when new.

    The affine part carries what a detector does to first order (shift, scale,
    correlation); the splines carry the rest.
    """

    couplings: ZukoCouplings | ZukoAutoregressive | NflowsCouplings

    def __init__(self, coordinates: int, conditions: int, config: MapConfig) -> None:
        super().__init__()
        self.affine = AffineMap(coordinates, conditions, config.displacement_scale)
        self.couplings = build_splines(coordinates, conditions, config)
        self.price_of_splines = config.displacement_on == "splines"

    def forward(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        return self.couplings.forward_and_log_det(self.affine(coordinates, conditions), conditions)[0]

    def inverse_and_log_det(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"]]:
        _, outer, log_det = self._inverse(coordinates, conditions)
        return outer, log_det

    def inverse_and_origin(
        self, coordinates: Float[Tensor, "jets coordinates"], conditions: Float[Tensor, "jets conditions"]
    ) -> tuple[Float[Tensor, "jets coordinates"], Float[Tensor, " jets"], Float[Tensor, "jets coordinates"]]:
        """With ``displacement_on: splines`` the way has a price behind the affine map, before the splines."""
        inner, outer, log_det = self._inverse(coordinates, conditions)
        return outer, log_det, inner if self.price_of_splines else outer

    def _inverse(self, coordinates: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before the splines, before the affine map, and ln |det ∂T⁻¹/∂u|."""
        inner, log_det_splines = self.couplings.inverse_and_log_det(coordinates, conditions)
        outer, log_det_affine = self.affine.inverse_and_log_det(inner, conditions)
        return inner, outer, log_det_splines + log_det_affine

    def stiffness(self) -> Float[Tensor, ""]:
        return self.affine.stiffness()
