"""Fractions and map together: one χ² of both against the truth of a pseudo-experiment.

The vector holds the fractions π_rf of at least ``FRACTION_MIN`` and ln ε_f, the efficiency of each flavour's
calibrated simulation in its own largest region at the middle working point. Its covariance adds what the
calibration says of itself: the bootstrap replicas, which know how fractions and maps go together, the bulk
fit's floor and the difference of both fits for the fractions, the other map model and the detector's
posterior for the efficiencies, and the statistical errors of the simulation they are read from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.data.flavours import FLAVOURS
from selfcal.likelihood.templates import Templates
from selfcal.study.warm_calibration import WarmStart
from selfcal.transport.calibration import Calibration

Floats = NDArray[np.float64]
FRACTION_MIN = 0.05
"""Smaller fractions are decided by their priors."""


def joint_deviation(
    templates: Templates, calibration: Calibration, warm: WarmStart, fractions: Floats, truth: Floats
) -> dict[str, Any]:
    """χ², number of quantities, p-value and the pull of each; ``truth``: true counts (R, F, P, K)."""
    fitted = calibration.fractions.numpy()
    chosen = np.argwhere(fractions >= FRACTION_MIN)
    of_region, of_flavour = chosen.T
    places = of_region, of_flavour
    names = [f"{calibration.regions[r]} {FLAVOURS[f]}" for r, f in chosen]
    deviation = [fitted[places] - fractions[places]]
    movement = [warm.replica_fractions[:, of_region, of_flavour] * fitted[places]]
    total = calibration.fraction_uncertainty.numpy()[places]
    own = np.sqrt(np.maximum(total**2 - movement[0].var(0, ddof=1), 0.0))
    middle = templates.binning.n_bins // 2
    variance, common = [own**2], []
    for f, flavour in enumerate(FLAVOURS):
        r = int(templates.calibrated[:, f].sum(axis=(1, 2)).argmax())
        calibrated, true = (float(_efficiency(part[r, f], middle)) for part in (templates.calibrated, truth))
        if not 0 < calibrated < 1 or not true > 0:
            continue
        names.append(f"efficiency {flavour}")
        deviation.append(np.array([np.log(calibrated / true)]))

        def logarithms(varied: Floats, place: tuple[int, int] = (r, f), start: float = calibrated) -> Floats:
            return np.log(np.maximum(_efficiency(varied[:, place[0], place[1]], middle), 1e-9) / start)

        movement.append(logarithms(templates.replicas)[:, None])
        size = templates.calibrated[r, f].sum() ** 2 / templates.calibrated_variance[r, f].sum()
        variance.append(np.array([(1 - calibrated) / (calibrated * size)]))
        other = [*templates.variations.values(), *templates.detector.values()]
        common.append(logarithms(np.stack(other)))
    moved = np.concatenate(movement, axis=1)
    covariance = np.cov(moved, rowvar=False) + np.diag(np.concatenate(variance))
    if common:
        shifts = np.stack(common)
        first = len(covariance) - len(shifts)
        covariance[first:, first:] += shifts @ shifts.T
    delta = np.concatenate(deviation)
    chi2 = float(delta @ np.linalg.solve(covariance, delta))
    return {
        "chi2": chi2,
        "ndf": len(delta),
        "p_value": float(stats.chi2.sf(chi2, len(delta))),
        "pulls": dict(zip(names, (delta / np.sqrt(np.diag(covariance))).tolist(), strict=True)),
    }


def _efficiency(counts: Floats, first: int) -> Floats:
    """Share of the bins from ``first`` on; the last two axes are kinematic and discriminant bins."""
    passing: Floats = counts[..., first:].sum(axis=(-1, -2)) / counts.sum(axis=(-1, -2))
    return passing
