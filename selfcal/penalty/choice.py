"""The penalties by the names they have in a configuration."""

from __future__ import annotations

from collections.abc import Callable

from selfcal.penalty.adversary import DomainAdversary
from selfcal.penalty.contract import Penalty
from selfcal.penalty.energy import EnergyPenalty
from selfcal.penalty.expected_variance import BinnedRegion, ExpectedVariance
from selfcal.penalty.flow_likelihood import FlowLikelihood
from selfcal.penalty.mmd import MaximumMeanDiscrepancy
from selfcal.penalty.optimal_transport import SinkhornDivergence, SlicedWasserstein
from selfcal.penalty.soft_histogram import HistogramChiSquare

BUILDERS: dict[str, Callable[[int, BinnedRegion], Penalty]] = {
    "energy": lambda features, _region: build_distance("energy", features),
    "sliced_wasserstein": lambda features, _region: build_distance("sliced_wasserstein", features),
    "sinkhorn": lambda _features, _region: SinkhornDivergence(),
    "mmd": lambda features, _region: build_distance("mmd", features),
    "histogram": lambda _features, _region: HistogramChiSquare(),
    "flow_likelihood": lambda features, _region: FlowLikelihood(features),
    "adversary": lambda features, _region: DomainAdversary(features),
    "expected_variance": lambda _features, region: ExpectedVariance(region),
}
"""Each from the number of features and what is counted in the region."""


DISTANCES = ("energy", "sliced_wasserstein", "mmd")
"""By which maps can be fitted. The Sinkhorn divergence takes 170 times as long as the energy distance."""


def build_distance(name: str, features: int) -> Penalty:
    """The distance ``name``, one of ``DISTANCES``."""
    builders: dict[str, Callable[[], Penalty]] = {
        "energy": EnergyPenalty,
        "sliced_wasserstein": lambda: SlicedWasserstein(features),
        "mmd": MaximumMeanDiscrepancy,
    }
    return builders[name]()


def build_penalty(name: str, features: int, region: BinnedRegion) -> Penalty:
    """The penalty ``name`` of one region, new (its own networks, if any, are not trained)."""
    return BUILDERS[name](features, region)
