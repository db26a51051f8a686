"""The classics on laws for which their answer is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfcal.errors import DataError, FitError
from selfcal.transport.optimality import optimal_cost
from selfcal.transport.references import (
    BinnedScaleFactors,
    ClassifierReweighting,
    QuantileMorphing,
    _barycentres,
    exact_map,
    sinkhorn_map,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(1)


def test_the_exact_map_finds_a_permuted_shift(random: np.random.Generator) -> None:
    """A shift is the gradient of a convex function: the exact plan pairs every point with its own image."""
    start = random.normal(size=(200, 3))
    shift = np.array([0.4, -0.2, 0.1])
    moved = exact_map(start, random.permutation(start + shift))
    np.testing.assert_allclose(moved, start + shift, atol=1e-12)
    assert optimal_cost(start, moved) == pytest.approx((shift**2).sum(), rel=1e-10)


def test_weights_are_counts(random: np.random.Generator) -> None:
    """A jet of weight three goes where three equal jets go together."""
    start, end = random.normal(size=(20, 2)), random.normal(size=(30, 2))
    weight = np.ones(20)
    weight[4] = 3.0
    repeated = exact_map(np.concatenate([start, start[[4, 4]]]), end)
    once = exact_map(start, end, start_weight=weight)
    np.testing.assert_allclose(once[4], repeated[[4, 20, 21]].mean(0), atol=1e-9)


def test_sinkhorn_between_gaussians_is_the_closed_form(random: np.random.Generator) -> None:
    """Between N(0, a²) and N(m, b²) the entropic plan has slope ρ = (√(16 a² b² + ε²) - ε) / (4 a²).

    For cost |x - y|² the plan minimises E|X - Y|² + ε KL (arXiv 2006.02572 with σ² = ε/2): the
    barycentric map is m + ρ x.
    """
    a, b, m, epsilon = 1.0, 1.5, 0.7, 1.0
    at = (np.arange(400) + 0.5) / 400
    start, end = a * stats.norm.ppf(at), m + b * stats.norm.ppf(at)
    moved = sinkhorn_map(start[:, None], end[:, None], epsilon)[:, 0]
    slope = (np.sqrt(16 * a**2 * b**2 + epsilon**2) - epsilon) / (4 * a**2)
    middle = np.abs(start) < 2
    np.testing.assert_allclose(moved[middle], (m + slope * start)[middle], atol=0.02)
    exact = exact_map(start[:, None], end[:, None])[:, 0]
    np.testing.assert_allclose(exact, end, atol=1e-12)


@pytest.mark.fault(8, "optimal-transport references: negative weights")
@pytest.mark.parametrize("reference", [exact_map, lambda x, y, w: sinkhorn_map(x, y, 1.0, w)])
def test_signed_weights_are_refused(reference, random: np.random.Generator) -> None:
    points = random.normal(size=(10, 2))
    with pytest.raises(DataError, match="negative weight"):
        reference(points, points, np.array([-1.0] + 9 * [1.0]))


def test_a_plan_that_is_not_there_yet_is_refused(random: np.random.Generator) -> None:
    start, end = random.normal(size=(60, 2)), random.normal(size=(60, 2)) + 3.0
    with pytest.raises(FitError, match="out of place"):
        sinkhorn_map(start, end, 1e-4)


def test_quantile_morphing_between_known_laws(random: np.random.Generator) -> None:
    start, end = random.normal(size=200_000), random.exponential(size=100_000)
    morph = QuantileMorphing.between(start, end)
    x = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(morph(x), stats.expon.ppf(stats.norm.cdf(x)), rtol=0.03, atol=0.01)
    same = QuantileMorphing.between(start, start)
    far = np.array([-30.0, 0.3, 30.0])
    np.testing.assert_allclose(same(far), far, atol=1e-9)


def test_quantile_morphing_takes_weights(random: np.random.Generator) -> None:
    """Reweighting a uniform law with 2x makes its quantiles √q."""
    x = random.random(200_000)
    morph = QuantileMorphing.between(x, x, end_weight=2 * x)
    q = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(morph(q), np.sqrt(q), atol=0.01)


def test_binned_factors_close_in_their_bins_exactly(random: np.random.Generator) -> None:
    simulation, data = random.normal(size=5000), 0.3 + random.normal(size=4000)
    weight = np.where(random.random(5000) < 0.1, -1.0, 1.0)
    edges = np.array([-1.0, 0.0, 1.0])
    found = BinnedScaleFactors.between(simulation, data, edges, simulation_weight=weight)
    after = weight * found.weights(simulation)
    shares = np.bincount(np.digitize(simulation, edges), weights=after) / after.sum()
    np.testing.assert_allclose(shares, np.bincount(np.digitize(data, edges)) / 4000, rtol=1e-12)
    empty = BinnedScaleFactors.between(simulation, data, np.array([-50.0, 0.0]))
    assert empty.factors[0] == 1.0


@pytest.mark.parametrize("hidden_width", [0, 8])
def test_the_classifier_learns_the_density_ratio(hidden_width: int, random: np.random.Generator) -> None:
    """Between N(0, 1) and N(m, 1) the ratio is exp(m·x - m²/2), which the classifier contains."""
    m = np.array([0.5, -0.3])
    simulation, data = random.normal(size=(20_000, 2)), m + random.normal(size=(20_000, 2))
    classifier = ClassifierReweighting.between(simulation, data, hidden_width=hidden_width, steps=60)
    weight = classifier.weights(simulation)
    assert weight.mean() == pytest.approx(1.0)
    core = (np.abs(simulation) < 2).all(axis=1)
    expected = np.exp(simulation @ m - 0.5 * m @ m)
    assert np.abs(np.log(weight / expected))[core].mean() < 0.03
    far = np.array([[3.0, 0.0], [0.0, 0.0]])
    assert np.diff(classifier.log_ratio(far)) == pytest.approx(-3.0 * m[0], abs=0.15)


def test_a_jet_without_mass_goes_nowhere_and_the_others_to_their_barycentre() -> None:
    plan = np.array([[0.1, 0.3], [0.0, 0.0], [0.0, 0.6]])
    start, end = np.array([[5.0], [7.0], [9.0]]), np.array([[1.0], [2.0]])
    np.testing.assert_allclose(_barycentres(plan, start, end), [[(0.1 + 0.6) / 0.4], [7.0], [2.0]])
