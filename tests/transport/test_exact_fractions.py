"""The quadratic form of the energy distance in the fractions, and its minimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.errors import FitError
from selfcal.penalty.energy import pair_distances
from selfcal.transport import exact_fractions as exact_fractions_module
from selfcal.transport.exact_fractions import MixtureDistance, exact_fractions, mixture_distance

CENTRES = torch.tensor(
    [[2.0, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.5]], dtype=torch.float64
)


def jets(counts: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit Gaussians around each flavour's centre."""
    generator = torch.Generator().manual_seed(seed)
    flavour = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    noise = torch.randn(len(flavour), 3, generator=generator, dtype=torch.float64)
    return CENTRES[flavour] + noise, flavour


def form(counts: tuple[int, ...] = (900, 700, 800, 600), data: tuple[int, ...] = (1800, 200, 1900, 100)):
    x, flavour = jets(counts, seed=1)
    y, _ = jets(data, seed=2)
    ones = torch.ones(len(x), dtype=torch.float64)
    made = mixture_distance(
        x, flavour, ones, y, torch.ones(len(y), dtype=torch.float64), torch.Generator().manual_seed(3)
    )
    return made, x, flavour, y


def test_the_form_is_the_energy_distance_of_the_weighted_sample() -> None:
    made, x, flavour, y = form((40, 30, 50, 20), (60, 10, 40, 5))
    fractions = torch.tensor([0.5, 0.2, 0.25, 0.05], dtype=torch.float64)
    weight = (fractions / torch.bincount(flavour))[flavour]
    even = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    direct = (
        2 * weight @ pair_distances(x, y) @ even
        - weight @ pair_distances(x, x) @ weight
        - even @ pair_distances(y, y) @ even
    )
    assert made.value(fractions.numpy()) == pytest.approx(float(direct), abs=1e-12)


def test_the_gradient_is_that_of_the_form() -> None:
    made, *_ = form((40, 30, 50, 20), (60, 10, 40, 5))
    fractions = np.array([0.4, 0.3, 0.2, 0.1])
    for f in range(4):
        step = np.zeros(4)
        step[f] = 1e-6
        slope = (made.value(fractions + step) - made.value(fractions - step)) / 2e-6
        assert made.gradient(fractions)[f] == pytest.approx(slope, abs=1e-7)


def test_without_a_prior_the_fractions_of_the_data_come_out() -> None:
    made, *_ = form()
    wide = np.full(4, 100.0)
    found = exact_fractions(made, 1e4, np.array([0.25, 0.25, 0.25, 0.25]), wide)
    np.testing.assert_allclose(found, [0.45, 0.05, 0.475, 0.025], atol=0.02)
    assert found.sum() == pytest.approx(1.0)


def test_no_neighbour_on_the_simplex_is_better() -> None:
    made, *_ = form()
    prior, width = np.array([0.3, 0.1, 0.5, 0.1]), np.full(4, 0.05)

    def cost(fractions: np.ndarray) -> float:
        return 500.0 * made.value(fractions) + 0.5 * float((((fractions - prior) / width) ** 2).sum())

    found = exact_fractions(made, 500.0, prior, width)
    for i in range(4):
        for j in range(4):
            other = found.copy()
            other[i] += 1e-4
            other[j] -= 1e-4
            assert cost(other) >= cost(found) - 1e-9


def test_without_weight_the_prior_stays() -> None:
    made, *_ = form((40, 30, 50, 20), (60, 10, 40, 5))
    prior = np.array([0.3, 0.1, 0.5, 0.1])
    np.testing.assert_allclose(exact_fractions(made, 0.0, prior, np.full(4, 0.05)), prior, atol=1e-7)


def test_a_flavour_that_is_not_simulated_stays_at_its_prior() -> None:
    made, *_ = form((900, 700, 800, 0), (900, 300, 800, 0))
    prior = np.array([0.3, 0.3, 0.398, 0.002])
    found = exact_fractions(made, 1e4, prior, np.full(4, 10.0))
    assert found[3] == pytest.approx(0.002, rel=1e-6)
    np.testing.assert_allclose(found[:3], np.array([0.45, 0.15, 0.4]) * 0.998, atol=0.03)


def test_the_form_is_convex_on_the_simplex_even_for_few_jets() -> None:
    for seed in range(5):
        x, flavour = jets((3, 2, 4, 2), seed)
        y, _ = jets((5, 5, 5, 5), seed + 100)
        made: MixtureDistance = mixture_distance(
            x,
            flavour,
            torch.ones(len(x), dtype=torch.float64),
            y,
            torch.ones(len(y), dtype=torch.float64),
            torch.Generator().manual_seed(0),
        )
        centred = np.eye(4) - 0.25
        assert np.linalg.eigvalsh(-centred @ made.between @ centred).min() > -1e-12


def test_a_form_that_has_no_minimum_is_an_error() -> None:
    made, *_ = form((40, 30, 50, 20), (60, 10, 40, 5))
    undefined = replace(made, between=np.full_like(made.between, np.nan))
    with pytest.raises(FitError, match="the fractions of a region did not converge"):
        exact_fractions(undefined, 1.0, np.full(4, 0.25), np.full(4, 0.1))


def test_of_data_twice_as_many_jets_count_as_of_a_flavour(monkeypatch) -> None:
    monkeypatch.setattr(exact_fractions_module, "JETS_MAX", 40)
    taken = []
    chosen = exact_fractions_module.some_jets
    monkeypatch.setattr(
        exact_fractions_module,
        "some_jets",
        lambda sample, most, generator: taken.append(most) or chosen(sample, most, generator),
    )
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ones = torch.ones(300, dtype=torch.float64)
    mixture_distance(x, torch.arange(300) % 4, ones, x, ones, torch.Generator().manual_seed(2))
    assert taken == [80, 40, 40, 40, 40]
