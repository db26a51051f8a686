"""The information of (fractions, maps) against finite differences and against cases with a known verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.calibration import BaseDensityConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import concatenate
from selfcal.transport.base_density import BaseDensities, fit_base_densities
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.identifiability import identifiability, mixture_scores, prior_widths
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.sample import Sample, build_sample, simulated_fractions
from tests.transport.synthetic_world import REGIONS, SyntheticWorld

DENSITY = BaseDensityConfig(steps=60, hidden_width=16, transforms=1, learning_rate=1e-2, batch_size=256)


class Fitted:
    """Densities of a world, few steps: the scores must be exact for whatever density there is."""

    def __init__(self, world: SyntheticWorld, regions: tuple[str, ...]) -> None:
        jets = {region: world.simulation[region] for region in regions}
        frame = ScoreFrame.from_jets(concatenate(list(jets.values())))
        self.simulation = build_sample(jets, regions, frame)
        data = build_sample({region: world.data[region] for region in regions}, regions, frame)
        self.data: Sample = data.rows(torch.arange(0, len(data), 3))
        self.simulated = simulated_fractions(self.simulation, len(regions))
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        self.densities: BaseDensities = fit_base_densities(self.simulation, len(regions), DENSITY, generator)
        self.kinematics = KinematicFractions(self.simulation, self.simulated)

    def verdict(self, relative_width: float = 0.3):
        scores, names = mixture_scores(self.data, self.densities, self.kinematics, self.simulated)
        prior = CompositionPrior(self.simulated, relative_width * self.simulated)
        widths = prior_widths(prior, self.simulated, 3, 0.1)
        return identifiability(
            scores.numpy(), self.data.weight.numpy(), names, widths, self.simulated.numpy()
        )


@pytest.fixture(scope="module")
def fitted(world: SyntheticWorld) -> Fitted:
    return Fitted(world, REGIONS)


def log_density(fitted: Fitted, fractions: torch.Tensor, shift: dict[str, float]) -> torch.Tensor:
    """ln p(u) with T_f(u) = e^a u + b on the first coordinate, straight from the formula."""
    data = fitted.data
    local = torch.softmax(fitted.kinematics.log_prior(data) + fractions.log()[data.region], dim=1)
    terms = []
    for index, flavour in enumerate(FLAVOURS):
        u = data.coordinates.clone()
        stretch = shift.get(f"stretch {flavour}/0", 0.0)
        u[:, 0] = (u[:, 0] - shift.get(f"shift {flavour}/0", 0.0)) * np.exp(-stretch)
        log_p = fitted.densities.log_prob(index, u, data.conditions, data.region)
        terms.append(local[:, index].log() + log_p - stretch)
    return torch.logsumexp(torch.stack(terms, 1), dim=1)


@pytest.mark.parametrize("name", ["shift light/0", "shift c/0", "stretch b/0", "fraction 1/c"])
def test_scores_are_derivatives_of_the_mixture_density(fitted: Fitted, name: str) -> None:
    scores, names = mixture_scores(fitted.data, fitted.densities, fitted.kinematics, fitted.simulated)
    step, sides = 1e-6, []
    for sign in (1.0, -1.0):
        fractions, shift = fitted.simulated.clone(), {name: sign * step}
        if name.startswith("fraction"):
            reference = int(fractions[1].argmax())
            fractions[1, FLAVOURS.index("c")] += sign * step
            fractions[1, reference] -= sign * step
        sides.append(log_density(fitted, fractions, shift))
    numeric = (sides[0] - sides[1]) / (2 * step)
    found = scores[:, names.index(name)]
    # Splines have kinks in their second derivative; a step across one is seen in a few jets.
    assert torch.quantile((found - numeric).abs(), 0.99) < 1e-4
    assert found.abs().mean() > 1e-3


def test_information_adds_up_and_the_priors_are_left_out(fitted: Fitted) -> None:
    first, second = fitted.verdict(0.3), fitted.verdict(0.01)
    np.testing.assert_array_equal(first.information, second.information)
    free, tight = (np.array(v.width_ratio) for v in (first, second))
    fractions = [i for i, name in enumerate(first.names) if name.startswith("fraction")]
    assert (tight[fractions] > free[fractions]).all()
    assert len(second.prior_dominated) > len(first.prior_dominated)


def test_every_flavour_with_a_region_is_determined(fitted: Fitted) -> None:
    verdict = fitted.verdict()
    assert verdict.undetermined == ()
    assert verdict.null == ()
    assert verdict.condition_number == pytest.approx(np.linalg.cond(fitted.simulated.numpy()))


def test_closed_form_of_two_parameters_that_only_act_together() -> None:
    """Scores (s, s): the difference is null, the sum is known, each alone half by its prior."""
    random = np.random.default_rng(1)
    s = random.normal(size=4000)
    names = ("shift b/0", "shift c/0")
    verdict = identifiability(np.stack([s, s], 1), np.ones(4000), names, np.ones(2), np.eye(2))
    assert [d.names for d in verdict.null] == [names] or [d.names for d in verdict.null] == [names[::-1]]
    (dominated,) = verdict.prior_dominated
    assert dominated.value == pytest.approx(1.0)
    information = (s**2).sum()
    expected = np.sqrt(0.5 + 0.5 / (1 + 2 * information))
    np.testing.assert_allclose(verdict.width_ratio, expected, rtol=1e-9)
    assert verdict.undetermined == ("b", "c")


def test_a_parameter_without_effect_is_named() -> None:
    scores = np.stack([np.random.default_rng(1).normal(size=1000), np.zeros(1000)], 1)
    verdict = identifiability(scores, np.ones(1000), ("shift b/0", "shift tau/0"), np.ones(2), np.eye(2))
    assert [d.names for d in verdict.null] == [("shift tau/0",)]
    assert verdict.undetermined == ("tau",)
