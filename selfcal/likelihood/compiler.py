"""A pyhf workspace walked through once: its bins, cells and parameters, and what acts on what.

Defaults, names and special cases are those of pyhf 0.7: entry i of a modifier with one parameter per bin is
``name[i]``; a staterror of one name in several channels counts their bins in alphabetical order of the
channels; the factor of a bin without content or without error is fixed and keeps a constraint of unit
width; the measurement's parameter settings override start, bounds, constraint and ``fixed``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfcal.errors import FitError

Constraint = Literal["none", "normal", "poisson"]

_CONSTRAINED_BOUNDS = (-5.0, 5.0)
_GAMMA_BOUNDS = (1e-10, 10.0)
_FACTOR_BOUNDS = (0.0, 10.0)
_SHARED_CONSTRAINT = {"normsys": "alpha", "histosys": "alpha"}
"""Modifier types whose parameters may be shared by name; all others only with their own type."""


@dataclass(frozen=True)
class Parameter:
    """One scalar parameter.

    ``centre`` and ``width`` describe its constraint and are None where it is free: mean and σ of a normal
    one; a/τ and 1/√τ of a Poisson one with auxiliary count a and expectation τ·γ.
    """

    name: str
    start: float
    lower: float
    upper: float
    fixed: bool
    centre: float | None
    width: float | None
    constraint: Constraint = "none"


@dataclass(frozen=True)
class Cell:
    """What one sample puts into one bin of one channel."""

    channel: str
    sample: str
    bin: int


@dataclass(frozen=True)
class _Family:
    """Defaults of the parameters that share one name."""

    kind: str
    starts: Sequence[float] | None
    bounds: Sequence[Sequence[float]] | None
    fixed: Sequence[bool]
    constraint: Constraint = "none"
    centres: Sequence[float] | None = None
    widths: Sequence[float] | None = None
    scalar: bool = True


def find_measurement(workspace: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The measurement of that name, or the first.

    Raises
    ------
    FitError
        If there is none of that name.
    """
    measurements: list[Mapping[str, Any]] = workspace["measurements"]
    if name is None:
        return measurements[0]
    for measurement in measurements:
        if measurement["name"] == name:
            return measurement
    raise FitError(
        f"the workspace has no measurement '{name}'",
        expected="one of " + ", ".join(f"'{one['name']}'" for one in measurements),
    )


