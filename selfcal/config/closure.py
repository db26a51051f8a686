"""When closure on a held-out region counts as passed."""

from __future__ import annotations

from selfcal.config.base import Configured, Positive, Probability
from selfcal.config.card import FlavourName


class ClosureLimits(Configured):
    """Of one flavour: what the ratio may miss one by, and the largest uncertainty that may be quoted."""

    tolerance: Positive
    largest_uncertainty: Positive


class ClosureConfig(Configured):
    """Held-out rows at ``working_points`` pass within ``tolerance`` or ``sigma`` of their uncertainty."""

    working_points: tuple[Probability, ...] = (0.77, 0.85)
    sigma: Positive = 1.5
    flavours: dict[FlavourName, ClosureLimits] = {
        "b": ClosureLimits(tolerance=0.015, largest_uncertainty=0.015),
        "c": ClosureLimits(tolerance=0.05, largest_uncertainty=0.07),
        "light": ClosureLimits(tolerance=0.15, largest_uncertainty=0.15),
    }
