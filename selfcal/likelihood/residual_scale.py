"""How wide the residuals of each flavour are, as the data say: a variance component of the likelihood.

The residuals of flavour f are λ_f w_fpk α_fpk with α ~ N(0, 1), w the widths as configured. λ_f maximises
the marginal likelihood of the data (all parameters integrated out, by Laplace) times a prior in which the
configured width counts like ν bins, −2 ln p(ln λ) = ν (2 ln λ + λ⁻²). There (MacKay, Neural Computation 4
(1992) 415)

    λ² = (λ² Σ_pk α̂²_pk + ν) / (γ + ν),    γ = Σ_pk (1 − σ²(α̂_pk)),

with α̂ and its variance σ² from the fit with λ: γ is how many residuals the data determine. Where they
determine none, λ = 1; where residuals are all zero, λ² = ν / (γ + ν).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.likelihood.fit import FitResult, fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import Layout
from selfcal.likelihood.templates import Templates
from selfcal.likelihood.workspace import build_workspace

TOLERANCE = 0.005
"""Of ln λ between two fits."""
FITS_MAX = 50

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ResidualScale:
    """Factors of the residuals' widths, by flavour as in the layout.

    Attributes
    ----------
    factor : (F,) λ, one where it was not estimated
    determined : (F,) γ, how many residuals the data determine; zero where nothing was estimated
    settled : whether the last fit changed no ln λ by more than ``TOLERANCE``
    """

    factor: Float[Array, " F"]
    determined: Float[Array, " F"]
    settled: bool = True

    def as_json(self, flavours: tuple[str, ...]) -> dict[str, Any]:
        """``residual_scale`` of ``fit.json``."""
        return {
            "factor": dict(zip(flavours, self.factor.tolist(), strict=True)),
            "determined": dict(zip(flavours, self.determined.tolist(), strict=True)),
            "settled": self.settled,
        }


def as_configured(layout: Layout) -> ResidualScale:
    """Every width as the configuration gives it."""
    n_flavours = len(layout.flavours)
    return ResidualScale(np.ones(n_flavours), np.zeros(n_flavours))


def residual_scale(
    templates: Templates, layout: Layout, config: FitConfig, worth: float, seed: int = 1
) -> ResidualScale:
    """λ of every flavour from the data, ν = ``worth``; several fits, one after the other.

    Raises
    ------
    FitError
        If a fit does not converge and ``config.force`` is not set.
    """
    found = as_configured(layout)
    for _ in range(FITS_MAX):
        model = HistFactory(build_workspace(templates, layout, config, found.factor))
        result = fit(model, seed=seed, force=config.force)
        after = improved(found.factor, result, layout.flavours, worth)
        change = np.abs(np.log(after.factor / found.factor)).max()
        found = after
        if change < TOLERANCE:
            return found
    return ResidualScale(found.factor, found.determined, settled=False)


def improved(
    factor: Float[Array, " F"], result: FitResult, flavours: tuple[str, ...], worth: float
) -> ResidualScale:
    """λ and γ after a fit with the factors ``factor``; at the maximum λ stays."""
    variance = np.diag(result.covariance)
    scale, determined = np.empty(len(flavours)), np.empty(len(flavours))
    for f, flavour in enumerate(flavours):
        rows = [i for i, name in enumerate(result.names) if _is_residual(name, flavour)]
        # A variance of zero is that of a parameter at its bound: it tells nothing of its neighbours.
        moving = [i for i in rows if variance[i] > 0]
        squares = float((result.best_fit[moving] ** 2).sum())
        determined[f] = max(float((1 - variance[moving]).sum()), 0.0)
        scale[f] = np.sqrt((factor[f] ** 2 * squares + worth) / (determined[f] + worth))
    return ResidualScale(scale, determined)


def _is_residual(name: str, flavour: str) -> bool:
    return name.startswith(f"residual_{flavour}_")
