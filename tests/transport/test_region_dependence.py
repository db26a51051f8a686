"""Region dependence: worlds with and without it, and statistics that obey its model exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.data.flavours import FLAVOURS
from selfcal.transport.calibration import Calibration
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.derivation import Derivation
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.region_dependence import (
    SHARED_WIDTH,
    RegionDependence,
    RegionStatistics,
    region_dependence,
    region_statistics,
)
from selfcal.transport.sample import simulated_fractions
from tests.transport.synthetic_world import REGIONS, SyntheticWorld

LIGHT = FLAVOURS.index("light")
PRIOR_WIDTH = 0.15
STEP = 0.4
"""By which light jets of one region are moved more, in standard deviations of the scores."""


def statistics_of(
    derivation: Derivation, data_step: torch.Tensor | None = None
) -> tuple[list[RegionStatistics], list[np.ndarray]]:
    fit = derivation.mixture()
    simulation = derivation.simulation
    with torch.no_grad():
        moved = fit.maps(simulation.coordinates, simulation.flavour, simulation.conditions)
    data = derivation.data
    if data_step is not None:
        data = replace(data, coordinates=data.coordinates + data_step)
    kinematics = KinematicFractions(simulation, simulated_fractions(simulation, derivation.regions))
    calibrated = replace(simulation, coordinates=moved)
    statistics = [
        region_statistics(data, calibrated, derivation.densities(), kinematics, fit.fractions, region)
        for region in range(derivation.regions)
    ]
    sigma = derivation.fraction_uncertainty().numpy()
    return statistics, [np.delete(sigma[r], int(fit.fractions[r].argmax())) for r in range(len(sigma))]


@pytest.fixture(scope="module")
def alike(derived: tuple[Derivation, ScoreFrame]) -> RegionDependence:
    return region_dependence(*statistics_of(derived[0]), PRIOR_WIDTH, seed=1)


@pytest.fixture(scope="module")
def unlike(derived: tuple[Derivation, ScoreFrame], world: SyntheticWorld) -> RegionDependence:
    """Light jets of one region moved by ``STEP`` along the first coordinate, in data only."""
    step = torch.zeros_like(derived[0].data.coordinates)
    region = REGIONS.index("light_rich")
    light = torch.from_numpy(world.data_flavour["light_rich"] == LIGHT)
    step[(derived[0].data.region == region).nonzero().squeeze(1)[light], 0] = STEP
    return region_dependence(*statistics_of(derived[0], step), PRIOR_WIDTH, seed=1)


def test_a_world_in_which_flavours_move_alike_passes(alike: RegionDependence) -> None:
    assert alike.p_value > 0.01
    assert alike.scale[LIGHT] < 0.5 * PRIOR_WIDTH


def test_one_region_that_differs_is_seen_and_named(alike: RegionDependence, unlike: RegionDependence) -> None:
    assert unlike.p_value < 0.001
    assert unlike.scale[LIGHT] > 2 * alike.scale[LIGHT]
    light = unlike.shift[:, LIGHT, 0]
    # A shift of all regions together is the map's; what is left is how far this one is from the others.
    region = REGIONS.index("light_rich")
    others = np.delete(light, region).mean()
    assert light[region] - others == pytest.approx(STEP, abs=0.15)


def test_a_flavour_of_a_single_region_keeps_the_prior() -> None:
    model, own = Model(3), len(FLAVOURS) * 3
    tau = np.arange(own) // 3 == FLAVOURS.index("tau")
    parts = [replace(part, shift=np.where(tau, 0.0, part.shift)) for part in model.parts[1:]]
    found = region_dependence([model.parts[0], *parts], model.sigma, PRIOR_WIDTH, 1)
    # One region cannot tell its own shift from that of all: only how wide the two may be together.
    assert found.scale[FLAVOURS.index("tau")] > 0.7 * PRIOR_WIDTH
    assert found.scale[LIGHT] < 0.3 * PRIOR_WIDTH


@pytest.mark.parametrize("width", [0.05, 0.15, 0.6])
def test_without_response_the_scale_is_that_of_the_prior(width: float) -> None:
    """The root mean square of a half-normal law cut at three widths: √(1 − 6 φ(3)/(2 Φ(3) − 1)) = 0.9866."""
    model = Model(4)
    parts = [replace(part, shift=np.zeros_like(part.shift)) for part in model.parts]
    found = region_dependence(parts, model.sigma, width, 1)
    assert found.scale == pytest.approx(np.full(len(FLAVOURS), 0.9866 * width), rel=0.01)
    assert found.p_value == 1.0
    assert not found.shift.any()


class Model:
    """Random responses, of which statistics are drawn that obey the random-effects model exactly."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.size, own, self.regions = 27, 12, 4
        self.parts = []
        for _ in range(self.regions):
            half = random.standard_normal((self.size, self.size))
            covariance = 1e-6 * (half @ half.T / self.size + np.eye(self.size))
            responses = [random.standard_normal((self.size, n)) for n in (own, own, 3)]
            self.parts.append(RegionStatistics(np.zeros(self.size), covariance, *responses))
        self.sigma = [np.full(3, 0.02)] * self.regions

    def draw(self, tau: float | np.ndarray, random: np.random.Generator) -> list[RegionStatistics]:
        """``tau`` of all coordinates, or one of each (12,); everything else from its prior."""
        shared = SHARED_WIDTH * random.standard_normal(24)
        drawn = []
        for part, sigma in zip(self.parts, self.sigma, strict=True):
            noise = np.linalg.cholesky(part.covariance) @ random.standard_normal(self.size)
            delta = tau * random.standard_normal(12)
            value = noise + part.shift @ (delta + shared[:12]) + part.stretch @ shared[12:]
            drawn.append(replace(part, value=value + part.fraction @ (sigma * random.standard_normal(3))))
        return drawn


