"""Fractions as a spline in ln pT: hat functions, the quadratic form, its minimum, a known dependence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.calibration import CompositionConfig
from selfcal.errors import FitError
from selfcal.penalty.energy import pair_distances
from selfcal.transport.composition import CompositionPrior, fit_composition
from selfcal.transport.exact_fractions import MixtureDistance, exact_fractions, mixture_distance
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.pt_fractions import (
    PtShape,
    exact_spline,
    hat_functions,
    knots_of,
    spline_distance,
)
from selfcal.transport.sample import Sample, simulated_fractions

CENTRES = torch.tensor([[2.5, 0.0], [0.0, 2.5], [-1.5, -1.0], [2.0, 3.0]], dtype=torch.float64)
PRIOR = np.array([0.3, 0.1, 0.5, 0.1])
WIDTH = np.full(4, 0.05)


def world(jets: int, seed: int, slope: float = 0.0, *, labelled: bool = True) -> Sample:
    """One region: x even in [-1, 1], fractions 0.1, 0.2 (1 + slope x), 0.65 - 0.2 slope x, 0.05."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1.0, 1.0, jets)
    charm = 0.2 * (1.0 + slope * x)
    probability = np.stack([np.full(jets, 0.1), charm, 0.85 - charm, np.full(jets, 0.05)], axis=1)
    flavour = torch.from_numpy((random.random((jets, 1)) > probability.cumsum(axis=1)[:, :-1]).sum(axis=1))
    noise = torch.from_numpy(random.standard_normal((jets, 2)))
    return Sample(
        CENTRES[flavour] + 0.8 * noise,
        torch.from_numpy(np.stack([x, random.uniform(-1.0, 1.0, jets)], axis=1)),
        flavour if labelled else torch.full_like(flavour, -1),
        torch.zeros(jets, dtype=torch.long),
        torch.arange(jets),
        torch.ones(jets, dtype=torch.float64),
    )


def form_of(simulation: Sample, data: Sample, knots: torch.Tensor) -> MixtureDistance:
    return spline_distance(
        simulation.coordinates,
        simulation.flavour,
        simulation.weight,
        hat_functions(simulation.conditions[:, 0], knots),
        data.coordinates,
        data.weight,
        torch.Generator().manual_seed(3),
    )


def spline_form(
    knots: int, simulated: int = 300, observed: int = 250
) -> tuple[MixtureDistance, Sample, Sample]:
    simulation, data = world(simulated, 1), world(observed, 2)
    form = form_of(simulation, data, knots_of(data.conditions[:, 0], knots))
    return form, simulation, data


def parts_of(simulation: Sample, knots: torch.Tensor) -> torch.Tensor:
    hats = hat_functions(simulation.conditions[:, 0], knots)
    return torch.zeros(4, len(knots), dtype=torch.float64).index_add(0, simulation.flavour, hats)


def test_hat_functions_add_up_to_one_and_reproduce_lines() -> None:
    knots = torch.tensor([-1.0, -0.2, 0.5, 2.0], dtype=torch.float64)
    x = torch.linspace(-3.0, 4.0, 141, dtype=torch.float64)
    hats = hat_functions(x, knots)
    torch.testing.assert_close(hats.sum(1), torch.ones(len(x), dtype=torch.float64))
    assert float(hats.min()) >= 0.0
    torch.testing.assert_close(hats @ knots, x.clamp(-1.0, 2.0))
    torch.testing.assert_close(hat_functions(knots, knots), torch.eye(4, dtype=torch.float64))


def test_the_form_is_the_energy_distance_of_jets_weighted_by_the_spline() -> None:
    form, simulation, data = spline_form(3)
    knots = knots_of(data.conditions[:, 0], 3)
    hats, parts = hat_functions(simulation.conditions[:, 0], knots), parts_of(simulation, knots)
    random = np.random.default_rng(4)
    fractions = torch.from_numpy(random.dirichlet(np.ones(12))).reshape(4, 3)
    weight = (fractions / parts)[simulation.flavour].mul(hats).sum(1)
    x, y = simulation.coordinates, data.coordinates
    even = torch.full((len(y),), 1.0 / len(y), dtype=torch.float64)
    direct = (
        2 * weight @ pair_distances(x, y) @ even
        - weight @ pair_distances(x, x) @ weight
        - even @ pair_distances(y, y) @ even
    )
    assert form.value(fractions.flatten().numpy()) == pytest.approx(float(direct), abs=1e-12)


def test_the_gradient_is_that_of_the_form() -> None:
    form, *_ = spline_form(3)
    fractions = np.random.default_rng(5).dirichlet(np.ones(12))
    slopes = [
        (form.value(fractions + step) - form.value(fractions - step)) / 2e-6 for step in 1e-6 * np.eye(12)
    ]
    np.testing.assert_allclose(form.gradient(fractions), slopes, atol=1e-7)


def constant_form(simulation: Sample, data: Sample) -> MixtureDistance:
    """The form of fractions that do not vary with pT."""
    return mixture_distance(
        simulation.coordinates,
        simulation.flavour,
        simulation.weight,
        data.coordinates,
        data.weight,
        torch.Generator().manual_seed(3),
    )


def test_components_that_are_summed_are_the_form_of_constant_fractions() -> None:
    form, simulation, data = spline_form(3)
    constant = constant_form(simulation, data)
    parts = parts_of(simulation, knots_of(data.conditions[:, 0], 3))
    spread = (parts / parts.sum(1, keepdim=True)).numpy()
    for fractions in np.random.default_rng(6).dirichlet(np.ones(4), size=5):
        components = (fractions[:, None] * spread).flatten()
        assert form.value(components) == pytest.approx(constant.value(fractions), abs=1e-12)


