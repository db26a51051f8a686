"""Workspaces in which every modifier and every special case of pyhf occurs."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import pyhf

Modifier = dict[str, Any]

MODIFIERS: dict[str, Modifier] = {
    "normfactor": {"name": "x", "type": "normfactor", "data": None},
    "shapefactor": {"name": "x", "type": "shapefactor", "data": None},
    "normsys": {"name": "x", "type": "normsys", "data": {"hi": 1.3, "lo": 0.6}},
    "histosys": {
        "name": "x",
        "type": "histosys",
        "data": {"hi_data": [4.0, 11.0, 0.5], "lo_data": [2.5, 7.0, 0.1]},
    },
    "staterror": {"name": "x", "type": "staterror", "data": [0.5, 1.0, 0.0]},
    "shapesys": {"name": "x", "type": "shapesys", "data": [0.5, 2.5, 0.0]},
    "lumi": {"name": "lumi", "type": "lumi", "data": None},
}
LUMI = {"name": "lumi", "inits": [1.1], "bounds": [[0.5, 1.5]], "auxdata": [1.05], "sigmas": [0.03]}


def workspace(
    channels: dict[str, dict[str, tuple[list[float], list[Modifier]]]],
    observations: dict[str, list[float]],
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A workspace from {channel: {sample: (contents, modifiers)}}."""
    return {
        "channels": [
            {
                "name": channel,
                "samples": [
                    {"name": sample, "data": data, "modifiers": modifiers}
                    for sample, (data, modifiers) in samples.items()
                ],
            }
            for channel, samples in channels.items()
        ],
        "observations": [{"name": name, "data": data} for name, data in observations.items()],
        "measurements": [{"name": "m", "config": {"poi": "", "parameters": parameters or []}}],
        "version": "1.0.0",
    }


def small(modifiers: list[Modifier]) -> dict[str, Any]:
    """One channel of three bins; the modifiers act on a signal that has an empty bin."""
    free = [{"name": "yield", "type": "normfactor", "data": None}]
    samples = {"signal": ([3.0, 10.0, 0.0], modifiers), "background": ([8.0, 18.0, 6.0], free)}
    settings = [deepcopy(LUMI)] if any(m["type"] == "lumi" for m in modifiers) else []
    return workspace({"region": samples}, {"region": [12.0, 30.0, 7.0]}, settings)


def everything() -> dict[str, Any]:
    """All modifiers at once in three channels.

    Channels out of alphabetical order; a name shared by normsys and histosys; a staterror and a shapefactor
    over two channels; a shapesys with an empty bin and one without error; settings that override.
    """

    def both(shift: list[float], nominal: list[float]) -> Modifier:
        high = [n + s for n, s in zip(nominal, shift, strict=True)]
        low = [n - 0.7 * s for n, s in zip(nominal, shift, strict=True)]
        return {"name": "scale", "type": "histosys", "data": {"hi_data": high, "lo_data": low}}

    def norm(name: str, high: float, low: float) -> Modifier:
        return {"name": name, "type": "normsys", "data": {"hi": high, "lo": low}}

    def free(name: str, kind: str = "normfactor") -> Modifier:
        return {"name": name, "type": kind, "data": None}

    def stat(name: str, errors: list[float]) -> Modifier:
        return {"name": name, "type": "staterror", "data": errors}

    signal, top, charm = [12.0, 20.0, 9.0], [40.0, 25.0, 30.0], [8.0, 6.0, 4.0]
    return workspace(
        {
            "west": {
                "signal": (signal, [free("mu"), free("lumi", "lumi"), both([1.0, 2.0, -1.0], signal)]),
                "top": (
                    top,
                    [norm("scale", 1.1, 0.88), both([3.0, -2.0, 1.0], top), free("lumi", "lumi")]
                    + [stat("stat", [2.0, 1.0, 1.5])],
                ),
                "charm": (charm, [free("shape", "shapefactor"), stat("stat", [0.5, 0.4, 0.8])]),
            },
            "east": {
                "top": (top, [norm("top_yield", 1.2, 0.9), stat("stat", [1.0, 2.0, 1.2])]),
                "charm": (charm, [free("shape", "shapefactor"), stat("stat", [0.3, 0.7, 0.2])]),
            },
            "north": {
                "signal": ([5.0], [free("mu"), norm("top_yield", 0.95, 1.02)]),
                "fakes": ([30.0], [{"name": "fake_error", "type": "shapesys", "data": [4.0]}]),
                "flat": ([10.0], [stat("alone", [1.0])]),
            },
            "south": {
                "fakes": ([7.0, 0.0, 9.0], [{"name": "more", "type": "shapesys", "data": [2.0, 1.0, 0.0]}]),
                "top": (top, [norm("scale", 1.07, 0.9)]),
            },
        },
        {
            "west": [70.0, 48.0, 45.0],
            "east": [46.0, 36.0, 30.0],
            "north": [47.0],
            "south": [44.0, 27.0, 40.0],
        },
        [
            deepcopy(LUMI),
            {"name": "mu", "inits": [1.2], "bounds": [[0.0, 5.0]]},
            {"name": "top_yield", "auxdata": [0.2], "bounds": [[-3.0, 3.0]]},
            {"name": "alone", "sigmas": [0.2], "fixed": True},
        ],
    )


def two_channels() -> dict[str, Any]:
    """A signal and a control region that share a histosys, with few events and a large effect."""
    signal, background = [5.0, 3.0], [20.0, 8.0]
    shift = {"hi_data": [25.0, 9.0], "lo_data": [14.0, 7.5]}
    control = {"hi_data": [140.0, 85.0], "lo_data": [75.0, 70.0]}
    return workspace(
        {
            "signal": {
                "signal": (signal, [{"name": "mu", "type": "normfactor", "data": None}]),
                "background": (background, [{"name": "tail", "type": "histosys", "data": shift}]),
            },
            "control": {
                "background": (
                    [100.0, 80.0],
                    [
                        {"name": "tail", "type": "histosys", "data": control},
                        {"name": "rate", "type": "normsys", "data": {"hi": 1.25, "lo": 0.7}},
                    ],
                )
            },
        },
        {"signal": [28.0, 14.0], "control": [112.0, 85.0]},
    )


def simple_models() -> dict[str, dict[str, Any]]:
    """The models that pyhf's own documentation fits, as workspaces."""
    with warnings.catch_warnings():
        # pyhf 0.7 validates with an interface that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        uncorrelated = pyhf.simplemodels.uncorrelated_background([12.0, 11.0], [50.0, 52.0], [3.0, 7.0])
        correlated = pyhf.simplemodels.correlated_background(
            [12.0, 11.0], [50.0, 52.0], [45.0, 57.0], [55.0, 47.0]
        )
    result = {}
    for name, model in (("uncorrelated", uncorrelated), ("correlated", correlated)):
        (channel,) = model.spec["channels"]
        result[name] = {
            "channels": [channel],
            "observations": [{"name": channel["name"], "data": [58.0, 66.0]}],
            "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
            "version": "1.0.0",
        }
    return result