def test_the_squared_scale_is_right_on_average_where_tau_has_its_prior() -> None:
    """A posterior mean is unbiased over the prior: E[scale² - τ²] = 0, for whatever number of regions."""
    model, random, width = Model(1), np.random.default_rng(7), 0.2
    excess, true = [], []
    for _ in range(40):
        tau = np.minimum(np.abs(width * random.standard_normal(len(FLAVOURS))), 3 * width)
        found = region_dependence(model.draw(np.repeat(tau, 3), random), model.sigma, width, 1)
        excess.append(found.scale**2 - tau**2)
        true.append(tau**2)
    mean, error = np.mean(excess), np.std(excess) / np.sqrt(np.size(excess))
    assert abs(mean) < 3 * error
    # The test would see a scale that is wrong by a quarter.
    assert 3 * error < 0.5 * np.mean(true)


def test_the_p_value_is_uniform_where_nothing_depends_on_the_region() -> None:
    model, random = Model(2), np.random.default_rng(8)
    values = np.array(
        [region_dependence(model.draw(0.0, random), model.sigma, 0.2, i).p_value for i in range(40)]
    )
    # A likelihood largest at zero gives one; the others are uniform below.
    below = np.mean(values < 0.2)
    assert 0.2 - 3 * 0.063 < below < 0.2 + 3 * 0.063


def test_what_the_map_leaves_elsewhere_moves_every_coordinate_by_its_flavours_scale(
    calibration: Calibration, world: SyntheticWorld
) -> None:
    jets = world.simulation["b_rich"]
    moved = calibration.apply(jets, calibration.nominal)
    before = calibration.frame.enter(torch.from_numpy(moved.log_probability))
    scale = torch.tensor(calibration.region_scale)[torch.from_numpy(jets.flavour.astype(np.int64))]
    assert (scale > 0).all()
    for axis, pair in enumerate(calibration.elsewhere(moved)):
        for sign, varied in zip((1.0, -1.0), pair, strict=True):
            step = calibration.frame.enter(torch.from_numpy(varied.log_probability)) - before
            expected = torch.zeros_like(step)
            expected[:, axis] = sign * scale
            torch.testing.assert_close(step, expected, atol=1e-8, rtol=0)


def test_a_table_and_arrays_hold_everything(alike: RegionDependence) -> None:
    again = RegionDependence.from_arrays(alike.arrays())
    assert again.table(REGIONS) == alike.table(REGIONS)
    assert {(row["region"], row["flavour"]) for row in again.table(REGIONS)["rows"]} == {
        (region, flavour) for region in REGIONS for flavour in FLAVOURS
    }