class Compiled:
    """The lists that :class:`selfcal.likelihood.histfactory.HistFactory` turns into tensors.

    Attributes
    ----------
    cells, nominal, bin_of_cell : per cell; cells in which nothing can ever be expected are left out
    factors : per cell, indices of the parameters that multiply it
    shifts : per cell, parameter index -> (hi − nominal, lo − nominal)
    scales : per cell, parameter index -> (hi, lo)
    """

    def __init__(self, workspace: Mapping[str, Any], measurement: str | None = None) -> None:
        settings = find_measurement(workspace, measurement)["config"]["parameters"]
        self._settings = {entry["name"]: entry for entry in settings}
        self._families: dict[str, _Family] = {}
        self.parameters: dict[str, Parameter] = {}
        self._positions: dict[str, int] = {}
        self.cells: list[Cell] = []
        self.nominal: list[float] = []
        self.bin_of_cell: list[int] = []
        self.factors: list[list[int]] = []
        self.shifts: list[dict[int, tuple[float, float]]] = []
        self.scales: list[dict[int, tuple[float, float]]] = []
        self.channels: dict[str, slice] = {}
        self.observed: list[float] = []
        observations = {entry["name"]: entry["data"] for entry in workspace["observations"]}
        self._staterror = _stat_errors(workspace["channels"])
        for channel in workspace["channels"]:
            first, counts = len(self.observed), observations.get(channel["name"])
            where = f"channel '{channel['name']}'"
            if counts is None:
                raise FitError("a channel has no observation", where=where)
            self.channels[channel["name"]] = slice(first, first + len(counts))
            self.observed += [float(count) for count in counts]
            for sample in channel["samples"]:
                if len(sample["data"]) != len(counts):
                    raise FitError(
                        f"sample '{sample['name']}' has {len(sample['data'])} bins",
                        where=where,
                        expected=f"{len(counts)}, as the observation has",
                    )
                self._add_sample(channel["name"], first, sample)

    def _add_sample(self, channel: str, first_bin: int, sample: Mapping[str, Any]) -> None:
        # Of two modifiers with the same type and name the last one counts, as in pyhf.
        modifiers = list({(m["type"], m["name"]): m for m in sample["modifiers"]}.values())
        indices = [self._declare(channel, sample, modifier) for modifier in modifiers]
        for k, nominal in enumerate(sample["data"]):
            shifted = [m for m in modifiers if m["type"] == "histosys" and _shifts(m, k, nominal)]
            if nominal == 0 and not shifted:
                continue
            self.cells.append(Cell(channel, sample["name"], k))
            self.nominal.append(float(nominal))
            self.bin_of_cell.append(first_bin + k)
            factors: list[int] = []
            shifts: dict[int, tuple[float, float]] = {}
            scales: dict[int, tuple[float, float]] = {}
            for modifier, own in zip(modifiers, indices, strict=True):
                index, data = own[k if len(own) > 1 else 0], modifier["data"]
                if modifier["type"] == "histosys":
                    shifts[index] = (data["hi_data"][k] - nominal, data["lo_data"][k] - nominal)
                elif modifier["type"] == "normsys":
                    scales[index] = (float(data["hi"]), float(data["lo"]))
                else:
                    factors.append(index)
            self.factors.append(factors)
            self.shifts.append(shifts)
            self.scales.append(scales)

    def _declare(self, channel: str, sample: Mapping[str, Any], modifier: Mapping[str, Any]) -> list[int]:
        """Indices of the parameters of a modifier in this channel: one, or one per bin."""
        kind, name = modifier["type"], modifier["name"]
        where = f"channel '{channel}', sample '{sample['name']}', modifier '{name}'"
        size = len(sample["data"])
        family, offset = self._family(channel, sample, modifier, where)
        known = self._families.get(name)
        if known is not None:
            shared = _SHARED_CONSTRAINT.get(kind, kind) == _SHARED_CONSTRAINT.get(known.kind, known.kind)
            if not shared or kind == "shapesys" or len(family.fixed) > len(known.fixed):
                raise FitError(
                    f"the name '{name}' stands for a {known.kind} and for another {kind}",
                    where=where,
                    fix="give every modifier that is not shared its own name",
                )
        else:
            self._families[name] = family
            self._add_parameters(name, family, where)
        if family.scalar:
            return [self._positions[name]]
        return [self._positions[f"{name}[{offset + k}]"] for k in range(size)]

    def _family(
        self, channel: str, sample: Mapping[str, Any], modifier: Mapping[str, Any], where: str
    ) -> tuple[_Family, int]:
        kind, name, data, size = modifier["type"], modifier["name"], modifier["data"], len(sample["data"])
        if kind == "normfactor":
            return _Family(kind, [1.0], [_FACTOR_BOUNDS], [False]), 0
        if kind in {"normsys", "histosys"}:
            _check_size(kind, data, size, where)
            bounds = [_CONSTRAINED_BOUNDS]
            return _Family(kind, [0.0], bounds, [False], "normal", [0.0], [1.0]), 0
        if kind == "lumi":
            return _Family(kind, None, None, [False], "normal"), 0
        if kind == "shapefactor":
            return _Family(kind, [1.0] * size, [_FACTOR_BOUNDS] * size, [False] * size, scalar=False), 0
        if kind == "shapesys":
            _check_size(kind, data, size, where)
            taus = [
                (nominal / error) ** 2 if nominal > 0 and error > 0 else None
                for nominal, error in zip(sample["data"], data, strict=True)
            ]
            fixed = [tau is None for tau in taus]
            widths = [1.0 if tau is None else 1 / math.sqrt(tau) for tau in taus]
            ones, bounds = [1.0] * size, [_GAMMA_BOUNDS] * size
            return _Family(kind, ones, bounds, fixed, "poisson", ones, widths, scalar=False), 0
        if kind == "staterror":
            widths, offsets = self._staterror[name]
            ones, bounds = [1.0] * len(widths), [_GAMMA_BOUNDS] * len(widths)
            fixed = [width == 0 for width in widths]
            widths = [width or 1.0 for width in widths]
            return _Family(kind, ones, bounds, fixed, "normal", ones, widths, scalar=False), offsets[channel]
        raise FitError(
            f"modifier type '{kind}' is not supported",
            where=where,
            expected="normfactor, normsys, histosys, shapesys, shapefactor, staterror or lumi",
        )

    def _add_parameters(self, name: str, family: _Family, where: str) -> None:
        """Declare the parameters of a name with the measurement's settings in place of the defaults."""
        entry, size = self._settings.get(name, {}), len(family.fixed)
        starts = _setting(entry, "inits", family.starts, size, where)
        bounds = _setting(entry, "bounds", family.bounds, size, where)
        centres: Sequence[float] | None = None
        widths: Sequence[float] | None = None
        if family.constraint == "normal":
            centres = _setting(entry, "auxdata", family.centres, size, where)
            widths = _setting(entry, "sigmas", family.widths, size, where)
        elif family.constraint == "poisson" and family.widths is not None:
            factors = _setting(entry, "factors", [width**-2 for width in family.widths], size, where)
            counts = _setting(entry, "auxdata", [width**-2 for width in family.widths], size, where)
            centres = [count / factor for count, factor in zip(counts, factors, strict=True)]
            widths = [1 / math.sqrt(factor) for factor in factors]
        fixed = [bool(entry["fixed"])] * size if "fixed" in entry else family.fixed
        for i in range(size):
            key = name if family.scalar else f"{name}[{i}]"
            self._positions[key] = len(self.parameters)
            lower, upper = bounds[i]
            self.parameters[key] = Parameter(
                name=key,
                start=float(starts[i]),
                lower=float(lower),
                upper=float(upper),
                fixed=bool(fixed[i]),
                centre=None if centres is None else float(centres[i]),
                width=None if widths is None else float(widths[i]),
                constraint=family.constraint,
            )


