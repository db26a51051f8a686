"""The calibration as an ONNX file: simulated scores go in, scores as they would look in data come out.

ONNX knows no searching of sorted knots, no rows chosen by a mask, and the spline
libraries do both; here the same splines stand as plain arithmetic (:class:`CouplingSpline`).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfcal.data.flavours import FLAVOURS
from selfcal.export.onnx_graph import write_onnx
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import Calibration
from selfcal.transport.conditions import condition_columns
from selfcal.transport.flow_map import SPLINE_BOUND, FlowMap, NflowsCouplings
from selfcal.transport.maps import CalibrationMap


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


class CouplingSpline(nn.Module):
    """One coupling layer: the spline of one coordinate, its knots from all others and c.

    ``conditioner`` is the trained network of the library's layer; ``knots`` turn its
    output into (x_k, y_k, d_k) by that library's own rule.
    """

    def __init__(self, moved: int, conditioner: nn.Module, bins: int, *, of_nflows: bool, width: int) -> None:
        super().__init__()
        self.moved, self.conditioner, self.bins = moved, conditioner, bins
        self.of_nflows, self.width = of_nflows, width

    def forward(
        self, x: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        columns = list(x.unbind(dim=1))
        others = [column for index, column in enumerate(columns) if index != self.moved]
        raw = self.conditioner(torch.cat([torch.stack(others, dim=1), c], dim=1))
        knots = self._nflows_knots(raw) if self.of_nflows else self._zuko_knots(raw)
        columns[self.moved] = rational_quadratic_spline(columns[self.moved], *knots)
        return torch.stack(columns, dim=1)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return raw[:, : self.bins], raw[:, self.bins : 2 * self.bins], raw[:, 2 * self.bins :]

    def _zuko_knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax of w / (1 + |2 w / ln 1e-3|); slopes exp of d / (1 + |d / ln 1e-3|), one at the ends."""
        widths, heights, slopes = self._split(raw)
        floor = abs(math.log(1e-3))
        widths, heights = (v / (1 + (2 * v / floor).abs()) for v in (widths, heights))
        slopes = F.pad(slopes / (1 + (slopes / floor).abs()), (1, 1)).exp()
        return _edges(widths.softmax(dim=1)), _edges(heights.softmax(dim=1)), slopes

    def _nflows_knots(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax of w / sqrt(network width), each at least 1e-3; slopes 1e-3 + softplus(d), one at the ends."""
        widths, heights, slopes = self._split(raw)
        share = 1 - 1e-3 * self.bins
        widths, heights = (
            1e-3 + share * (v / math.sqrt(self.width)).softmax(dim=1) for v in (widths, heights)
        )
        slopes = F.pad(1e-3 + F.softplus(slopes), (1, 1), value=1.0)
        return _edges(widths), _edges(heights), slopes


def _edges(shares: Float[Tensor, "jets bins"]) -> Float[Tensor, "jets knots"]:
    """Knots from -SPLINE_BOUND to SPLINE_BOUND with these shares of the distance between them."""
    return SPLINE_BOUND * (2 * F.pad(shares.cumsum(dim=1), (1, 0)) - 1)


class AffineGraph(nn.Module):
    """:class:`~selfcal.transport.affine_map.AffineMap` row by row: y_i = e^{a_i} u_i + sum_{j<i} L_ij u_j + b_i."""

    def __init__(self, affine: AffineMap) -> None:
        super().__init__()
        self.affine = affine

    def forward(
        self, u: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        d = self.affine.dimension
        values = self.affine.constant + c @ self.affine.slope
        moved = [values[:, i].exp() * u[:, i] + values[:, d + i] for i in range(d)]
        below = ((row, column) for row in range(d) for column in range(row))
        for place, (row, column) in enumerate(below):
            moved[row] = moved[row] + values[:, 2 * d + place] * u[:, column]
        return torch.stack(moved, dim=1)


class FlowGraph(nn.Module):
    """A :class:`~selfcal.transport.flow_map.FlowMap`, forward only, as plain arithmetic."""

    def __init__(self, flow: FlowMap) -> None:
        super().__init__()
        self.layers = nn.ModuleList([AffineGraph(flow.affine), *_coupling_layers(flow)])

    def forward(
        self, u: Float[Tensor, "jets coordinates"], c: Float[Tensor, "jets conditions"]
    ) -> Float[Tensor, "jets coordinates"]:
        for layer in self.layers:
            u = layer(u, c)
        return u


def _coupling_layers(flow: FlowMap) -> list[CouplingSpline]:
    couplings = flow.couplings
    if isinstance(couplings, NflowsCouplings):
        return [
            CouplingSpline(
                int(layer.transform_features),
                layer.transform_net.network,
                layer.num_bins,
                of_nflows=True,
                width=layer.transform_net.hidden_features,
            )
            for layer in couplings.stack._transforms
        ]
    layers = []
    for layer in couplings.layers:
        moved, bins = int((~layer.mask).nonzero()), int(layer.shapes[0][0])  # type: ignore[operator,index]
        layers.append(CouplingSpline(moved, layer.hyper, bins, of_nflows=False, width=0))  # type: ignore[arg-type]
    return layers


def as_arithmetic(calibration_map: CalibrationMap) -> nn.Module:
    """The map as a module that an exporter can follow: (u, c) -> T(u | c)."""
    return FlowGraph(calibration_map) if isinstance(calibration_map, FlowMap) else calibration_map


class CalibratorGraph(nn.Module):
    """The map of each jet's own flavour on its scores; NaN for a jet without flavour label."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.frame = calibration.frame
        self.maps = nn.ModuleList(as_arithmetic(calibration.nominal.of(k)) for k in range(len(FLAVOURS)))

    def forward(
        self,
        log_probability: Float[Tensor, "jets classes"],
        flavour: Int[Tensor, " jets"],
        pt_gev: Float[Tensor, " jets"],
        eta: Float[Tensor, " jets"],
    ) -> Float[Tensor, "jets classes"]:
        """ln p of simulated jets as it would look in data, everything float64."""
        u = self.frame.enter(log_probability)
        c = torch.stack(condition_columns(pt_gev, eta.abs(), torch), dim=1)
        moved = torch.full_like(u, torch.nan)
        for index, transport in enumerate(self.maps):
            moved = torch.where((flavour == index)[:, None], transport(u, c), moved)
        return self.frame.leave(moved)


def write_calibrator(calibration: Calibration, path: Path) -> Path:
    """Write the nominal maps as ONNX in float64; the number of jets is free.

    Inputs ``log_probability`` (jets, 4), ``flavour`` (jets; 0 to 3 in class order), ``pt_gev``
    and ``eta``; output ``calibrated_log_probability`` (jets, 4).
    """
    example = {
        "log_probability": torch.full((2, len(FLAVOURS)), -math.log(len(FLAVOURS)), dtype=torch.float64),
        "flavour": torch.zeros(2, dtype=torch.int64),
        "pt_gev": torch.full((2,), 45.0, dtype=torch.float64),
        "eta": torch.zeros(2, dtype=torch.float64),
    }
    output = "calibrated_log_probability"
    metadata = {
        "classes": list(FLAVOURS),
        "inputs": {
            "log_probability": "natural logarithm of the tagger's class probabilities, in the order of 'classes'",
            "flavour": "index of the true class: simulation only; -1 gives NaN",
            "pt_gev": "GeV",
            "eta": "",
        },
        "outputs": {output: "the same scores as they would look in data"},
    }
    axes = {name: {0: "jets"} for name in example}
    return write_onnx(path, CalibratorGraph(calibration), example, axes, [output], metadata)
