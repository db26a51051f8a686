"""What regression of the true pT gains: response pT / true pT before and after it, by flavour."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS

CENTRAL = (0.1587, 0.8413)
"""Quantiles between which lie 68.3 % of the jets, as within one standard deviation of a Gaussian."""

JETS_MIN = 20
"""Of fewer jets of a flavour no width is given."""


def scale_and_resolution(response: NDArray[np.float64]) -> tuple[float, float]:
    """Median m of the response (N,), and half the width of its central 68.3 % over m."""
    low, middle, high = np.quantile(response, (CENTRAL[0], 0.5, CENTRAL[1]))
    return float(middle), float((high - low) / (2.0 * middle))


def measure_response(
    pt_gev: NDArray[np.floating],
    regressed_pt_gev: NDArray[np.floating],
    truth_pt_gev: NDArray[np.floating],
    flavour: NDArray[np.integer],
    event: NDArray[np.integer],
    *,
    replicas: int = 100,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Per flavour: scale and resolution of pT and of the regressed pT, and the ratio of the resolutions.

    Jets whose true pT is NaN do not count; flavours with fewer than :data:`JETS_MIN` others are left out.
    Errors are the spread over bootstrap replicas of whole events, the same for both, so that the
    error of the ratio knows that the two are measured on the same jets. Without width before, the
    ratio is None.
    """
    known = np.isfinite(truth_pt_gev)
    generator = np.random.default_rng(seed)
    rows = []
    for index, name in enumerate(FLAVOURS):
        chosen = known & (flavour == index)
        if chosen.sum() < JETS_MIN:
            continue
        truth = truth_pt_gev[chosen].astype(np.float64)
        responses = [pt[chosen] / truth for pt in (pt_gev, regressed_pt_gev)]
        values = [scale_and_resolution(response) for response in responses]
        _, number = np.unique(event[chosen], return_inverse=True)
        drawn = []
        for _ in range(replicas):
            again = np.repeat(np.arange(len(truth)), generator.poisson(1.0, number.max() + 1)[number])
            if len(again):
                drawn.append([scale_and_resolution(response[again]) for response in responses])
        errors = np.std(drawn, axis=0, ddof=1)
        row: dict[str, Any] = {"flavour": name, "jets": int(chosen.sum())}
        for k, when in enumerate(("before", "after")):
            row[when] = {
                "scale": values[k][0],
                "scale_error": float(errors[k, 0]),
                "resolution": values[k][1],
                "resolution_error": float(errors[k, 1]),
            }
        widths = np.array(drawn)[..., 1]
        defined = bool((widths[:, 0] > 0).all())
        row["resolution_ratio"] = values[1][1] / values[0][1] if defined else None
        ratio_error = float(np.std(widths[:, 1] / widths[:, 0], ddof=1)) if defined else None
        row["resolution_ratio_error"] = ratio_error
        rows.append(row)
    return rows
