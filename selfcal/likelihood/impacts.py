"""What each nuisance parameter does to each scale factor.

With the covariance C of the fit, the derivative J of the scale factors, the fitted width σ̂_j = √C_jj and the
width σ_j of the constraint,

    impact        I_sj = (J C)_sj / σ̂_j   of s when α_j is held at α̂_j ± σ̂_j and all others are refitted
    contribution  G_sj = (J C)_sj / σ_j    of s when the centre of the constraint moves by σ_j

The squares of the contributions add up, with the statistical part, to the variance of s; those of the
impacts do not (arXiv:2307.04007). Both are first-order; :func:`refitted_impacts` does what the definition
of I says, with two fits per parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.errors import FitError
from selfcal.likelihood.fit import FitResult, fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.scale_factors import ScaleFactors, group_of

AGREEMENT = 0.02
"""Refitted and first-order impacts may differ by this part of the total uncertainty of a scale factor."""


@dataclass(frozen=True)
class Impacts:
    """First-order impacts of J constrained parameters on S scale factors.

    Attributes
    ----------
    indices : (J,) places of the parameters in the model
    names : their names
    impact, contribution : (S, J) as defined above, with sign
    pull, constraint : (J,) (α̂ − a)/σ and σ̂/σ
    """

    indices: NDArray[np.int64]
    names: tuple[str, ...]
    impact: NDArray[np.float64]
    contribution: NDArray[np.float64]
    pull: NDArray[np.float64]
    constraint: NDArray[np.float64]


@dataclass(frozen=True)
class RefittedImpacts:
    """Shifts (S, 2, J) of the scale factors in the refits at α̂ + σ̂ and α̂ − σ̂.

    ``indices`` (J,) are the parameters' places; those of which a refit failed are in ``failed`` instead.
    """

    indices: NDArray[np.int64]
    shift: NDArray[np.float64]
    failed: tuple[str, ...]

    @property
    def impact(self) -> NDArray[np.float64]:
        """Half the difference of up and down, (S, J)."""
        half: NDArray[np.float64] = (self.shift[:, 0] - self.shift[:, 1]) / 2
        return half


def impacts(model: HistFactory, result: FitResult, factors: ScaleFactors) -> Impacts:
    """Impacts of every constrained parameter that the fit could move."""
    sigma, width = result.uncertainty, model.width.numpy()
    chosen = np.flatnonzero(model.constrained.numpy() & ~model.fixed.numpy() & (sigma > 0))
    response = (factors.jacobian @ result.covariance)[:, chosen]
    return Impacts(
        chosen,
        tuple(result.names[j] for j in chosen),
        response / sigma[chosen],
        response / width[chosen],
        (result.best_fit - model.centre.numpy())[chosen] / width[chosen],
        sigma[chosen] / width[chosen],
    )


def hold(model: HistFactory, *indices: int) -> HistFactory:
    """The same model with parameters that do not move."""
    held = copy.copy(model)
    held.fixed = model.fixed.clone()
    held.fixed[list(indices)] = True
    return held


def refitted_impacts(
    model: HistFactory, result: FitResult, factors: ScaleFactors, indices: Sequence[int]
) -> RefittedImpacts:
    """Fit twice per parameter, with the parameter held one fitted σ above and below its best fit."""
    best, sigma = torch.from_numpy(result.best_fit), result.uncertainty
    kept, shifts, failed = [], [], []
    for j in indices:
        held, moved = hold(model, j), []
        try:
            for sign in (1, -1):
                # A first-order guess of where the others go saves most of the iterations.
                start = best + sign * torch.from_numpy(result.covariance[:, j] / sigma[j])
                refit = fit(held, start=start)
                moved.append(factors.ratios.values(torch.from_numpy(refit.best_fit)).numpy() - factors.value)
        except FitError:
            failed.append(result.names[j])
            continue
        kept.append(j)
        shifts.append(np.stack(moved, axis=1))
    stacked = np.stack(shifts, axis=2) if shifts else np.zeros((len(factors.value), 2, 0))
    return RefittedImpacts(np.array(kept, dtype=np.int64), stacked, tuple(failed))


def strongest(found: Impacts, factors: ScaleFactors, count: int) -> list[int]:
    """Places in the model of the ``count`` parameters with the largest impact on any scale factor, in σ."""
    size = np.abs(found.impact) / np.sqrt(np.diag(factors.covariance))[:, None]
    order = np.argsort(-size.max(axis=0, initial=0.0), kind="stable")[:count]
    return [int(found.indices[i]) for i in order]


def largest_difference(
    found: Impacts, refitted: RefittedImpacts, factors: ScaleFactors
) -> Float[NDArray[np.float64], " J"]:
    """Per refitted parameter: largest |refitted − first-order impact| over the scale factors, in total σ."""
    place = {int(j): i for i, j in enumerate(found.indices)}
    chosen = [place[int(j)] for j in refitted.indices]
    total = np.sqrt(np.diag(factors.covariance))[:, None]
    difference = np.abs(refitted.impact - found.impact[:, chosen]) / total
    return np.asarray(difference.max(axis=0, initial=0.0))


def impacts_json(
    found: Impacts, refitted: RefittedImpacts, factors: ScaleFactors, listed: int
) -> dict[str, Any]:
    """The content of ``impacts.json``: per scale factor the ``listed`` largest impacts, largest first.

    ``scale_factors[].row`` is the row of ``scale_factors.json``; the breakdown by group is there (``syst``).
    """
    total = np.sqrt(np.diag(factors.covariance))
    by_refit = {int(j): shift for j, shift in zip(refitted.indices, refitted.shift.T, strict=True)}
    table = []
    for s, row in enumerate(factors.measured):
        order = np.argsort(-np.abs(found.impact[s]), kind="stable")[:listed]
        ranked = []
        for i in order:
            shift = by_refit.get(int(found.indices[i]))
            ranked.append(
                {
                    "parameter": found.names[i],
                    "group": group_of(found.names[i]),
                    "impact": float(found.impact[s, i]),
                    "contribution": float(found.contribution[s, i]),
                    "pull": float(found.pull[i]),
                    "constraint": float(found.constraint[i]),
                    "refit": None
                    if shift is None
                    else {"up": float(shift[0, s]), "down": float(shift[1, s])},
                }
            )
        table.append({"row": int(row), "total": float(total[s]), "impacts": ranked})
    differences = largest_difference(found, refitted, factors)
    names = {int(j): name for j, name in zip(found.indices, found.names, strict=True)}
    return {
        "schema_version": 1,
        "scale_factors": table,
        "refits": {
            "largest_difference_in_sigma": {
                names[int(j)]: float(value) for j, value in zip(refitted.indices, differences, strict=True)
            },
            "agreement_limit": AGREEMENT,
            "failed": list(refitted.failed),
        },
    }
