"""Separators as further dimensions of the composition fit: charm and light whose scores are the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.calibration import CompositionConfig
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.composition import CompositionFit, CompositionPrior, fit_composition
from selfcal.transport.sample import Sample, joined

TRUTH = (0.1, 0.35, 0.5, 0.05)
PRIOR = (0.1, 0.25, 0.6, 0.05)
SCORES = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
SEPARATORS = torch.tensor([[0.5], [1.5], [-1.0], [0.0]], dtype=torch.float64)
CONFIG = CompositionConfig(steps=40, batch_size=256)


def world(fractions: tuple[float, ...], seed: int, jets: int = 5000) -> Sample:
    """One region of Gaussians; light and charm differ in the separator alone."""
    random = np.random.default_rng(seed)
    flavour = torch.from_numpy(random.choice(4, jets, p=fractions))
    noise = torch.from_numpy(random.standard_normal((jets, 3)))
    return Sample(
        SCORES[flavour] + noise[:, :2],
        torch.from_numpy(random.uniform(-1.0, 1.0, (jets, 2))),
        flavour,
        torch.zeros(jets, dtype=torch.long),
        torch.arange(jets),
        torch.ones(jets, dtype=torch.float64),
        SEPARATORS[flavour] + 0.7 * noise[:, 2:],
    )


def prior() -> CompositionPrior:
    centre = torch.tensor([PRIOR], dtype=torch.float64)
    return CompositionPrior(centre, 0.3 * centre)


def fitted(simulation: Sample, data: Sample) -> CompositionFit:
    torch.manual_seed(0)
    return fit_composition(simulation, data, prior(), CONFIG, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, Sample]:
    return world(PRIOR, 1), world(TRUTH, 2)


def test_separators_tell_what_the_scores_cannot(samples: tuple[Sample, Sample]) -> None:
    simulation, data = samples
    fractions = fitted(simulation, data).fractions[0]
    torch.testing.assert_close(fractions, torch.tensor(TRUTH, dtype=torch.float64), atol=0.02, rtol=0.0)


def test_without_them_charm_over_light_is_the_prior(samples: tuple[Sample, Sample]) -> None:
    simulation, data = (replace(sample, separators=None) for sample in samples)
    fractions = fitted(simulation, data).fractions[0]
    # The sum is seen, its parts are the prior's widths (0.075 and 0.18) alone.
    assert float(fractions[1] + fractions[2]) == pytest.approx(0.85, abs=0.02)
    assert float(fractions[1]) == pytest.approx(0.25, abs=0.02)


def test_the_maps_of_the_scores_are_those_of_the_wide_map_without_its_separators(
    samples: tuple[Sample, Sample],
) -> None:
    simulation, data = samples
    shifted = replace(data, coordinates=data.coordinates + 0.2)
    fit = fitted(simulation, shifted)
    wide = simulation.widened()
    together = fit.maps(wide.coordinates, wide.flavour, wide.conditions)
    alone = fit.score_maps(2)(simulation.coordinates, simulation.flavour, simulation.conditions)
    torch.testing.assert_close(alone, together[:, :2])
    assert float((alone - simulation.coordinates).abs().max()) > 0.05


def test_an_affine_map_restricted_to_all_coordinates_is_itself() -> None:
    generator = torch.Generator().manual_seed(3)
    built = AffineMap(4, 2, 0.3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    u = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    c = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(built.leading(4)(u, c), built(u, c), rtol=0.0, atol=0.0)
    for first in (1, 2, 3):
        torch.testing.assert_close(built.leading(first)(u[:, :first], c), built(u, c)[:, :first])


def test_samples_keep_their_separators_where_all_have_them(samples: tuple[Sample, Sample]) -> None:
    one, other = samples
    both = joined([one, other])
    assert both.separators is not None
    torch.testing.assert_close(both.rows(torch.arange(len(one), len(both))).separators, other.separators)
    assert joined([one, replace(other, separators=None)]).separators is None
    assert one.widened().coordinates.shape == (len(one), 3)
