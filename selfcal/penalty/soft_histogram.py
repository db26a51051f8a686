"""Histograms with soft edges, and the chi-square between two of them."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.penalty.contract import Penalty, PenaltySample, mean_square_of_sum


def soft_bins(
    values: Float[Tensor, "*n"], edges: Float[Tensor, " edges"], bandwidth: float
) -> Float[Tensor, "*n bins"]:
    """m_b(x) = σ((x - e_b) / h) - σ((x - e_{b+1}) / h): the share of x in bin b.

    σ is the logistic function, h the ``bandwidth``; e_0 = -∞ and e_B = ∞, so that E inner ``edges``
    (ascending) give B = E + 1 bins and the shares add up to one. For h → 0 a hard histogram.
    """
    above = torch.sigmoid((values[..., None] - edges) / bandwidth)
    ones = torch.ones_like(values)[..., None]
    return torch.cat([ones, above], -1) - torch.cat([above, torch.zeros_like(ones)], -1)


class HistogramChiSquare(Penalty):
    """The chi-square between soft histograms of every coordinate, as in systematic-aware networks.

    D = ¼ mean over coordinates of Σ_b [(s_b - d_b)²] / q_b, with the shares s_b, d_b of simulation and
    data in bin b (:func:`soft_bins`), their mean q_b, and in the numerator the unbiased estimate
    without equal pairs of jets: zero on average for equal laws (up to the noise of q_b), one for
    histograms that do not overlap. The idea is that of Wunsch et al., arXiv 1907.11674 (there one
    variation against the nominal simulation, here data against simulation).
    """

    name: ClassVar[str] = "histogram"
    signed_weights: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    edges: Tensor

    def __init__(
        self,
        edges: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0),
        bandwidth: float = 0.1,
    ) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64), persistent=False)
        self.bandwidth = bandwidth

    def distance(self, simulation: PenaltySample, data: PenaltySample) -> Float[Tensor, ""]:
        squares, means, sizes = [], [], []
        for sample in (simulation, data):
            shares = soft_bins(sample.points, self.edges, self.bandwidth)
            squares.append(mean_square_of_sum(shares, sample.weight))
            means.append(torch.tensordot(sample.weight / sample.weight.sum(), shares, dims=1))
            sizes.append(sample.weight.sum().square() / sample.weight.square().sum())
        # Weighted by size, the mean is that of the pooled sample, which no permutation changes. A bin
        # whose content signed weights cancel counts as one with a single jet.
        total = sizes[0] + sizes[1]
        pooled = torch.maximum((sizes[0] * means[0] + sizes[1] * means[1]) / total, 1.0 / total)
        numerator = squares[0] + squares[1] - 2.0 * means[0] * means[1]
        result: Tensor = 0.25 * (numerator / pooled).sum(1).mean()
        return result

    def scale(self, data: PenaltySample) -> float:
        """One."""
        del data
        return 1.0
