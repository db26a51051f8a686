"""The calibration as an ONNX file: simulated scores go in, scores as they would look in data come out.

The spline libraries search sorted knots and choose rows by masks, which an exporter cannot
follow; here the same splines stand as plain arithmetic (:class:`CouplingSpline`). Numbers
that float32 cannot hold are tensors throughout: the exporter rounds Python's floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import zuko
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError
from selfcal.export.onnx_graph import write_onnx
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import Calibration
from selfcal.transport.conditions import CONDITION_SCALE, unscaled_conditions
from selfcal.transport.flow_map import FlowMap, ZukoAutoregressive
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.rational_quadratic import SLOPE_MIN, SPLINE_BOUND
from selfcal.transport.switch_map import SwitchMap

Knots = tuple[Tensor, Tensor, Tensor]
"""x_k, y_k and slopes d_k of every jet, each (jets, knots)."""

KnotRule = Callable[[Tensor, int, int], Knots]
"""(output of the network, number of bins, width of the network) -> knots: a library's own rule."""


def rational_quadratic_spline(
    x: Float[Tensor, " jets"],
    knots_x: Float[Tensor, "jets knots"],
    knots_y: Float[Tensor, "jets knots"],
    slopes: Float[Tensor, "jets knots"],
) -> Float[Tensor, " jets"]:
    """Monotonic rational-quadratic spline through (x_k, y_k) with slopes d_k; the identity outside.

    With z = (x - x_k) / (x_{k+1} - x_k), s = (y_{k+1} - y_k) / (x_{k+1} - x_k),

        y = y_k + (y_{k+1} - y_k) (s z^2 + d_k z (1 - z)) / (s + (d_k + d_{k+1} - 2 s) z (1 - z))

    (arXiv 1906.04032, equation 4). The bin of x is chosen by a sum over all bins.
    """
    chosen = ((knots_x[:, :-1] < x[:, None]) & (x[:, None] <= knots_x[:, 1:])).to(x.dtype)
    inside = chosen.sum(dim=1) > 0

    def at(values: Tensor) -> Tensor:
        return (chosen * values).sum(dim=1)

    x0, y0, d0, d1 = at(knots_x[:, :-1]), at(knots_y[:, :-1]), at(slopes[:, :-1]), at(slopes[:, 1:])
    # Outside, a bin of unit size keeps the arithmetic finite.
    width = torch.where(inside, at(knots_x[:, 1:]) - x0, 1.0)
    height = torch.where(inside, at(knots_y[:, 1:]) - y0, 1.0)
    z = torch.where(inside, (x - x0) / width, 0.0)
    s = height / width
    y = y0 + height * (s * z.square() + d0 * z * (1 - z)) / (s + (d0 + d1 - 2 * s) * z * (1 - z))
    return torch.where(inside, y, x)


def _edges(shares: Float[Tensor, "jets bins"]) -> Float[Tensor, "jets knots"]:
    """Knots from -SPLINE_BOUND to SPLINE_BOUND with these shares of the distance between them."""
    return SPLINE_BOUND * (2 * F.pad(shares.cumsum(dim=1), (1, 0)) - 1)


def zuko_knots(raw: Float[Tensor, "jets parameters"], bins: int, width: int) -> Knots:
    """Shares softmax(w / (1 + |2 w / ln s|)); slopes exp(d / (1 + |d / ln s|)), one at the ends.

    s is ``SLOPE_MIN``, as in :func:`selfcal.transport.rational_quadratic.rational_quadratic`.
    """
    del width
    floor = raw.new_tensor(-math.log(SLOPE_MIN))
    shares = raw[:, : 2 * bins] / (1 + (2 * raw[:, : 2 * bins] / floor).abs())
    slopes = raw[:, 2 * bins :]
    slopes = F.pad(slopes / (1 + (slopes / floor).abs()), (1, 1)).exp()
    return _edges(shares[:, :bins].softmax(dim=1)), _edges(shares[:, bins:].softmax(dim=1)), slopes


