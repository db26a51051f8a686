"""Efficiencies of selections of discriminant bins, with their statistical covariance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PassingShares:
    """Efficiencies of S selections of discriminant bins, (S,), and their covariance (S, S)."""

    value: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        discriminant: NDArray[np.float64],
        weight: NDArray[np.float64],
        edges: Sequence[float],
        selections: Sequence[Sequence[int]] | None = None,
    ) -> PassingShares:
        """ε = A s with the bin shares s, and A (diag(s) - s sᵀ) Aᵀ / n with n = (Σw)² / Σw².

        Each selection is a set of bins; without any, the nested ones D >= edge for every edge.
        """
        bins = len(edges) + 1
        if selections is None:
            selections = [range(first, bins) for first in range(1, bins)]
        chosen = np.zeros((len(selections), bins))
        for row, selection in enumerate(selections):
            chosen[row, list(selection)] = 1.0
        total = weight.sum()
        share = np.bincount(np.digitize(discriminant, edges), weights=weight, minlength=bins) / total
        size = total**2 / (weight**2).sum()
        return cls(chosen @ share, chosen @ (np.diag(share) - np.outer(share, share)) @ chosen.T / size)

    def at(self, index: NDArray[np.integer]) -> PassingShares:
        """Some of the selections."""
        return PassingShares(self.value[index], self.covariance[np.ix_(index, index)])

    def ratio_covariance(self, below: PassingShares) -> NDArray[np.float64]:
        """Covariance (S, S) of self / below, to first order."""
        ratio = self.value / below.value
        relative = self.covariance / np.outer(self.value, self.value)
        relative = relative + below.covariance / np.outer(below.value, below.value)
        return np.outer(ratio, ratio) * relative