def test_an_infinitely_stiff_spline_gives_the_constant_fractions() -> None:
    form, simulation, data = spline_form(4)
    constant = constant_form(simulation, data)
    parts = parts_of(simulation, knots_of(data.conditions[:, 0], 4))
    for scale in (0.0, 30.0, 3000.0):
        fractions, shape = exact_spline(form, scale, PRIOR, WIDTH, parts, 1e-9)
        np.testing.assert_allclose(fractions, exact_fractions(constant, scale, PRIOR, WIDTH), atol=2e-5)
        np.testing.assert_allclose(shape, 1.0, atol=1e-7)


def test_no_neighbour_is_better() -> None:
    form, simulation, data = spline_form(3)
    parts = parts_of(simulation, knots_of(data.conditions[:, 0], 3)).numpy()
    within = parts / parts.sum(axis=1, keepdims=True)

    def cost(ratios: np.ndarray) -> float:
        components = PRIOR[:, None] * within * ratios
        pull = (components.sum(axis=1) - PRIOR) / WIDTH
        steps = np.diff(ratios, axis=1) / 0.3
        return (
            200.0 * form.value(components.flatten())
            + 0.5 * float(pull @ pull)
            + 0.5 * float((steps**2).sum())
        )

    fractions, shape = exact_spline(form, 200.0, PRIOR, WIDTH, torch.from_numpy(parts), 0.3)
    found = shape * (fractions / PRIOR)[:, None]
    direction = (PRIOR[:, None] * within).flatten()
    random = np.random.default_rng(7)
    for _ in range(40):
        step = random.standard_normal(12)
        step -= direction * (direction @ step) / (direction @ direction)  # the sum of fractions stays
        assert cost(found + 1e-3 * step.reshape(4, 3)) >= cost(found) - 1e-7


def test_a_pt_dependent_truth_is_found_where_constant_fractions_hide_it() -> None:
    simulation, data = world(4000, 11), world(4000, 12, slope=0.7, labelled=False)
    truth = 1.0 + 0.7 * torch.tensor([-0.7, 0.0, 0.7], dtype=torch.float64)
    prior = CompositionPrior(
        torch.tensor([[0.1, 0.16, 0.69, 0.05]], dtype=torch.float64),
        torch.tensor([[0.03, 0.04, 0.17, 0.015]], dtype=torch.float64),
    )
    config = CompositionConfig(steps=40, batch_size=256, pt_knots=3, pt_variation=4.0)
    torch.manual_seed(0)
    fit = fit_composition(simulation, data, prior, config, torch.Generator().manual_seed(1))
    assert fit.pt_shape is not None
    at = Sample(
        torch.zeros(3, 2, dtype=torch.float64),
        torch.tensor([[-0.7, 0.0], [0.0, 0.0], [0.7, 0.0]], dtype=torch.float64),
        torch.zeros(3, dtype=torch.long),
        torch.zeros(3, dtype=torch.long),
        torch.arange(3),
        torch.ones(3, dtype=torch.float64),
    )
    charm = fit.pt_shape.ratio(at)[:, 1]
    torch.testing.assert_close(charm, truth, atol=0.2, rtol=0.0)
    assert float(fit.fractions[0, 1]) == pytest.approx(0.2, abs=0.015)
    # The likelihood's local fractions follow: charm over light at both ends of the spectrum.
    simulated = simulated_fractions(simulation, 1)
    kinematics = KinematicFractions(simulation, simulated, fit.pt_shape)
    local = torch.softmax(kinematics.log_prior(at) + fit.fractions.log(), dim=1)[:, 1]
    torch.testing.assert_close(local, 0.2 * truth, atol=0.045, rtol=0.0)


def test_weighted_jets_keep_the_number_of_every_flavour() -> None:
    form, simulation, data = spline_form(3)
    knots = knots_of(data.conditions[:, 0], 3)
    _, shape = exact_spline(form, 500.0, PRIOR, WIDTH, parts_of(simulation, knots), 0.5)
    assert np.abs(shape - 1.0).max() > 0.02
    moved = PtShape(knots[None], torch.from_numpy(shape)[None]).weighted(simulation)
    torch.testing.assert_close(simulated_fractions(moved, 1), simulated_fractions(simulation, 1))


def test_a_flavour_that_is_not_simulated_stays_at_its_prior() -> None:
    simulation, data = world(400, 1), world(400, 2)
    simulation = simulation.rows(simulation.flavour != 3)
    knots = knots_of(data.conditions[:, 0], 2)
    form = form_of(simulation, data, knots)
    prior = np.array([0.1, 0.2, 0.698, 0.002])
    fractions, shape = exact_spline(form, 1e3, prior, np.full(4, 0.1), parts_of(simulation, knots), 0.3)
    assert fractions[3] == pytest.approx(0.002, rel=1e-5)
    np.testing.assert_array_equal(shape[3], 1.0)


def test_a_form_that_has_no_minimum_is_an_error() -> None:
    form, simulation, data = spline_form(2)
    undefined = MixtureDistance(form.to_data, np.full_like(form.between, np.nan), 1.0, form.present)
    parts = parts_of(simulation, knots_of(data.conditions[:, 0], 2))
    with pytest.raises(FitError, match="did not converge"):
        exact_spline(undefined, 1.0, PRIOR, WIDTH, parts, 0.2)
