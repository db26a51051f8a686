"""Residuals of single bins: a constant, or what the calibration says of itself, in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.residuals import WIDTH_MAX, residual_widths
from selfcal.likelihood.stage import measure
from selfcal.likelihood.workspace import build_workspace

CONSTANT = FitConfig().residual_width
OF_MAP = FitConfig(residual_width=dict.fromkeys(FLAVOURS, 0.03), residual_of_map=0.8)


def moved(templates, flavour: str, first: float, second: float):
    """``templates`` with two replicas and one other model that move bin 1 of a flavour by given factors."""
    f = FLAVOURS.index(flavour)

    def with_bin(factor: float):
        content = templates.calibrated.copy()
        total = content[:, f].sum(axis=-1)
        share = content[:, f, :, 1] / total
        # The bin's share is multiplied by the factor, those of the others by what is left.
        content[:, f] *= ((1 - factor * share) / (1 - share))[..., None]
        content[:, f, :, 1] = factor * share * total
        return content

    replicas = np.stack([with_bin(np.exp(sign * first)) for sign in (1, -1)])
    return replace(templates, replicas=replicas, variations={"stiff": with_bin(np.exp(second))})


def test_without_the_part_of_the_map_they_are_constants(random_world) -> None:
    config = FitConfig()
    widths = residual_widths(random_world.templates, make_layout(random_world.templates, config), config)
    for flavour, own in zip(FLAVOURS, widths, strict=True):
        assert (own == CONSTANT[flavour]).all()


def test_the_part_of_the_map_is_the_spread_of_replicas_and_the_shift_of_models(random_world) -> None:
    """ln s moves by +-0.1 in two replicas: variance 0.02; by 0.2 in another model."""
    templates = moved(random_world.templates, "light", 0.1, 0.2)
    widths = residual_widths(templates, make_layout(templates, OF_MAP), OF_MAP)
    expected = np.sqrt(0.03**2 + 0.8**2 * (0.02 + 0.2**2))
    assert widths[FLAVOURS.index("light"), :, 1] == pytest.approx(expected, rel=1e-9)
    assert widths[FLAVOURS.index("b")] == pytest.approx(0.03)


def test_a_bin_that_the_map_does_not_know_is_bounded(random_world) -> None:
    templates = moved(random_world.templates, "light", 4.0, -9.0)
    config = OF_MAP.model_copy(update={"residual_of_map": 10.0})
    widths = residual_widths(templates, make_layout(templates, config), config)
    assert widths[FLAVOURS.index("light"), :, 1] == pytest.approx(WIDTH_MAX)


def test_the_workspace_has_them(random_world) -> None:
    templates = moved(random_world.templates, "light", 0.1, 0.2)
    layout = make_layout(templates, OF_MAP)
    widths = residual_widths(templates, layout, OF_MAP)
    found = {
        modifier["name"]: np.log(modifier["data"]["hi"])
        for channel in build_workspace(templates, layout, OF_MAP)["channels"]
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
        if modifier["name"].startswith("residual_")
    }
    assert len(found) > 20
    for name, width in found.items():
        _, flavour, p, k = name.split("_")
        assert width == pytest.approx(widths[FLAVOURS.index(flavour), int(p), int(k)])


def test_a_surer_map_has_surer_scale_factors(random_world) -> None:
    """The same data; light jets' residuals follow a map known to 2 or to 30 per cent in each bin."""
    config = OF_MAP.model_copy(update={"residual_width": dict.fromkeys(FLAVOURS, 0.005)})
    totals = []
    for size in (0.02, 0.3):
        measured = measure(moved(random_world.templates, "light", size, 0.0), config)
        rows = [measured.factors.rows[i] for i in measured.factors.measured]
        sigma = np.sqrt(np.diag(measured.factors.group_covariance["residual"]))
        light = [s for s, row in enumerate(rows) if row.flavour == "light" and row.kind == "working_point"]
        totals.append(sigma[light].mean())
    assert totals[0] < 0.5 * totals[1]
