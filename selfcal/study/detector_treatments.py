r"""Three treatments of the detector in the same fit, and what each adds to the uncertainty of scale factors.

- ``guessed``: detector parameters α_j, one prior width each, are held at zero in the fit; each one, moved by
  one, shifts scale factor s by G_sj = [s(α_j = 1) - s(α_j = -1)]/2, and Σ_j G_j G_jᵀ is added to its
  covariance;
- ``inferred``: the directions of the posterior from tracks, as constrained parameters of the likelihood;
- ``profiled``: the parameters of ``guessed`` as constrained parameters of the likelihood.

The detector part of a variance is the same in all three: what it would be less by if the detector were known,

    σ²(detector) = J C_·d C_dd⁻¹ C_d· Jᵀ      (guessed: Σ_j G_j²)

with the covariance C of the fit, the columns d of the detector's parameters and the derivative J of the scale
factors. It holds what a profiled parameter costs in statistical precision. The widths of residuals are scaled
by the data in each treatment by itself (``fit.residual_width_worth``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.fit import FitConfig
from selfcal.likelihood.coverage import ToyScaleFactors, collect_toys, toy_scale_factors
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import FitResult, fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.impacts import hold
from selfcal.likelihood.layout import Layout
from selfcal.likelihood.scale_factors import ScaleFactors, group_of, scale_factors
from selfcal.likelihood.stage import Measurement, measure
from selfcal.likelihood.templates import Templates
from selfcal.likelihood.toy_fits import ToyFits, batch_size, draw_toys, fit_batch

Floats = NDArray[np.float64]
Treatment = Literal["guessed", "inferred", "profiled"]
GROUP = "detector"


@dataclass(frozen=True)
class Treated:
    """The scale factors of one treatment.

    Attributes
    ----------
    factors : their covariance includes the detector
    detector : (S,) variance that the detector adds
    model : in which toys are drawn, with D parameters; ``places`` are those of the detector
    theta : (D,) best fit
    held : whether the fit leaves the detector's parameters where they are
    """

    name: Treatment
    factors: ScaleFactors
    layout: Layout
    detector: Float[Floats, " S"]
    model: HistFactory
    places: tuple[int, ...]
    theta: Float[Tensor, " D"]
    held: bool


def treat_profiled(
    name: Treatment, templates: Templates, config: FitConfig, seed: int, *, blind: bool
) -> Treated:
    """The detector's templates as constrained parameters.

    Raises
    ------
    FitError
        If the fit is degenerate or does not converge.
    """
    measured = measure(templates, config, seed, blind=blind)
    places = detector_places(measured.model)
    added = np.diag(explained(measured.factors, measured.result, places))
    theta = torch.from_numpy(measured.result.best_fit)
    return Treated(name, measured.factors, measured.layout, added, measured.model, places, theta, held=False)


def treat_guessed(measured: Measurement, seed: int) -> Treated:
    """The detector's parameters of ``measured`` held at zero, and what each of them moves added.

    Raises
    ------
    FitError
        If a fit does not converge.
    """
    model = measured.model
    places = detector_places(model)
    held = hold(model, *places)
    result = fit(held, start=model.start, seed=seed)
    factors = scale_factors(measured.templates, measured.layout, held, result)
    moved = shifts(held, result, factors, places)
    added = moved @ moved.T
    groups = {**factors.group_covariance, GROUP: added}
    factors = replace(factors, covariance=factors.covariance + added, group_covariance=groups)
    theta = torch.from_numpy(result.best_fit)
    return Treated("guessed", factors, measured.layout, np.diag(added), model, places, theta, held=True)


def detector_places(model: HistFactory) -> tuple[int, ...]:
    """Where the detector's parameters are among those of ``model``."""
    return tuple(j for j, parameter in enumerate(model.parameters) if group_of(parameter.name) == GROUP)


def explained(factors: ScaleFactors, result: FitResult, places: Sequence[int]) -> Float[Floats, "S S"]:
    """What the covariance would be less by if the parameters at ``places`` were known, to first order."""
    chosen = list(places)
    if not chosen:
        return np.zeros_like(factors.covariance)
    across = factors.jacobian @ result.covariance[:, chosen]
    return np.asarray(across @ np.linalg.solve(result.covariance[np.ix_(chosen, chosen)], across.T))


def shifts(
    held: HistFactory, result: FitResult, factors: ScaleFactors, places: Sequence[int]
) -> Float[Floats, "S M"]:
    """Half the difference of the scale factors in refits with one parameter at 1 and at -1."""
    best = torch.from_numpy(result.best_fit)
    columns = []
    for place in places:
        ends = []
        for value in (1.0, -1.0):
            start = best.clone()
            start[place] = value
            refit = fit(held, start=start)
            ends.append(factors.ratios.values(torch.from_numpy(refit.best_fit)).numpy())
        columns.append((ends[0] - ends[1]) / 2)
    return np.stack(columns, axis=1) if columns else np.zeros((len(factors.value), 0))


def treated_toys(treated: Treated, number: int, seed: int) -> ToyScaleFactors:
    """Toys whose detector is drawn from what the treatment says of it.

    Where the fit holds the detector, a toy's true parameters are drawn and the fit knows nothing of them;
    elsewhere their auxiliary measurements are, as those of all constrained parameters.
    """
    ratios = treated.factors.ratios
    if not treated.held:
        return toy_scale_factors(ratios, treated.theta, number, seed)
    added = torch.from_numpy(treated.detector.copy())
    return collect_toys(ratios, _held_toys(treated, number, seed), seed, added)


def _held_toys(treated: Treated, number: int, seed: int) -> Iterator[tuple[ToyFits, Tensor]]:
    model, theta, places = treated.model, treated.theta, list(treated.places)
    generator = torch.Generator().manual_seed(seed)
    differentiator, size = Differentiator(hold(model, *places)), batch_size(model)
    for first in range(0, number, size):
        true = theta.repeat(min(size, number - first), 1)
        true[:, places] = torch.randn((len(true), len(places)), generator=generator, dtype=torch.float64)
        drawn = [draw_toys(model, point, 1, generator) for point in true]
        counts, centre = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        centre[:, places] = 0.0
        yield fit_batch(differentiator, theta, counts, centre, seed), true
