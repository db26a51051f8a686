"""The compiled likelihood against pyhf, modifier by modifier and as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from selfcal.config.run import FitConfig
from selfcal.errors import FitError
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.pyhf_check import pyhf_twice_nll
from selfcal.likelihood.workspace import build_workspace

DATA = [12.0, 30.0, 7.0]


def small_workspace(modifiers: list[dict[str, Any]]) -> dict[str, Any]:
    signal = {"name": "signal", "data": [3.0, 10.0, 0.0], "modifiers": modifiers}
    background = {
        "name": "background",
        "data": [8.0, 18.0, 6.0],
        "modifiers": [{"name": "yield", "type": "normfactor", "data": None}],
    }
    return {
        "channels": [{"name": "region", "samples": [signal, background]}],
        "observations": [{"name": "region", "data": DATA}],
        "measurements": [{"name": "m", "config": {"poi": "", "parameters": []}}],
        "version": "1.0.0",
    }


MODIFIERS: dict[str, dict[str, Any]] = {
    "normfactor": {"name": "x", "type": "normfactor", "data": None},
    "shapefactor": {"name": "x", "type": "shapefactor", "data": None},
    "normsys": {"name": "x", "type": "normsys", "data": {"hi": 1.3, "lo": 0.6}},
    "histosys": {
        "name": "x",
        "type": "histosys",
        "data": {"hi_data": [4.0, 11.0, 0.5], "lo_data": [2.5, 7.0, 0.1]},
    },
    "staterror": {"name": "x", "type": "staterror", "data": [0.5, 1.0, 0.0]},
}


@pytest.mark.parametrize("kind", MODIFIERS)
def test_each_modifier_gives_the_likelihood_and_gradient_of_pyhf(kind: str) -> None:
    workspace = small_workspace([MODIFIERS[kind]])
    model = HistFactory(workspace)
    rng = np.random.default_rng(1)
    for _ in range(20):
        centre, width = (0.0, 1.5) if kind in {"normsys", "histosys"} else (1.0, 0.2)
        theta = rng.normal(centre, width, len(model.parameters))
        theta[model.index["yield"]] = rng.uniform(0.7, 1.4)
        reference, slope = pyhf_twice_nll(workspace, tuple(model.index), theta)
        point = torch.tensor(theta, requires_grad=True)
        value = model.twice_nll(point, model.observed)
        assert value.item() == pytest.approx(reference, rel=1e-12)
        (gradient,) = torch.autograd.grad(value, point)
        np.testing.assert_allclose(gradient.numpy() / 2, slope, rtol=1e-9, atol=1e-9)


def test_the_full_model_gives_the_likelihood_and_gradient_of_pyhf(random_world) -> None:
    config = FitConfig(free_flavours=("b",))
    layout = make_layout(random_world.templates, config)
    workspace = build_workspace(random_world.templates, layout, config)
    model = HistFactory(workspace)
    rng = np.random.default_rng(2)
    noise = torch.from_numpy(rng.normal(0, 0.5, len(model.parameters)))
    theta = torch.where(model.constrained, model.centre + noise * model.width, model.start * (1 + noise / 10))
    theta = torch.where(model.fixed, model.start, theta.clamp(model.lower, model.upper))
    reference, slope = pyhf_twice_nll(workspace, tuple(model.index), theta.numpy())
    theta.requires_grad_()
    value = model.twice_nll(theta, model.observed)
    assert value.item() == pytest.approx(reference, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, theta)
    np.testing.assert_allclose(gradient.numpy() / 2, slope, rtol=1e-8, atol=1e-8)


def test_an_unknown_modifier_is_refused_by_name() -> None:
    with pytest.raises(FitError, match="shapesys"):
        HistFactory(small_workspace([{"name": "x", "type": "shapesys", "data": [1.0, 1.0, 1.0]}]))
