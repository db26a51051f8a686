"""A discriminant that follows ln pT, made flat; beside it cuts in bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from selfcal.transport.decorrelation import Decorrelation, _powers, binned_thresholds, decorrelate

EFFICIENCY = 0.2


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """D ~ N(x, (1 + 0.3 x)²), x uniform in (-1, 1): mean and width both follow the protected variable."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, n)
    return x + (1 + 0.3 * x) * random.normal(size=n), x


@pytest.fixture(scope="module")
def flat() -> Decorrelation:
    return decorrelate(*draw(50_000, seed=1), seed=2)


def spread_in_slices(passing: np.ndarray, x: np.ndarray, slices: int = 16) -> float:
    """Largest deviation of the efficiency in slices of x from the mean one, relative."""
    place = np.digitize(x, np.linspace(-1, 1, slices + 1)[1:-1])
    efficiency = np.array([passing[place == k].mean() for k in range(slices)])
    return float(np.abs(efficiency / passing.mean() - 1).max())


def test_efficiency_is_flat_and_flatter_than_by_cuts_in_bins(flat: Decorrelation) -> None:
    """Four bins of cuts leave a slope in each; the transport leaves none. Fresh jets."""
    d, x = draw(200_000, seed=3)
    moved = flat(d, x)
    before = spread_in_slices(d > np.quantile(d, 1 - EFFICIENCY), x)
    after = spread_in_slices(moved > np.quantile(moved, 1 - EFFICIENCY), x)
    edges = np.array([-0.5, 0.0, 0.5])
    cuts = binned_thresholds(*draw(50_000, seed=1), edges, EFFICIENCY)
    binned = spread_in_slices(d > cuts[np.digitize(x, edges)], x)
    assert before > 0.8
    assert after < 0.15
    assert after < 0.5 * binned


def test_the_transport_is_that_of_the_known_laws(flat: Decorrelation) -> None:
    """At x the law is normal with known mean and width: quantiles go to those of the whole sample."""
    d, _ = draw(400_000, seed=4)
    levels = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    wanted = np.quantile(d, stats.norm.cdf(levels))
    for x in (-0.8, 0.0, 0.8):
        found = flat(x + (1 + 0.3 * x) * levels, np.full(5, x))
        np.testing.assert_allclose(found, wanted, atol=0.15)


def test_the_order_of_jets_at_one_momentum_is_kept(flat: Decorrelation) -> None:
    d = np.linspace(-8, 8, 500)
    for x in (-0.9, 0.1, 0.9):
        assert (np.diff(flat(d, np.full(500, x))) > 0).all()


def test_binned_thresholds_have_the_wanted_efficiency_in_their_bins() -> None:
    d, x = draw(20_000, seed=5)
    edges = np.array([-0.2, 0.4])
    cuts = binned_thresholds(d, x, edges, EFFICIENCY)
    place = np.digitize(x, edges)
    for k in range(3):
        assert (d[place == k] > cuts[k]).mean() == pytest.approx(EFFICIENCY, abs=1e-3)


def test_the_map_is_given_the_first_three_terms_of_a_power_series() -> None:
    c = torch.tensor([[-2.0], [0.0], [0.5], [3.0]], dtype=torch.float64)
    expected = [[-2.0, 2.0, -8 / 6], [0.0, 0.0, 0.0], [0.5, 0.125, 0.125 / 6], [3.0, 4.5, 4.5]]
    assert torch.allclose(_powers(c), torch.tensor(expected, dtype=torch.float64), atol=1e-15)
