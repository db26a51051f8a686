"""Subtraction of a control sample of the same sign (OS − SS), inside the likelihood.

W bosons and charm quarks have opposite charges, backgrounds have either sign equally often. Instead of
subtracting the counts n_SS from n_OS, both are fitted: with a free expectation B_pk of the background in
every bin,

    n_OS,pk ~ Pois(S_pk + B_pk),   n_SS,pk ~ Pois(B_pk),

so that only S = OS − SS is described by flavours. Nothing is assumed of the background but that it is the
same in both samples, and its statistical error is that of the control sample. The templates of S are
differences of simulation: for region r, control sample s and flavour f, with the prior yields N,

    S_f = N_rf t_rf − N_sf t_sf,

in which negative bins count as empty, the others being scaled to the flavour's total N_rf − N_sf; a flavour
whose total is not positive is left out. Jets of negative weight thus never enter a likelihood.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.errors import ConfigError
from selfcal.likelihood.templates import Templates

YIELD_MIN = 1e-6
"""Smallest total of a flavour in OS − SS, relative to its total in the region, that is not rounding."""
Array = NDArray[np.float64]


def subtract_same_sign(templates: Templates, config: FitConfig) -> Templates:
    """Templates of OS − SS in place of each region of ``config.same_sign``, without the control samples.

    Templates that have been subtracted already stay as they are.

    Raises
    ------
    ConfigError
        If a region or its control sample is not there.
    """
    if not config.same_sign or templates.same_sign:
        return templates
    for name in (*config.same_sign, *config.same_sign.values()):
        if name not in templates.regions:
            raise ConfigError(
                f"no region '{name}'",
                where="fit.same_sign",
                expected=f"regions among {', '.join(templates.regions)}",
            )
    for region, control in config.same_sign.items():
        pair = templates.regions.index(region), templates.regions.index(control)
        templates = _subtracted(templates, *pair)
    kept = [r for r, name in enumerate(templates.regions) if name not in config.same_sign.values()]
    control_data = {
        region: templates.data[templates.regions.index(control)]
        for region, control in config.same_sign.items()
    }
    return replace(_only(templates, kept), same_sign=control_data)


def _subtracted(templates: Templates, r: int, s: int) -> Templates:
    """The same templates with region ``r`` minus region ``s``."""
    observed = templates.data.sum(axis=(1, 2))
    yields = templates.composition[[r, s]] * observed[[r, s], None]
    before, after = (_scales(part[[r, s]], yields) for part in (templates.nominal, templates.calibrated))
    total = np.where(after[1] > 0, yields[0] - yields[1], yields[0])
    total = np.where(total > YIELD_MIN * yields[0], total, 0.0)

    def difference(both: Float[Array, "2 F P K"], scale: Array) -> Array:
        found = np.maximum(both[0] * scale[0, :, None, None] - both[1] * scale[1, :, None, None], 0.0)
        size = found.sum(axis=(1, 2))
        scaled = np.divide(total, size, out=np.zeros_like(size), where=size > 0)
        return np.asarray(found * scaled[:, None, None])

    def placed(part: Array, scale: Array, square: bool = False) -> Array:
        result = part.copy()
        both = part[..., [r, s], :, :, :]
        if square:
            squares = scale[:, :, None, None] ** 2
            result[r] = (both * squares).sum(axis=0) * (total > 0)[:, None, None]
        elif part.ndim == 5:
            result[:, r] = np.stack([difference(one, scale) for one in both])
        else:
            result[r] = difference(both, scale)
        return result

    composition = templates.composition.copy()
    uncertainty = templates.composition_relative_uncertainty.copy()
    composition[r] = total / observed[r]
    spread = np.hypot(yields[0] * uncertainty[r], yields[1] * uncertainty[s])
    uncertainty[r] = np.minimum(np.divide(spread, total, out=np.ones_like(total), where=total > 0), 1.0)
    return replace(
        templates,
        nominal=placed(templates.nominal, before),
        nominal_variance=placed(templates.nominal_variance, before, square=True),
        calibrated=placed(templates.calibrated, after),
        calibrated_variance=placed(templates.calibrated_variance, after, square=True),
        replicas=placed(templates.replicas, after),
        variations={name: placed(part, after) for name, part in templates.variations.items()},
        detector={name: placed(part, after) for name, part in templates.detector.items()},
        modelling={name: placed(part, after) for name, part in templates.modelling.items()},
        corrected=None if templates.corrected is None else placed(templates.corrected, after),
        composition=composition,
        composition_relative_uncertainty=uncertainty,
    )


def _scales(content: Float[Array, "2 F P K"], yields: Float[Array, "2 F"]) -> Float[Array, "2 F"]:
    """What turns sums of weights into the prior yields; zero where there is no simulation."""
    size = content.sum(axis=(2, 3))
    return np.asarray(np.divide(yields, size, out=np.zeros_like(yields), where=size > 0))


def _only(templates: Templates, kept: list[int]) -> Templates:
    """Some of the regions."""
    first = ("data", "nominal", "nominal_variance", "calibrated", "calibrated_variance", "composition")
    parts = {name: getattr(templates, name)[kept] for name in first}
    return replace(
        templates,
        regions=tuple(templates.regions[r] for r in kept),
        composition_relative_uncertainty=templates.composition_relative_uncertainty[kept],
        replicas=templates.replicas[:, kept],
        variations={name: part[kept] for name, part in templates.variations.items()},
        detector={name: part[kept] for name, part in templates.detector.items()},
        modelling={name: part[kept] for name, part in templates.modelling.items()},
        corrected=None if templates.corrected is None else templates.corrected[kept],
        **parts,
    )
