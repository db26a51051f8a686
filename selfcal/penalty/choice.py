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
    "energy": lambda _features, _region: EnergyPenalty(),
    "sliced_wasserstein": lambda features, _region: SlicedWasserstein(features),
    "sinkhorn": lambda _features, _region: SinkhornDivergence(),
    "mmd": lambda _features, _region: MaximumMeanDiscrepancy(),
    "histogram": lambda _features, _region: HistogramChiSquare(),
    "flow_likelihood": lambda features, _region: FlowLikelihood(features),
    "adversary": lambda features, _region: DomainAdversary(features),
    "expected_variance": lambda _features, region: ExpectedVariance(region),
}
"""Each from the number of features and what is counted in the region."""


def build_penalty(name: str, features: int, region: BinnedRegion) -> Penalty:
    """The penalty ``name`` of one region, new (its own networks, if any, are not trained)."""
    return BUILDERS[name](features, region)
