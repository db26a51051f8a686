"""The map's scale factors beside the fit's: closed forms, calibrated p-values, and a wrong map is seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from selfcal.config.fit import FitConfig
from selfcal.likelihood.stage import Measurement, measure
from selfcal.likelihood.two_roads import (
    Agreement,
    agreement,
    difference_covariance,
    two_roads_json,
)

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])
FREE = FitConfig(free_flavours=("b",))


def roads(templates, config: FitConfig) -> tuple[Measurement, Agreement]:
    measured = measure(templates, config)
    found = agreement(measured.layout, measured.model, measured.result, measured.factors, measured.of_map)
    return measured, found


def replicas_of(shape: np.ndarray, covariance: np.ndarray, size: float) -> np.ndarray:
    """Replicas (M, 1, 4, 1, 5) of a b-only template with exactly this covariance of the shape."""
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors * np.sqrt(np.maximum(values, 0.0))
    # ± each axis: mean zero, and Σ x xᵀ/(M − 1) = covariance with this scale.
    scale = np.sqrt((2 * len(shape) - 1) / 2)
    shapes = np.concatenate([shape + scale * axes.T, shape - scale * axes.T])
    result = np.zeros((len(shapes), 1, 4, 1, len(shape)))
    result[:, 0, 0, 0] = shapes * size
    return result


def test_one_free_flavour_has_the_closed_form_chi2(one_flavour) -> None:
    """Fit: the data's fractions; map: the template's; Cov of the difference: multinomial plus replicas."""
    counts = np.array([1900.0, 1130.0, 1450.0, 2520.0, 3000.0])
    templates = one_flavour(counts, SHAPE)
    moved = SHAPE * np.array([0.97, 1.02, 1.0, 1.03, 0.985])
    moved /= moved.sum()
    spread = 4e-5 * (np.diag(moved) - np.outer(moved, moved))
    calibrated = templates.calibrated.copy()
    calibrated[0, 0, 0] = moved * 1e9
    templates = replace(templates, calibrated=calibrated, replicas=replicas_of(moved, spread, 1e9))
    measured, found = roads(templates, FREE)
    fraction = counts / counts.sum()
    covariance = (np.diag(fraction) - np.outer(fraction, fraction)) / counts.sum() + spread
    # The working points are a full set of linear combinations of the free shape: the χ² is the same.
    difference = (fraction - moved)[1:]
    expected = float(difference @ np.linalg.solve(covariance[1:, 1:], difference))
    assert found.ndf == 4
    assert found.chi2 == pytest.approx(expected, rel=1e-3)
    assert found.p_value == pytest.approx(chi2.sf(expected, 4), rel=1e-2)
    assert len(found.compared) == 4
    assert measured.layout.free[0, 0]


def test_a_map_that_is_wrong_is_seen(one_flavour) -> None:
    counts = 1e4 * SHAPE
    good = one_flavour(counts, SHAPE)
    calibrated = good.calibrated.copy()
    calibrated[0, 0, 0] *= np.array([0.9, 1.0, 1.0, 1.0, 1.07])
    bad = replace(good, calibrated=calibrated, replicas=good.replicas * 0 + calibrated)
    assert roads(good, FREE)[1].p_value == pytest.approx(1.0, abs=1e-6)
    assert roads(bad, FREE)[1].p_value < 0.01


def test_with_one_linearisation_it_is_hausmans_covariance(small_world) -> None:
    """At the minimum of Asimov data the derivatives agree: Cov = J (P⁻¹ − C) Jᵀ over the constraints."""
    templates = small_world.templates
    measured = measure(templates, FitConfig(), blind=True)
    model, result, factors = measured.model, measured.result, measured.factors
    found = difference_covariance(measured.layout, model, result, factors, measured.of_map)
    chosen = np.flatnonzero(model.constrained.numpy() & ~model.fixed.numpy())
    slope = factors.jacobian[:, chosen]
    inverse = np.diag(model.width.numpy()[chosen] ** 2) - result.covariance[np.ix_(chosen, chosen)]
    expected = slope @ inverse @ slope.T
    scale = np.sqrt(np.diag(factors.covariance))
    np.testing.assert_allclose(found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=2e-2)


@pytest.mark.parametrize("free_flavours", [(), ("b",)])
def test_p_values_of_true_worlds_are_calibrated(make_world, one_pt_bin, free_flavours) -> None:
    """Worlds whose truth deviates from the map as much as the map's uncertainty and the residuals say."""
    config = FitConfig(
        free_flavours=free_flavours, residual_width={"b": 0.05, "c": 0.10, "light": 0.5, "tau": 0.3}
    )
    p_values = []
    for seed in range(200, 216):
        world = make_world(seed, simulation_size=4.0, data_factor=4.0, replicas=40)
        p_values.append(roads(one_pt_bin(world.templates), config)[1].p_value)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) < 0.01) < 0.15


def test_the_map_is_the_fit_at_its_starting_point(small_world) -> None:
    """The same numbers by another way: the model's own rates with every parameter at its centre."""
    measured = measure(small_world.templates, FitConfig())
    start = measured.factors.ratios.values(measured.model.start).numpy()
    np.testing.assert_allclose(measured.of_map.value, start, rtol=1e-3)


def test_the_table_is_plain_json_with_a_row_for_every_scale_factor(small_world) -> None:
    measured, found = roads(small_world.templates, FitConfig())
    content = two_roads_json(measured.factors, measured.of_map, found)
    content = json.loads(json.dumps(content, allow_nan=False))
    assert [row["row"] for row in content["rows"]] == measured.factors.measured.tolist()
    assert sum(row["compared"] for row in content["rows"]) == len(found.compared) > 0
    for row in content["rows"]:
        squares = sum(part**2 for part in row["map"]["groups"].values())
        assert row["map"]["total"] == pytest.approx(np.sqrt(squares))
        assert row["difference"] == pytest.approx(row["fit"]["value"] - row["map"]["value"])
