"""Jets where the control regions have none are flagged, others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfcal.transport.sample import Sample
from selfcal.transport.support import Support


def gaussian_jets(n: int, seed: int, flavours: int = 3) -> Sample:
    """Correlated scores; the flavour with index 3 is not among them by default."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    common = torch.randn(n, 1, **options)
    flavour = torch.randint(flavours, (n,), generator=generator)
    coordinates = 0.5 * torch.randn(n, 3, **options) + common + flavour[:, None]
    return Sample(
        coordinates,
        torch.randn(n, 2, **options),
        flavour,
        torch.zeros(n, dtype=torch.long),
        torch.arange(n),
        torch.ones(n, dtype=torch.float64),
    )


@pytest.fixture(scope="module")
def support() -> Support:
    return Support.of(gaussian_jets(9000, seed=1), seed=2)


def test_one_in_a_thousand_of_the_same_jets_is_flagged(support: Support) -> None:
    flagged = support.beyond(gaussian_jets(20_000, seed=5))
    assert 0.0003 < flagged.mean() < 0.004


@pytest.mark.parametrize("scores", [True, False], ids=["scores", "pt"])
def test_jets_far_away_are_flagged(support: Support, scores: bool) -> None:
    """Across the correlation a few standard deviations are far; so is a momentum that no region has."""
    jets = gaussian_jets(500, seed=6)
    inside = jets.coordinates, jets.conditions
    offset = torch.tensor([4.0, -4.0, 0.0], dtype=torch.float64)
    beyond = (inside[0] + offset, inside[1]) if scores else (inside[0], inside[1] + 20.0)
    moved = replace(jets, coordinates=beyond[0], conditions=beyond[1])
    assert support.beyond(moved).mean() > 0.95


def test_a_hole_is_not_support() -> None:
    """Between two clusters there are no jets, though a box around both would hold the place."""
    jets = gaussian_jets(9000, seed=1, flavours=1)
    side = torch.where(torch.arange(9000) % 2 == 0, -6.0, 6.0)
    support = Support.of(replace(jets, coordinates=jets.coordinates + side[:, None]), seed=2)
    middle = gaussian_jets(200, seed=7, flavours=1)
    middle = replace(middle, coordinates=0.2 * middle.coordinates)
    assert support.beyond(middle).all()


def test_a_flavour_that_no_region_has_is_beyond(support: Support) -> None:
    jets = gaussian_jets(100, seed=8)
    assert support.beyond(replace(jets, flavour=torch.full((100,), 3))).all()


def test_a_jet_without_flavour_is_flagged_where_no_flavour_is(support: Support) -> None:
    jets = gaussian_jets(2000, seed=9)
    unlabelled = replace(jets, flavour=torch.full((2000,), -1))
    far = replace(unlabelled, coordinates=unlabelled.coordinates + 50.0)
    assert support.beyond(unlabelled).mean() < 0.004
    assert support.beyond(far).all()
    assert np.array_equal(support.beyond(unlabelled) & ~support.beyond(jets), np.zeros(2000, dtype=bool))


def test_support_survives_a_round_trip(support: Support, tmp_path: Path) -> None:
    support.save(tmp_path / "support.safetensors")
    again, jets = Support.load(tmp_path / "support.safetensors"), gaussian_jets(3000, seed=3)
    assert np.array_equal(support.beyond(jets), again.beyond(jets))