def _setting(
    entry: Mapping[str, Any], key: str, default: Sequence[Any] | None, size: int, where: str
) -> Sequence[Any]:
    values: Sequence[Any] | None = entry.get(key, default)
    if values is None:
        raise FitError(
            f"the measurement gives no '{key}' for this parameter, and there is no default",
            where=where,
            fix="add inits, bounds, auxdata and sigmas to the measurement's parameters",
        )
    if len(values) != size:
        raise FitError(f"'{key}' has {len(values)} values", where=where, expected=str(size))
    return values


def _check_size(kind: str, data: Any, size: int, where: str) -> None:
    if kind == "normsys":
        if not (data["hi"] > 0 and data["lo"] > 0):
            raise FitError(
                f"normsys with hi = {data['hi']:g} and lo = {data['lo']:g}",
                where=where,
                expected="two positive factors; the interpolation takes their logarithms",
            )
        return
    lists = [data["hi_data"], data["lo_data"]] if kind == "histosys" else [data]
    for one in lists:
        if len(one) != size:
            raise FitError(f"the modifier has {len(one)} bins", where=where, expected=f"{size} as the sample")


def _shifts(modifier: Mapping[str, Any], k: int, nominal: float) -> bool:
    data = modifier["data"]
    return bool(data["hi_data"][k] != nominal or data["lo_data"][k] != nominal)


def _stat_errors(
    channels: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[list[float], dict[str, int]]]:
    """Per staterror: relative width per bin over its channels, and where each channel begins.

    The width is the quadratic sum of the errors over the sum of the contents of the samples that carry it.
    """
    result: dict[str, tuple[list[float], dict[str, int]]] = {}
    for channel in sorted(channels, key=lambda one: str(one["name"])):
        found: dict[str, list[tuple[Sequence[float], Sequence[float]]]] = {}
        for sample in channel["samples"]:
            for modifier in sample["modifiers"]:
                if modifier["type"] == "staterror":
                    where = f"channel '{channel['name']}', sample '{sample['name']}'"
                    _check_size("staterror", modifier["data"], len(sample["data"]), where)
                    found.setdefault(modifier["name"], []).append((sample["data"], modifier["data"]))
        for name, pairs in found.items():
            widths, offsets = result.setdefault(name, ([], {}))
            offsets[channel["name"]] = len(widths)
            for k in range(len(pairs[0][0])):
                content = sum(data[k] for data, _ in pairs)
                variance = sum(float(errors[k]) ** 2 for _, errors in pairs)
                widths.append(math.sqrt(variance) / content if content > 0 else 0.0)
    return result
