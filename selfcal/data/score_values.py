"""From the stored scores of a tagger to ln p that every later step can take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from selfcal.errors import DataError

FLOOR = 1e-9
"""Smallest class probability. Scores are stored with a relative precision of 1e-7 or worse, so what
underflowed to zero has no information below it; a larger floor would change scores that have."""


ROUNDING = 1e-5
"""Sums of scores within this of one are one."""


def log_scores(probabilities: NDArray[np.float64], classes: Sequence[str], where: str) -> NDArray[np.float64]:
    """ln p, (N, K), of K class probabilities, with p' = max(p, FLOOR), divided by their sum where that
    differs from one by more than ``ROUNDING``.

    Sums that are one up to rounding are left alone: only ratios count, and so ln p of what
    a file holds is ln p again after another writing and reading.
    A saturated score (0 or 1) becomes a finite log-ratio. A row with a negative entry, the
    sentinel of jets that the tagger did not look at, becomes NaN as a whole: the guards
    count such rows and refuse them unless the card accepts ``missing_scores``.

    Raises
    ------
    DataError
        If a row is NaN or infinite, or its probabilities do not add up to one within 2 per cent.
    """
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(axis=1)).sum())
        raise DataError(f"{bad} jets with NaN or infinite scores", where=where, expected="probabilities")
    absent = (probabilities < 0).any(axis=1)
    total = probabilities.sum(axis=1)
    wrong = ~absent & (np.abs(total - 1) > 0.02)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"the scores of {int(wrong.sum())} jets do not add up to 1 (first: {total[first]:g})",
            where=where,
            expected=f"probabilities of {', '.join(classes)}",
            fix="name the fields of all classes under 'scores.fields' in the data card",
        )
    floored = np.maximum(probabilities, FLOOR)
    total = floored.sum(axis=1, keepdims=True)
    result: NDArray[np.float64] = np.log(floored / np.where(np.abs(total - 1) > ROUNDING, total, 1.0))
    result[absent] = np.nan
    return result
