"""Scale factors known from elsewhere as constraints of the fit.

With the nominal simulation's efficiency ε⁰_w of working point w and the external scale factor v_w ± s_w,

    ε_w(α) = (v_w + α s_w) ε⁰_w,   α ~ N(0, 1),

from which the shares of the discriminant bins follow by differences. They replace the calibrated shape of the
flavour, and α its map, residual and extrapolation uncertainties: without information in the data the scale
factor is v_w ± s_w. In every region the same factors act on that region's own efficiencies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from selfcal.config.external import ExternalPrior
from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError
from selfcal.likelihood.templates import Binning, Templates

NONE = -1
Array = NDArray[np.float64]


def external_entries(binning: Binning, config: FitConfig) -> Int[NDArray[np.int64], "F P"]:
    """Which entry of ``config.external`` holds for a flavour in a kinematic bin; -1 where none does.

    Raises
    ------
    ConfigError
        If two entries claim a bin, or an entry ends within a bin or covers none.
    """
    entries = np.full((len(FLAVOURS), binning.n_kinematic), NONE, dtype=np.int64)
    for i, entry in enumerate(config.external):
        f = FLAVOURS.index(entry.flavour)
        wanted = entry.pt_gev or (binning.pt_gev_edges[0], binning.pt_gev_edges[-1])
        covered = 0
        for p in range(binning.n_kinematic):
            low, high = binning.pt_gev_range(p)
            if high <= wanted[0] or low >= wanted[1]:
                continue
            if low < wanted[0] or high > wanted[1]:
                raise _refused(i, f"ends within a bin, {low:g}–{high:g} GeV", binning)
            if entries[f, p] != NONE:
                raise _refused(i, f"is the second one for {entry.flavour}, {low:g}–{high:g} GeV", binning)
            entries[f, p] = i
            covered += 1
        if not covered:
            raise _refused(i, "covers no bin", binning)
    return entries


def _refused(index: int, what: str, binning: Binning) -> ConfigError:
    return ConfigError(
        f"an external scale factor {what}",
        where=f"fit.external[{index}]",
        expected=f"pT ranges of whole bins of {', '.join(f'{edge:g}' for edge in binning.pt_gev_edges)}",
    )


def with_external(templates: Templates, config: FitConfig) -> Templates:
    """Templates in which external scale factors have taken the place of the calibration.

    Raises
    ------
    ConfigError
        As :func:`external_entries`, or if a scale factor makes the share of a bin negative.
    """
    if not config.external:
        return templates
    entries = external_entries(templates.binning, config)
    calibrated, variance = templates.calibrated.copy(), templates.calibrated_variance.copy()
    for f, p in np.argwhere(entries != NONE):
        for r in range(len(templates.regions)):
            content = templates.nominal[r, f, p]
            if content.sum() == 0:
                continue
            factor = bin_factors(content, config.external[entries[f, p]], 0.0)
            calibrated[r, f, p] = content * factor
            variance[r, f, p] = templates.nominal_variance[r, f, p] * factor**2
    known = (entries != NONE)[:, :, None]

    def settled(varied: Array) -> Array:
        return np.where(known, calibrated, varied)

    return replace(
        templates,
        calibrated=calibrated,
        calibrated_variance=variance,
        replicas=settled(templates.replicas),
        variations={name: settled(varied) for name, varied in templates.variations.items()},
        detector={name: settled(varied) for name, varied in templates.detector.items()},
        modelling={name: settled(varied) for name, varied in templates.modelling.items()},
    )


def bin_factors(content: Float[Array, " K"], entry: ExternalPrior, alpha: float) -> Float[Array, " K"]:
    """What every bin of a nominal template is multiplied by at α; the sum of the template stays.

    Raises
    ------
    ConfigError
        If a bin would have a negative share.
    """
    share = content / content.sum()
    values, uncertainties = entry.numbers(len(content) - 1)
    moved = np.array(values) + alpha * np.array(uncertainties)
    # Working points are configured tightest first, bins are loosest first.
    passing = np.concatenate([[1.0], moved[::-1] * np.cumsum(share[::-1])[::-1][1:], [0.0]])
    shares = passing[:-1] - passing[1:]
    if (shares < 0).any():
        raise ConfigError(
            f"the external scale factor of {entry.flavour} gives a bin of the discriminant a negative share",
            where="fit.external",
            expected="efficiencies that decrease from the loosest working point to the tightest, below one",
            fix="change value or uncertainty",
        )
    return np.asarray(np.divide(shares, share, out=np.ones_like(share), where=share > 0))


def external_shift(
    nominal: Float[Array, " K"], shape: Float[Array, " K"], entry: ExternalPrior
) -> Float[Array, " K"]:
    """Relative shift of a template's bins at α = 1; linear in α, and the template's sum stays.

    ``shape`` is the template in the fit, whose empty bins are filled; ``nominal`` the one before calibration.
    """
    centre, up = (bin_factors(nominal, entry, alpha) for alpha in (0.0, 1.0))
    bin_factors(nominal, entry, -1.0)
    shift = np.divide(up - centre, centre, out=np.zeros_like(centre), where=centre > 0)
    shift[0] = -(shape[1:] @ shift[1:]) / shape[0]
    return shift
