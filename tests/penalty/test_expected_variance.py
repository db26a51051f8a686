"""The inference-aware penalty against the project's HistFactory of the same binned model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.likelihood.histfactory import HistFactory
from selfcal.penalty.contract import PenaltySample
from selfcal.penalty.expected_variance import BinnedRegion, ExpectedVariance, scale_factor_information

WIDTH = torch.tensor([0.30, 0.20, 0.10], dtype=torch.float64)
EDGES = torch.tensor([-0.5, 0.5, 1.2, 2.0], dtype=torch.float64)


def region(bandwidth: float = 0.05, width: torch.Tensor = WIDTH) -> BinnedRegion:
    return BinnedRegion(lambda points: points[:, 0], EDGES, bandwidth, width, 3000.0)


def jets(n: int, seed: int, separation: float = 1.0, shift: float = 0.0) -> PenaltySample:
    generator = torch.Generator().manual_seed(seed)
    flavour = torch.randint(3, (n,), generator=generator)
    points = torch.randn(n, 1, generator=generator, dtype=torch.float64) * 0.6
    points[:, 0] += separation * flavour + shift
    return PenaltySample(points, 0.5 + torch.rand(n, generator=generator, dtype=torch.float64), flavour)


def histfactory(templates: np.ndarray, shift: np.ndarray | None = None) -> HistFactory:
    """Flavours as samples with a shape of ±σ_k times themselves; ``shift`` as one more nuisance."""
    samples = []
    for k, template in enumerate(templates):
        spread = float(WIDTH[k]) * template
        modifiers = [
            {
                "name": f"factor_{k}",
                "type": "histosys",
                "data": {"hi_data": list(template + spread), "lo_data": list(template - spread)},
            }
        ]
        if shift is not None and k == 0:
            modifiers.append(
                {
                    "name": "mismatch",
                    "type": "histosys",
                    "data": {"hi_data": list(template + shift), "lo_data": list(template - shift)},
                }
            )
        samples.append({"name": f"flavour_{k}", "data": list(template), "modifiers": modifiers})
    return HistFactory(
        {
            "version": "1.0.0",
            "channels": [{"name": "region", "samples": samples}],
            "observations": [{"name": "region", "data": list(templates.sum(0))}],
            "measurements": [{"name": "m", "config": {"poi": "", "parameters": []}}],
        }
    )


def covariance_of(model: HistFactory) -> torch.Tensor:
    """Inverse of half the Hessian of the deviance at the expectation, which is the Fisher information."""
    at = torch.zeros(len(model.parameters), dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda p: model.deviance(p, model.observed), at)
    return torch.linalg.inv(0.5 * hessian)


def test_information_equals_that_of_histfactory() -> None:
    templates = ExpectedVariance(region()).templates(jets(600, 1))
    assert float(templates.sum()) == pytest.approx(3000.0)
    model = histfactory(templates.numpy())
    order = [model.index[f"factor_{k}"] for k in range(3)]
    # The parameters there are in units of σ_k.
    expected = covariance_of(model)[order][:, order] * WIDTH[:, None] * WIDTH[None]
    found = torch.linalg.inv(scale_factor_information(templates, WIDTH))
    assert torch.allclose(found, expected, rtol=1e-9)


def test_bias_equals_the_growth_of_variance_by_the_mismatch() -> None:
    """C + b bᵀ against HistFactory with the difference as a nuisance that data hardly constrain."""
    penalty = ExpectedVariance(region())
    sample = jets(600, 2)
    templates = penalty.templates(sample)
    shift = 1e-2 * (templates[0].flip(0) - templates[0])
    model = histfactory(templates.numpy(), shift.numpy())
    order = [model.index[f"factor_{k}"] for k in range(3)]
    with_mismatch = covariance_of(model)[order][:, order] * WIDTH[:, None] * WIDTH[None]
    without = torch.linalg.inv(scale_factor_information(templates, WIDTH))
    pull = without @ (templates / templates.sum(0)) @ shift
    grown = with_mismatch - without
    assert torch.allclose(grown, torch.outer(pull, pull), rtol=0.05, atol=1e-9)
    assert grown.diagonal().max() > 1e-6


def test_value_is_the_mean_squared_error() -> None:
    """D of the exact pair sums: C_kk plus the squared pull, by plain loops over jets."""
    sample, data = jets(30, 3), jets(25, 4, shift=0.2)
    penalty = ExpectedVariance(region(0.2))
    templates = penalty.templates(sample)
    covariance = torch.linalg.inv(scale_factor_information(templates, WIDTH))
    pull = 3000.0 * covariance @ (templates / templates.sum(0))
    shares = [penalty._shares(s) @ pull.T for s in (sample, data)]
    total = 0.0
    for k in range(3):
        terms = []
        for values, weight in zip(shares, (sample.weight, data.weight), strict=True):
            pairs = [
                (float(weight[i] * weight[j]), float(values[i, k] * values[j, k]))
                for i in range(len(weight))
                for j in range(len(weight))
                if i != j
            ]
            terms.append(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))
        means = [
            float(weight @ values[:, k] / weight.sum())
            for values, weight in zip(shares, (sample.weight, data.weight), strict=True)
        ]
        bias_square = terms[0] + terms[1] - 2 * means[0] * means[1]
        total += (float(covariance[k, k]) + bias_square) / float(WIDTH[k]) ** 2 / 3
    assert float(penalty(sample, data)) == pytest.approx(total, rel=1e-9)


def test_scores_that_say_nothing_cost_more() -> None:
    """The opposite of a distance: with constant scores the variance returns to that before any data."""
    penalty = ExpectedVariance(region())
    informed = penalty(jets(4000, 5), jets(4000, 6))
    silent = jets(4000, 5, separation=0.0)
    constant = PenaltySample(torch.zeros_like(silent.points), silent.weight, silent.flavour)
    said_nothing = penalty(constant, PenaltySample(torch.zeros_like(silent.points), silent.weight))
    assert float(said_nothing) > 3 * float(informed)
    assert 0.5 < float(said_nothing) < 1.0


def test_bins_of_negative_content_count_as_empty() -> None:
    sample = jets(50, 7)
    weight = sample.weight.clone()
    weight[sample.flavour == 2] *= -0.2
    templates = ExpectedVariance(region()).templates(PenaltySample(sample.points, weight, sample.flavour))
    assert (templates >= 0).all()
    assert torch.isfinite(scale_factor_information(templates, WIDTH)).all()
