"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Linear rise to ``peak`` over the first ``warmup_fraction`` of ``steps``, then a half cosine to zero.

    With u = (step - w) / (steps - w) beyond the w warm-up steps: peak (1 + cos(pi u)) / 2.
    """
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2
