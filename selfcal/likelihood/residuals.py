"""By how much a calibrated shape may be off, in single bins and as a whole, beside the modes of its map."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.likelihood.layout import Layout
from selfcal.likelihood.templates import Templates

WIDTH_MAX = 1.5
"""Of a residual, in the logarithm: what the map hardly knows is free within a factor of four and a half."""

Array = NDArray[np.float64]


def residual_widths(templates: Templates, layout: Layout, config: FitConfig) -> Float[Array, "F P K"]:
    """√(w_f² + (k σ_fpk)²): w is ``residual_width``, k ``residual_of_map``, σ what the map is uncertain by.

    σ²_fpk in the reference region of flavour f is the variance over the bootstrap replicas of ln s, s the
    share of bin k in its kinematic bin, plus the squared shift of ln s under every other map model. The modes
    of the likelihood move many bins together by as much; the residual lets each bin go its own way.
    """
    n_flavours, (n_kinematic, n_bins) = len(layout.flavours), templates.data.shape[1:]
    widths = np.empty((n_flavours, n_kinematic, n_bins))
    for f, flavour in enumerate(layout.flavours):
        own = config.residual_width[flavour]  # type: ignore[index]
        place = int(layout.reference[f]), f
        spread = _spread(templates, place) if config.residual_of_map and place[0] >= 0 else np.zeros(1)
        widths[f] = np.minimum(np.hypot(own, config.residual_of_map * spread), max(own, WIDTH_MAX))
    return widths


def slide_shifts(content: Float[Array, "*places K"]) -> Float[Array, "*places K"]:
    """Relative change of each bin's share when the log-odds of passing every edge between bins grow by one.

    With ε_k the share of the jets at or above the lower edge of bin k, ln ε_k/(1 − ε_k) + δ for all k changes
    ε_k by δ ε_k (1 − ε_k), and so the share s_k = ε_k − ε_{k+1} by δ (1 − ε_k − ε_{k+1}) of itself, to first
    order. The sum of the shares stays, and what a working point gains, δ (1 − ε) of its efficiency, does not
    depend on the number of bins, as that of independent residuals does. Zero where there is no content.
    """
    shares = _shares(content)
    above = np.cumsum(shares[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(np.where(shares > 0, 1 - 2 * above + shares, 0.0))


def _spread(templates: Templates, place: tuple[int, int]) -> Float[Array, "P K"]:
    """σ of one flavour in one region."""
    shares = _shares(templates.calibrated[place])
    replicas = np.stack([_shares(replica[place]) for replica in templates.replicas])
    moved = np.stack([_shares(varied[place]) for varied in templates.variations.values()] or [shares])
    known = shares > 0
    relative = np.divide(replicas, shares, out=np.ones_like(replicas), where=known)
    shifts = np.divide(moved, shares, out=np.ones_like(moved), where=known)
    tiny = np.exp(-WIDTH_MAX)
    variance = np.log(np.maximum(relative, tiny)).var(axis=0, ddof=1)
    return np.asarray(np.sqrt(variance + (np.log(np.maximum(shifts, tiny)) ** 2).sum(axis=0)))


def _shares(content: Float[Array, "*places K"]) -> Float[Array, "*places K"]:
    """Of each kinematic bin; zero where it is empty."""
    total = content.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(content, total, out=np.zeros_like(content), where=total > 0))
