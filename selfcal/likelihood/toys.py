"""Whether the pulls of an estimator are those of a unit Gaussian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pulls = NDArray[np.float64]


@dataclass(frozen=True)
class PullCheck:
    """Mean and width of n pulls, with the limits that they respect at ``z_max`` standard deviations."""

    mean: float
    width: float
    mean_limit: float
    width_low: float
    width_high: float

    @property
    def passed(self) -> bool:
        """Whether both are compatible with a unit Gaussian."""
        return abs(self.mean) <= self.mean_limit and self.width_low <= self.width <= self.width_high


def check_pulls(
    estimate: Pulls,
    truth: Pulls,
    uncertainty: Pulls,
    independent: int | None = None,
    z_max: float = 3.0,
) -> PullCheck:
    """Compare (estimate − truth)/uncertainty with a unit Gaussian.

    ``independent`` is the number of independent pulls (default: all); mean and width of that many
    unit Gaussian numbers vary by 1/√n and 1/√(2n).
    """
    pulls = ((estimate - truth) / uncertainty).ravel()
    count = pulls.size if independent is None else independent
    spread = z_max / math.sqrt(2 * count)
    return PullCheck(
        float(pulls.mean()), float(pulls.std(ddof=1)), z_max / math.sqrt(count), 1 - spread, 1 + spread
    )
