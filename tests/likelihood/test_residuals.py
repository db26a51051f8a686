"""Residuals of single bins: a constant, or what the calibration says of itself, in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.residuals import WIDTH_MAX, residual_widths, slide_shifts
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
        if modifier["name"].startswith("residual_") and not modifier["name"].startswith("residual_slide_")
    }
    assert len(found) > 20
    for name, width in found.items():
        _, flavour, p, k = name.split("_")
        assert width == pytest.approx(widths[FLAVOURS.index(flavour), int(p), int(k)])


def test_a_surer_map_has_surer_scale_factors(random_world) -> None:
    """The same data; light jets' residuals follow a map known to 2 or to 30 per cent in each bin."""
    config = OF_MAP.model_copy(
        update={"residual_width": dict.fromkeys(FLAVOURS, 0.005), "residual_slide": {}}
    )
    totals = []
    for size in (0.02, 0.3):
        measured = measure(moved(random_world.templates, "light", size, 0.0), config)
        rows = [measured.factors.rows[i] for i in measured.factors.measured]
        sigma = np.sqrt(np.diag(measured.factors.group_covariance["residual"]))
        light = [s for s, row in enumerate(rows) if row.flavour == "light" and row.kind == "working_point"]
        totals.append(sigma[light].mean())
    assert totals[0] < 0.5 * totals[1]


def passing(shares):
    """Share of the jets above each lower edge of a bin, (..., K)."""
    return np.cumsum(shares[..., ::-1], axis=-1)[..., ::-1] / shares.sum(axis=-1, keepdims=True)


def test_a_slide_moves_the_log_odds_of_every_working_point_alike() -> None:
    content = np.random.default_rng(3).uniform(0.1, 4.0, (2, 3, 6))
    step = 1e-6
    before, after = (passing(content * (1 + size * slide_shifts(content)))[..., 1:] for size in (-step, step))
    change = np.log(after / (1 - after)) - np.log(before / (1 - before))
    assert change / (2 * step) == pytest.approx(1.0, rel=1e-8)
    assert (content * slide_shifts(content)).sum(axis=-1) == pytest.approx(0.0, abs=1e-12)


def test_a_slide_does_not_depend_on_the_number_of_bins() -> None:
    """Two bins that are merged move by the sum of what each of them moves."""
    fine = np.random.default_rng(4).uniform(0.1, 4.0, (3, 8))
    merged = fine.reshape(3, 4, 2).sum(axis=-1)
    of_parts = (fine * slide_shifts(fine)).reshape(3, 4, 2).sum(axis=-1)
    assert merged * slide_shifts(merged) == pytest.approx(of_parts, abs=1e-12)


def test_empty_bins_do_not_slide() -> None:
    content = np.array([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert (slide_shifts(content)[content == 0] == 0).all()


def slid(templates, size: float):
    """Expected data if all b shapes slide by ``size``, and the b scale factors that are true then."""
    layout = make_layout(templates, FitConfig())
    shape = layout.shape.copy()
    b = FLAVOURS.index("b")
    shape[:, b] *= 1 + size * slide_shifts(shape[:, b])
    data = np.einsum("rf,rfpk->rpk", layout.yields, shape)
    reference = int(layout.reference[b])
    truth = passing(shape[reference, b]) / passing(templates.nominal[reference, b])
    return replace(templates, data=data), truth


@pytest.mark.parametrize(("widths", "covered"), [({}, False), (FitConfig().residual_slide, True)])
def test_a_shape_that_is_wrong_as_a_whole_is_covered_only_with_the_slide(
    random_world, widths, covered
) -> None:
    """b jets pass less often than map and single residuals allow, by 1.5 widths of the slide."""
    config = FitConfig(residual_slide=widths)
    exact = np.repeat(random_world.templates.calibrated[None], 2, axis=0)
    templates, truth = slid(replace(random_world.templates, replicas=exact), -0.15)
    factors = measure(templates, config).factors
    sigma = np.sqrt(np.diag(factors.covariance))
    rows = [factors.rows[i] for i in factors.measured]
    pulls = np.array(
        [
            (value - truth[row.kinematic_bin, row.passing[0]]) / width
            for row, value, width in zip(rows, factors.value, sigma, strict=True)
            if row.flavour == "b" and row.kind == "working_point"
        ]
    )
    largest = np.abs(pulls).max()
    assert largest < 1.5 if covered else largest > 2.5