def nflows_knots(raw: Float[Tensor, "jets parameters"], bins: int, width: int) -> Knots:
    """Shares 1e-3 + (1 - 1e-3 K) softmax(w / sqrt(width)); slopes 1e-3 + softplus(d), one at the ends."""
    smallest = raw.new_tensor(1e-3)
    shares = raw[:, : 2 * bins] / raw.new_tensor(math.sqrt(width))
    widths, heights = (
        smallest + (1 - bins * smallest) * part.softmax(dim=1)
        for part in (shares[:, :bins], shares[:, bins:])
    )
    slopes = raw[:, 2 * bins :]
    # softplus, which ONNX Runtime has in float32 only
    slopes = smallest + torch.log1p((-slopes.abs()).exp()) + 0.5 * (slopes + slopes.abs())
    return _edges(widths), _edges(heights), F.pad(slopes, (1, 1), value=1.0)


class CouplingSpline(nn.Module):
    """One coupling layer of all flavours: the spline of one coordinate, its knots from all others and c.

    ``conditioners`` are the trained networks of the library's layers, one per flavour: linear
    layers with SiLU between them. Every jet takes the weights of its own flavour.
    """

    def __init__(self, moved: int, conditioners: Sequence[nn.Module], rule: KnotRule, bins: int) -> None:
        super().__init__()
        self.moved, self.rule, self.bins = moved, rule, bins
        linear = [
            [m for m in network.modules() if isinstance(m, nn.Linear | zuko.nn.Linear)]
            for network in conditioners
        ]
        self.width = len(linear[0][0].bias)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer in zip(*linear, strict=True):
            self.weights.append(torch.stack([m.weight.detach().T for m in layer]))
            self.biases.append(torch.stack([m.bias.detach() for m in layer])[:, None])

    def forward(
        self,
        x: Float[Tensor, "jets coordinates"],
        c: Float[Tensor, "jets conditions"],
        flavour: Int[Tensor, " jets"],
    ) -> Float[Tensor, "jets coordinates"]:
        columns = list(x.unbind(dim=1))
        others = [column for index, column in enumerate(columns) if index != self.moved]
        raw = torch.cat([torch.stack(others, dim=1), c], dim=1)[:, None]
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            raw = raw @ weight[flavour] + bias[flavour]
            if depth + 1 < len(self.weights):
                raw = raw * raw.sigmoid()
        knots = self.rule(raw[:, 0], self.bins, self.width)
        columns[self.moved] = rational_quadratic_spline(columns[self.moved], *knots)
        return torch.stack(columns, dim=1)


class AffineGraph(nn.Module):
    """The :class:`~selfcal.transport.affine_map.AffineMap` of all flavours, row by row.

    y_i = e^{a_i} u_i + sum_{j<i} L_ij u_j + b_i.
    """

    def __init__(self, maps: Sequence[AffineMap]) -> None:
        super().__init__()
        self.dimension = maps[0].dimension
        self.constant = nn.Parameter(torch.stack([m.constant.detach() for m in maps]))
        self.slope = nn.Parameter(torch.stack([m.slope.detach() for m in maps]))

    def forward(
        self,
        u: Float[Tensor, "jets coordinates"],
        c: Float[Tensor, "jets conditions"],
        flavour: Int[Tensor, " jets"],
    ) -> Float[Tensor, "jets coordinates"]:
        d = self.dimension
        values = self.constant[flavour] + (c[:, None] @ self.slope[flavour])[:, 0]
        moved = [values[:, i].exp() * u[:, i] + values[:, d + i] for i in range(d)]
        below = ((row, column) for row in range(d) for column in range(row))
        for place, (row, column) in enumerate(below):
            moved[row] = moved[row] + values[:, 2 * d + place] * u[:, column]
        return torch.stack(moved, dim=1)


class FlowGraph(nn.Module):
    """The :class:`~selfcal.transport.flow_map.FlowMap` of all flavours, forward only, as plain arithmetic."""

    def __init__(self, flows: Sequence[FlowMap]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AffineGraph([flow.affine for flow in flows])])
        coupled = [flow.couplings for flow in flows if not isinstance(flow.couplings, ZukoAutoregressive)]
        for same_layer in zip(*(splines.layers_in_order() for splines in coupled), strict=True):
            first = same_layer[0]
            rule = zuko_knots if first.library == "zuko" else nflows_knots
            networks = [layer.conditioner for layer in same_layer]
            self.layers.append(CouplingSpline(first.moved, networks, rule, first.bins))

    def forward(
        self,
        u: Float[Tensor, "jets coordinates"],
        c: Float[Tensor, "jets conditions"],
        flavour: Int[Tensor, " jets"],
    ) -> Float[Tensor, "jets coordinates"]:
        for layer in self.layers:
            u = layer(u, c, flavour)
        return u


