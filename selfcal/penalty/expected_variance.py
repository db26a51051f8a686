"""The inference-aware penalty: the uncertainty that a binned fit of the scores would end with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import Penalty, PenaltySample, mean_square_of_sum
from selfcal.penalty.soft_histogram import soft_bins


@dataclass(frozen=True)
class BinnedRegion:
    """What is counted in one control region.

    Attributes
    ----------
    axis : points (n, features) to the binned quantity (n), a discriminant
    edges : inner bin edges of that quantity, ascending
    bandwidth : softness of the edges, in its units
    prior_width : (flavours,) relative σ_k, what is known of each flavour's factor beforehand
    expected_jets : number of jets in data
    """

    axis: Callable[[Tensor], Tensor]
    edges: Float[Tensor, " edges"]
    bandwidth: float
    prior_width: Float[Tensor, " flavours"]
    expected_jets: float


def scale_factor_information(
    templates: Float[Tensor, "flavours bins"], prior_width: Float[Tensor, " flavours"]
) -> Float[Tensor, "flavours flavours"]:
    """I_jk = Σ_b s_jb s_kb / ν_b + δ_jk / σ_k²: the Fisher information of the factors μ at one.

    The likelihood is Π_b Pois(n_b | Σ_k μ_k s_kb) Π_k N(1 | μ_k, σ_k), with the expected counts s_kb of
    flavour k in bin b, ν_b = Σ_k s_kb, and the relative ``prior_width`` σ_k.
    """
    expected = templates.sum(0)
    filled = expected > 0
    kept = templates[:, filled]
    return (kept / expected[filled]) @ kept.T + torch.diag(prior_width**-2)


class ExpectedVariance(Penalty):
    """D = mean_k [ C_kk + b_k² ] / σ_k²: expected squared error of the flavours' scale factors.

    C = I⁻¹ (:func:`scale_factor_information`) is the covariance of the scale factors μ_k from the soft
    histogram of one region's discriminant with as many jets as its data have (:class:`BinnedRegion`);
    b = C Σ_b (s_·b / ν_b) (d_b - ν_b) is, to first order, how far the fit is drawn by the difference
    between data d and simulation ν. Equally, C + b bᵀ is the covariance with that difference as a
    nuisance of one standard deviation which data do not constrain. b² is estimated without equal
    pairs of jets; C is not linear in the jets, hence ``unbiased`` is false.

    Scores that say nothing have C_kk = σ_k²: unlike a distance, this penalty grows when the tagger
    loses information. After arXiv 1806.04743 (INFERNO) and neos (arXiv 2203.05570).
    """

    name: ClassVar[str] = "expected_variance"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = False
    needs_flavours: ClassVar[bool] = True
    has_floor: ClassVar[bool] = False
    drives_calibration: ClassVar[bool] = False

    def __init__(self, region: BinnedRegion) -> None:
        super().__init__()
        self.region = region

    def templates(self, simulation: PenaltySample) -> Float[Tensor, "flavours bins"]:
        """Expected counts s_kb, whose sum is ``expected_jets``; needs flavours."""
        assert simulation.flavour is not None
        weight = self.region.expected_jets * simulation.weight / simulation.weight.sum()
        shares = weight[:, None] * self._shares(simulation)
        empty = shares.new_zeros(len(self.region.prior_width), shares.shape[1])
        # Signed weights can cancel to less than nothing in a bin, which no likelihood can expect.
        return empty.index_add(0, simulation.flavour, shares).clamp_min(0.0)

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        templates, width = self.templates(simulation), self.region.prior_width
        covariance = torch.linalg.inv(scale_factor_information(templates, width))
        # pull[k, b]: by how much a share of one in bin b draws the factor of flavour k.
        pull = self.region.expected_jets * covariance @ (templates / templates.sum(0).clamp_min(1e-9))
        of_simulation, of_data = self._shares(simulation) @ pull.T, self._shares(data) @ pull.T
        bias_square = mean_square_of_sum(of_simulation, simulation.weight) + mean_square_of_sum(
            of_data, data.weight
        )
        mean_simulation = simulation.weight @ of_simulation / simulation.weight.sum()
        mean_data = data.weight @ of_data / data.weight.sum()
        bias_square = bias_square - 2.0 * mean_simulation * mean_data
        result: Tensor = ((covariance.diagonal() + bias_square) / width.square()).mean()
        return result

    def scale(self, data: PenaltySample) -> float:
        """One: the variance before any data."""
        del data
        return 1.0

    def _shares(self, sample: PenaltySample) -> Float[Tensor, "n bins"]:
        return soft_bins(self.region.axis(sample.points), self.region.edges, self.region.bandwidth)
