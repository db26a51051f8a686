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

DISTANCES: dict[str, Callable[[int], Penalty]] = {
    "energy": lambda _features: EnergyPenalty(),
    "sliced_wasserstein": SlicedWasserstein,
    "mmd": lambda _features: MaximumMeanDiscrepancy(),
}
"""By which maps can be fitted, each from the number of features. The Sinkhorn divergence takes 170 times as
long as the energy distance."""


def _anywhere(build: Callable[[int], Penalty]) -> Callable[[int, BinnedRegion], Penalty]:
    """A builder that does not ask what is counted in the region."""
    return lambda features, _region: build(features)


BUILDERS: dict[str, Callable[[int, BinnedRegion], Penalty]] = {
    **{name: _anywhere(build) for name, build in DISTANCES.items()},
    "sinkhorn": lambda _features, _region: SinkhornDivergence(),
    "histogram": lambda _features, _region: HistogramChiSquare(),
    "flow_likelihood": lambda features, _region: FlowLikelihood(features),
    "adversary": lambda features, _region: DomainAdversary(features),
    "expected_variance": lambda _features, region: ExpectedVariance(region),
}
"""Each from the number of features and what is counted in the region."""


def build_penalty(name: str, features: int, region: BinnedRegion) -> Penalty:
    """The penalty ``name`` of one region, new (its own networks, if any, are not trained)."""
    return BUILDERS[name](features, region)