class EveryMap(nn.Module):
    """Maps of families that an exporter can follow as they are: all of them, and each jet keeps its own."""

    def __init__(self, maps: FlavourMaps) -> None:
        super().__init__()
        self.maps = maps.maps

    def forward(
        self,
        u: Float[Tensor, "jets coordinates"],
        c: Float[Tensor, "jets conditions"],
        flavour: Int[Tensor, " jets"],
    ) -> Float[Tensor, "jets coordinates"]:
        moved = u
        for index, transport in enumerate(self.maps):
            moved = torch.where((flavour == index)[:, None], transport(u, c), moved)
        return moved


def as_arithmetic(maps: FlavourMaps) -> nn.Module:
    """The maps as a module that an exporter can follow: (u, c, flavour 0 to 3) -> T(u | c).

    Raises
    ------
    ConfigError
        If the maps are of a family whose splines are not written out here.
    """
    for transport in (maps.of(index) for index in range(len(FLAVOURS))):
        coupled = isinstance(transport, FlowMap) and not isinstance(transport.couplings, ZukoAutoregressive)
        if isinstance(transport, FlowMap | SwitchMap) and not coupled:
            raise ConfigError(
                f"maps of the kind {type(transport).__name__} with these splines have no ONNX form",
                where="calibration.map",
                expected="family flow with structure coupling, residual, brenier or identity",
            )
    flows = [m for m in maps.maps if isinstance(m, FlowMap)]
    return FlowGraph(flows) if len(flows) == len(maps.maps) else EveryMap(maps)


class CalibratorGraph(nn.Module):
    """The map of each jet's own flavour on its scores; NaN for a jet without flavour label."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.frame = calibration.frame
        self.maps = as_arithmetic(calibration.nominal)

    def forward(
        self,
        log_probability: Float[Tensor, "jets classes"],
        flavour: Int[Tensor, " jets"],
        pt_gev: Float[Tensor, " jets"],
        eta: Float[Tensor, " jets"],
    ) -> Float[Tensor, "jets classes"]:
        """ln p of simulated jets as it would look in data, everything float64."""
        unscaled = torch.stack(unscaled_conditions(pt_gev, eta.abs(), torch), dim=1)
        known = (flavour >= 0) & (flavour < len(FLAVOURS))
        moved = self.maps(
            self.frame.enter(log_probability),
            unscaled / unscaled.new_tensor(CONDITION_SCALE),
            torch.where(known, flavour, 0),
        )
        return torch.where(known[:, None], self.frame.leave(moved), torch.nan)


def write_calibrator(calibration: Calibration, path: Path) -> Path:
    """Write the nominal maps as ONNX in float64; the number of jets is free.

    Inputs ``log_probability`` (jets, K), ``flavour`` (jets; 0 to 3 in the order of ``FLAVOURS``), ``pt_gev``
    and ``eta``; output ``calibrated_log_probability`` (jets, K), with K = 4 classes, or 3 for a tagger
    without tau class.
    """
    classes = FLAVOURS[: len(calibration.frame.mean) + 1]
    example = {
        "log_probability": torch.full((2, len(classes)), -math.log(len(classes)), dtype=torch.float64),
        "flavour": torch.zeros(2, dtype=torch.int64),
        "pt_gev": torch.full((2,), 45.0, dtype=torch.float64),
        "eta": torch.zeros(2, dtype=torch.float64),
    }
    output = "calibrated_log_probability"
    metadata = {
        "classes": list(classes),
        "flavours": list(FLAVOURS),
        "inputs": {
            "log_probability": "ln of the tagger's class probabilities, in the order of 'classes'",
            "flavour": "index of the true flavour in 'flavours': simulation only; -1 gives NaN",
            "pt_gev": "GeV",
            "eta": "",
        },
        "outputs": {output: "the same scores as they would look in data"},
    }
    axes = {name: {0: "jets"} for name in example}
    return write_onnx(path, CalibratorGraph(calibration), example, axes, [output], metadata)
