"""Soft bins against numpy's histogram and the analytic derivative; the chi-square against hard bins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.soft_histogram import HistogramChiSquare, soft_bins

EDGES = torch.tensor([-1.0, -0.2, 0.5, 1.4], dtype=torch.float64)


def values(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_the_hard_histogram_for_vanishing_bandwidth() -> None:
    x = values(500, 1)
    weight = values(500, 2)
    hard, _ = np.histogram(
        x.numpy(), bins=np.concatenate([[-np.inf], EDGES.numpy(), [np.inf]]), weights=weight.numpy()
    )
    for bandwidth, tolerance in ((1e-2, 2.0), (1e-8, 1e-9)):
        soft = weight @ soft_bins(x, EDGES, bandwidth)
        assert np.allclose(soft.numpy(), hard, rtol=0, atol=tolerance)
    assert not np.allclose((weight @ soft_bins(x, EDGES, 0.3)).numpy(), hard, atol=1e-3)


def test_shares_add_up_to_one_at_any_bandwidth() -> None:
    x = values(100, 3) * 50
    for bandwidth in (1e-6, 0.1, 10.0):
        shares = soft_bins(x, EDGES, bandwidth)
        assert shares.shape == (100, 5)
        assert torch.allclose(shares.sum(1), torch.ones(100, dtype=torch.float64), atol=1e-12)
        assert (shares >= 0).all()


def test_gradient_is_the_analytic_one() -> None:
    """dm_b/dx = [σ'((x-e_b)/h) - σ'((x-e_{b+1})/h)] / h with σ' = e^{-t}/(1+e^{-t})²."""
    x, bandwidth = values(30, 4).requires_grad_(), 0.2
    shares = soft_bins(x, EDGES, bandwidth)
    t = (x.detach()[:, None] - EDGES) / bandwidth
    slope = torch.exp(-t) / (1 + torch.exp(-t)) ** 2 / bandwidth
    zero = torch.zeros(30, 1, dtype=torch.float64)
    expected = torch.cat([zero, slope], 1) - torch.cat([slope, zero], 1)
    for index in range(5):
        (found,) = torch.autograd.grad(shares[:, index].sum(), x, retain_graph=True)
        assert torch.allclose(found, expected[:, index], rtol=1e-10, atol=1e-12)


def test_histograms_without_overlap_are_at_distance_one() -> None:
    far = torch.full((50, 1), 9.0, dtype=torch.float64)
    ones = torch.ones(50, dtype=torch.float64)
    distance = HistogramChiSquare()(PenaltySample(far, ones), PenaltySample(-far, ones))
    assert float(distance) == pytest.approx(1.0)


def test_equals_the_chi_square_of_hard_bins() -> None:
    """¼ Σ [(s-d)² - s(1-s)/(n-1) - d(1-d)/(m-1)] / q with plain counts."""
    x, y = values(200, 5), values(300, 6) + 0.4
    edges = np.concatenate([[-np.inf], EDGES.numpy(), [np.inf]])
    s, d = np.histogram(x, edges)[0] / 200, np.histogram(y, edges)[0] / 300
    pooled = (200 * s + 300 * d) / 500
    expected = 0.25 * (((s - d) ** 2 - s * (1 - s) / 199 - d * (1 - d) / 299) / pooled).sum()
    penalty = HistogramChiSquare(tuple(EDGES.tolist()), bandwidth=1e-8)
    samples = [PenaltySample(v[:, None], torch.ones(len(v), dtype=torch.float64)) for v in (x, y)]
    assert float(penalty(*samples)) == pytest.approx(expected, rel=1e-9)


def test_the_bins_that_nobody_chose_are_half_a_standard_deviation_wide() -> None:
    edges = HistogramChiSquare().edges
    assert edges.numpy() == pytest.approx(np.arange(-2.0, 2.5, 0.5))
