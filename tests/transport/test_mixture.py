"""The mixture likelihood: its density by another road, its maximum; fractions that follow pT and |eta|."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from selfcal.config.calibration import BaseDensityConfig, MapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import FitError
from selfcal.transport.base_density import BaseDensities, continue_base_densities, fit_base_densities
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.kinematics import fit_logistic, log_probability, smooth_features
from selfcal.transport.mixture import (
    KinematicFractions,
    LastLeg,
    LegState,
    MixtureFit,
    displacement_price,
    fit_mixture,
    mixture_log_density,
    one_cycle,
)
from selfcal.transport.sample import Sample, simulated_fractions

D, R, F = 2, 2, len(FLAVOURS)
DRAWN = torch.tensor([[0.6, 0.1, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2]], dtype=torch.float64)
CENTRES = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]], dtype=torch.float64)


def sample_of(jets: int, seed: int) -> Sample:
    """Jets of both regions, of flavours as in ``DRAWN``, with coordinates around ``CENTRES``."""
    generator = torch.Generator().manual_seed(seed)
    region = torch.arange(jets) % R
    flavour = torch.multinomial(DRAWN[region], 1, generator=generator)[:, 0]
    coordinates = CENTRES[flavour] + torch.randn(jets, D, generator=generator, dtype=torch.float64)
    conditions = torch.randn(jets, 2, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(jets, generator=generator, dtype=torch.float64)
    return Sample(coordinates, conditions, flavour, region, torch.arange(jets), weight)


@pytest.fixture(scope="module")
def densities() -> BaseDensities:
    """Flows as they begin, but apart from each other."""
    torch.manual_seed(4)
    made = BaseDensities(D, R, BaseDensityConfig(hidden_width=8, transforms=1, spline_bins=8))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made.requires_grad_(requires_grad=False)


def test_the_density_of_every_flavour_is_the_transported_one(densities: BaseDensities) -> None:
    """ln π(c) + ln p(u) − ln |det ∂T/∂u| at T(u): from the way there, with the Jacobian by autodiff."""
    torch.manual_seed(5)
    maps = build_maps(MapConfig(family="flow", hidden_width=8), D, 2)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    inner = sample_of(12, 1)
    log_prior = torch.randn(12, F, dtype=torch.float64)
    for f in range(F):
        outer = maps.of(f)(inner.coordinates, inner.conditions)
        terms, moves = mixture_log_density(
            replace(inner, coordinates=outer), log_prior, DRAWN.log(), densities, maps
        )
        share = torch.exp(log_prior) * DRAWN[inner.region]
        expected = (share[:, f] / share.sum(1)).log()
        expected += densities.log_prob(f, inner.coordinates, inner.conditions, inner.region)
        for row in range(len(inner)):

            def moved(u: torch.Tensor, row: int = row, f: int = f) -> torch.Tensor:
                return maps.of(f)(u[None], inner.conditions[row : row + 1])[0]

            jacobian = torch.autograd.functional.jacobian(moved, inner.coordinates[row])
            expected[row] -= torch.linalg.det(jacobian).abs().log()
        assert torch.allclose(terms[:, f], expected, atol=1e-7)
        assert torch.allclose(moves[:, f], (outer - inner.coordinates).square().sum(1), atol=1e-7)


def test_the_price_of_a_displacement() -> None:
    config = MapConfig(displacement_weight=3.0, displacement_scale=0.5)
    assert displacement_price(config, 4) == pytest.approx(3.0 / (2 * 4 * 0.25), rel=1e-12)


def test_fractions_at_fixed_maps_obey_the_equation_of_the_maximum(densities: BaseDensities) -> None:
    """∂/∂π with Σ π = 1: responsibilities − (π − π0) π/σ² + π Σ (π − π0) π/σ², both over the jets, vanish."""
    data = sample_of(800, 2)
    equal = torch.full((R, F), 0.25, dtype=torch.float64)
    prior = CompositionPrior(equal, 0.4 * equal)
    simulation = sample_of(800, 3)
    kinematics = KinematicFractions(simulation, simulated_fractions(simulation, R))
    config = MapConfig(family="identity", batch_size=800, learning_rate=3e-2, steps=250)
    steps: list[int] = []
    found = fit_mixture(
        data, densities, kinematics, prior, config, torch.Generator().manual_seed(6),
        progress=steps.append, identities=range(F),
    )  # fmt: skip
    assert steps == list(range(1, 251))
    assert torch.allclose(found.fractions.sum(1), torch.ones(R, dtype=torch.float64))
    assert torch.allclose(found.maps.of(0)(data.coordinates, data.conditions), data.coordinates, atol=1e-9)
    log_prior = kinematics.log_prior(data)
    for fractions, limits in ((found.fractions, (0.0, 0.01)), (prior.fractions, (0.05, 1.0))):
        pull = (fractions - prior.fractions) / prior.uncertainty**2
        terms, _ = mixture_log_density(data, log_prior, fractions.log(), densities, found.maps)
        weights = torch.softmax(log_prior + fractions.log()[data.region], dim=1)
        surplus = (torch.softmax(terms, dim=1) - weights) * data.weight[:, None]
        for region, pi in enumerate(fractions):
            rows = data.region == region
            slope = surplus[rows].sum(0) - pi * (pull[region] - (pi * pull[region]).sum())
            assert limits[0] <= float(slope.abs().max() / data.weight[rows].sum()) < limits[1]


FAMILIES = {
    "flow": MapConfig(hidden_width=8, spline_bins=4),
    "autoregressive": MapConfig(hidden_width=8, spline_bins=4, structure="autoregressive"),
    "nflows": MapConfig(hidden_width=8, spline_bins=4, library="nflows"),
    "switch": MapConfig(family="switch", hidden_width=8, spline_bins=4),
    "brenier": MapConfig(family="brenier", hidden_width=8),
    "identity": MapConfig(family="identity"),
}


@pytest.mark.parametrize(
    ("family", "steps", "turn"), [("flow", 12, 0), ("flow", 40, 0), *((name, 5, 7) for name in FAMILIES)]
)
def test_the_last_leg_done_again_ends_where_it_ended(
    densities: BaseDensities, family: str, steps: int, turn: int
) -> None:
    """With everything the same, to the last bit; with other weights or other draws, elsewhere."""
    data, simulation = sample_of(300, 2), sample_of(300, 3)
    prior = CompositionPrior(DRAWN, 0.2 * DRAWN)
    kinematics = KinematicFractions(simulation, simulated_fractions(simulation, R))
    config = FAMILIES[family].model_copy(update={"steps": 12, "batch_size": 64})

    def fit(jets: Sample, weights: int, state: LegState | None = None, draws: int = 2) -> list[torch.Tensor]:
        torch.manual_seed(weights)
        leg = LastLeg(steps, torch.Generator().manual_seed(draws), state)
        first = torch.Generator().manual_seed(1)
        done: list[int] = []
        fitted = fit_mixture(
            jets, densities, kinematics, prior, config, first, leg, done.append, identities=[3]
        )
        assert fitted.at_last_leg is not None
        assert done == list(range(1 if state is None else 1 + turn, 13))
        states.append(fitted.at_last_leg)
        return [fitted.fractions, *(p for index in range(3) for p in fitted.maps.of(index).parameters())]

    states: list[LegState] = []
    nominal = fit(data, weights=8)
    assert states[0].step == turn
    kept = LegState.from_arrays(states[0].arrays())
    assert all(map(torch.equal, nominal, fit(data, 9, kept)))
    assert all(map(torch.equal, nominal, fit(data, 10, states[1])))
    lighter = data.weighted(torch.linspace(0.0, 2.0, 300, dtype=torch.float64))
    assert not torch.equal(fit(lighter, 8, kept)[0], nominal[0])
    assert not torch.equal(fit(data, 8, kept, draws=3)[0], nominal[0])


def test_a_last_leg_with_other_weights_finds_their_maximum(densities: BaseDensities) -> None:
    """Fractions at fixed maps, from a nominal fit of other weights: as a fit of these from the start."""
    data, simulation = sample_of(800, 2), sample_of(800, 3)
    equal = torch.full((R, F), 0.25, dtype=torch.float64)
    prior = CompositionPrior(equal, 0.4 * equal)
    kinematics = KinematicFractions(simulation, simulated_fractions(simulation, R))
    config = MapConfig(family="identity", batch_size=800, learning_rate=3e-2, steps=900)
    b_jets = (data.coordinates[:, 0] > 1.5).double()
    other = data.weighted(1 + 2 * b_jets)

    def fractions(jets: Sample, state: LegState | None) -> MixtureFit:
        leg = LastLeg(600, torch.Generator().manual_seed(5), state)
        generator = torch.Generator().manual_seed(6)
        return fit_mixture(jets, densities, kinematics, prior, config, generator, leg, identities=range(F))

    nominal = fractions(data, None)
    found, expected = fractions(other, nominal.at_last_leg).fractions, fractions(other, None).fractions
    change = float((expected - nominal.fractions).abs().max())
    assert change > 0.1
    assert float((found - expected).abs().max()) < 0.005


def test_a_last_leg_begins_where_it_began(densities: BaseDensities) -> None:
    data = sample_of(100, 2)
    prior = CompositionPrior(DRAWN, 0.2 * DRAWN)
    kinematics = KinematicFractions(data, simulated_fractions(data, R))
    state = LegState(1, DRAWN.log(), [])
    leg = LastLeg(1, torch.Generator(), state)
    identity = MapConfig(family="identity", steps=3)
    with pytest.raises(FitError, match="from another step than it began with") as caught:
        fit_mixture(data, densities, kinematics, prior, identity, torch.Generator(), leg)
    assert (caught.value.where, caught.value.expected) == ("step 1", "step 2")


def test_the_rate_of_a_fit_rises_and_falls_to_zero() -> None:
    """Up in a tenth of the steps, then (1 + cos φ) / 2 with φ from 0 to π."""
    rates = [one_cycle(step, 100) for step in range(101)]
    assert rates[:11] == pytest.approx([*((step + 1) / 11 for step in range(10)), 1.0])
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_a_likelihood_that_is_no_number_is_an_error(densities: BaseDensities) -> None:
    data = sample_of(100, 2)
    prior = CompositionPrior(DRAWN, 0.2 * DRAWN)
    kinematics = KinematicFractions(data, simulated_fractions(data, R))
    broken = replace(data, coordinates=data.coordinates * float("nan"))
    identity = MapConfig(family="identity", steps=2)
    with pytest.raises(FitError, match="the mixture likelihood is not finite") as caught:
        fit_mixture(broken, densities, kinematics, prior, identity, torch.Generator())
    assert caught.value.where == "step 0"


def test_the_regression_is_stationary_and_its_features_are_those_of_its_docstring() -> None:
    """Xᵀ w (p − y) + ridge θ = 0, the constants with 1e-3; x is held between -2.5 and 3.5."""
    sample = sample_of(400, 7)
    x, y = sample.conditions.T
    features = torch.stack([x**0, x, x**2, x**3 / 3, y, y**2, x * y], dim=1)
    assert torch.equal(smooth_features(sample.conditions), features)
    far = torch.tensor([[-9.0, 1.0], [9.0, 1.0]], dtype=torch.float64)
    near = torch.tensor([[-2.5, 1.0], [3.5, 1.0]], dtype=torch.float64)
    assert torch.equal(smooth_features(far), smooth_features(near))
    found = fit_logistic(sample.conditions, sample.flavour, sample.weight, F, ridge=0.7)
    probability = log_probability(found, sample.conditions).exp()
    label = torch.nn.functional.one_hot(sample.flavour, F).double()
    pull = torch.cat([1e-3 * found[:1], 0.7 * found[1:]])
    slope = features.T @ (sample.weight[:, None] * (probability - label)) + pull
    assert float(slope.abs().max()) < 2e-3 * float(sample.weight.sum() ** 0.5)


def test_fractions_of_the_simulation_come_back_from_their_spectra() -> None:
    """With the constants free, mean predicted and simulated fractions agree; ``log_prior`` adds to ln π."""
    simulation = sample_of(3000, 8)
    simulated = simulated_fractions(simulation, R)
    prior = KinematicFractions(simulation, simulated).log_prior(simulation)
    predicted = torch.exp(prior + simulated.log()[simulation.region])
    assert torch.allclose(predicted.sum(1), torch.ones(3000, dtype=torch.float64))
    for region in range(R):
        rows = simulation.region == region
        weight = simulation.weight[rows]
        mean = (weight[:, None] * predicted[rows]).sum(0) / weight.sum()
        assert torch.allclose(mean, simulated[region], atol=2e-5)


def test_a_density_that_goes_on_learns_at_three_tenths_of_the_rate() -> None:
    """A first step of Adam is as long as its learning rate, whatever the slope."""
    config = BaseDensityConfig(hidden_width=8, transforms=1, learning_rate=1e-2, batch_size=50, steps=1)
    simulation = sample_of(1000, 11)
    torch.manual_seed(12)
    first = BaseDensities(D, R, config)
    first.fitted_steps.fill_(3)
    before = [p.detach().clone() for p in first.parameters()]
    torch.manual_seed(12)
    found = fit_base_densities(simulation, R, config, torch.Generator().manual_seed(1))
    again = continue_base_densities(first, simulation, config, 1, torch.Generator().manual_seed(1))
    moved = [
        max(float((a - b).detach().abs().max()) for a, b in zip(after.parameters(), before, strict=True))
        for after in (found, again)
    ]
    assert moved[1] / moved[0] == pytest.approx(0.3, rel=1e-3)
    assert all(map(torch.equal, first.parameters(), before))
    longer = continue_base_densities(first, simulation, config, 9, torch.Generator().manual_seed(1))
    assert all(map(torch.equal, longer.parameters(), again.parameters()))


def test_a_flavour_with_few_jets_is_not_overfitted_by_going_on() -> None:
    """Jets that fitted nothing: about as likely after a last leg as before it, far less after a long one."""
    config = BaseDensityConfig(hidden_width=24, transforms=2, learning_rate=5e-3)
    simulation, unseen = sample_of(500, 13), sample_of(4000, 14)
    torch.manual_seed(15)
    first = fit_base_densities(simulation, R, config, torch.Generator().manual_seed(1))
    assert 0 < int(first.fitted_steps.min()) < 400
    unbounded = copy.deepcopy(first)
    unbounded.fitted_steps.fill_(800)
    loss = []
    for start, steps in ((first, 400), (unbounded, 400)):
        found = continue_base_densities(start, simulation, config, steps, torch.Generator().manual_seed(2))
        loss.append(_minus_log_likelihood_per_jet(found, unseen))
    before = _minus_log_likelihood_per_jet(first, unseen)
    assert loss[0] < before + 0.02
    assert loss[1] > before + 0.1


def _minus_log_likelihood_per_jet(densities: BaseDensities, jets: Sample) -> float:
    total = 0.0
    with torch.no_grad():
        for index in range(F):
            own = jets.rows(jets.flavour == index)
            total -= float(densities.log_prob(index, own.coordinates, own.conditions, own.region).sum())
    return total / len(jets)


def test_a_density_needs_jets_of_every_flavour() -> None:
    config = BaseDensityConfig(hidden_width=8, transforms=1)
    simulation = sample_of(1000, 11)
    few = simulation.rows(torch.arange(60))
    with pytest.raises(FitError, match=r"only \d+ simulated b jets"):
        fit_base_densities(few, R, config, torch.Generator())
