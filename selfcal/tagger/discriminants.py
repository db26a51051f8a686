"""Flavour discriminants from class probabilities, for NumPy arrays and PyTorch tensors alike.

All take log-probabilities, so that a probability that underflows never becomes ln 0.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import LIGHT, TAU, B, C
from selfcal.errors import ConfigError

Array = TypeVar("Array", NDArray[np.float64], Tensor)


def discriminant_b(log_probability: Array, charm_fraction: float = 0.2, tau_fraction: float = 0.01) -> Array:
    """D_b = ln[ p_b / (f_c p_c + f_tau p_tau + (1 - f_c - f_tau) p_light) ].

    Parameters
    ----------
    log_probability : (..., 4), ln p in the order of ``FLAVOURS``; an array or a tensor. A tagger
        without tau class has (..., 3); its light class takes over the tau fraction.

    Returns
    -------
    (...) of the same kind; differentiable if it is a tensor

    Raises
    ------
    ConfigError
        If the fractions are negative or exceed one together.

    >>> sure, unsure = [0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]
    >>> print(discriminant_b(np.log([sure, unsure])).round(3))
    [4.575 0.   ]
    """
    return _log_ratio(log_probability, B, {C: charm_fraction, TAU: tau_fraction})


def discriminant_c(log_probability: Array, b_fraction: float = 0.3, tau_fraction: float = 0.05) -> Array:
    """D_c = ln[ p_c / (f_b p_b + f_tau p_tau + (1 - f_b - f_tau) p_light) ]; see :func:`discriminant_b`."""
    return _log_ratio(log_probability, C, {B: b_fraction, TAU: tau_fraction})


def discriminant_of(signal: str, log_probability: Array, config: TaggerConfig) -> Array:
    """D_b, D_c or D_tau with the background fractions of ``config``; ``signal`` as in ``FLAVOURS``.

    Raises
    ------
    ConfigError
        If there is no such discriminant.
    """
    if signal == "b":
        return discriminant_b(log_probability, config.charm_fraction, config.tau_fraction)
    if signal == "c":
        return discriminant_c(log_probability, config.charm.b_fraction, config.charm.tau_fraction)
    if signal == "tau":
        return discriminant_tau(log_probability, config.tau.b_fraction, config.tau.charm_fraction)
    raise ConfigError(f"no discriminant of '{signal}'", expected="one of b, c, tau")


def discriminant_tau(log_probability: Array, b_fraction: float = 0.1, charm_fraction: float = 0.1) -> Array:
    """D_tau = ln[ p_tau / (f_b p_b + f_c p_c + (1 - f_b - f_c) p_light) ]; see :func:`discriminant_b`."""
    return _log_ratio(log_probability, TAU, {B: b_fraction, C: charm_fraction})


def _log_ratio(log_probability: Array, signal: int, fractions: dict[int, float]) -> Array:
    fractions = {k: share for k, share in fractions.items() if k < log_probability.shape[-1]}
    light = 1.0 - sum(fractions.values())
    if min(*fractions.values(), light) < -1e-12:
        raise ConfigError(
            f"background fractions {list(fractions.values())} of a discriminant",
            expected="none below zero, and a sum of at most one",
        )
    # A background with fraction zero is left out: ln 0 would poison the gradient.
    shares = [(k, f) for k, f in (*fractions.items(), (LIGHT, light)) if f > 0]
    first, *others = (log_probability[..., k] + math.log(f) for k, f in shares)
    background: Any = first
    for term in others:
        background = _log_add_exp(background, term)
    result: Array = log_probability[..., signal] - background
    return result


def _log_add_exp(a: Any, b: Any) -> Any:
    """ln(e^a + e^b) without overflow."""
    return torch.logaddexp(a, b) if isinstance(a, Tensor) else np.logaddexp(a, b)
