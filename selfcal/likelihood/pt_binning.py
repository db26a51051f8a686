"""pT bins that are as fine as a wanted uncertainty allows.

Starting from fine bins, neighbours are merged from low pT upwards until the expected statistical uncertainty
of every chosen flavour's scale factor is small enough,

    σ(SF)/SF = √[(1 − ε) / (ε N)],   ε, N: efficiency and jets of the flavour in its reference region,

as if these jets were known one by one. Only the simulation's shape and the number of jets in data enter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.errors import ConfigError

Array = NDArray[np.float64]


def expected_uncertainty(
    jets: Float[Array, "*bins"], passing: Float[Array, "*bins"]
) -> Float[Array, "*bins"]:
    """σ(SF)/SF for ``passing`` of ``jets`` expected jets; infinite where none passes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = np.sqrt(np.maximum(jets - passing, 0.0) / (jets * passing))
    return np.where(passing > 0, sigma, np.inf)


def merged_pt_edges(
    edges: tuple[float, ...],
    jets: Mapping[str, Float[Array, " P"]],
    passing: Mapping[str, Float[Array, " P"]],
    target: Mapping[str, float],
) -> tuple[float, ...]:
    """The finest merger of ``edges`` in which every flavour of ``target`` reaches its uncertainty.

    What is left over at the high end is joined to the last bin that reached it.

    Raises
    ------
    ConfigError
        If not even one single bin reaches the target, with the uncertainty that it has.
    """
    names = list(target)

    def missed(first: int, last: int) -> list[str]:
        return [
            name for name in names if _sigma(jets[name][first:last], passing[name][first:last]) > target[name]
        ]

    chosen, first = [edges[0]], 0
    for last in range(1, len(edges)):
        if not missed(first, last):
            chosen.append(edges[last])
            first = last
    if len(chosen) == 1:
        short = missed(0, len(edges) - 1)
        found = {name: round(_sigma(jets[name], passing[name]), 4) for name in short}
        raise ConfigError(
            f"no pT binning reaches the wanted uncertainty of {', '.join(short)}",
            where="fit.target_uncertainty",
            expected=f"at least {found}, which a single bin has",
            fix="ask for less, or use more data",
        )
    return (*chosen[:-1], edges[-1])


def _sigma(jets: Array, passing: Array) -> float:
    return float(expected_uncertainty(np.asarray(jets.sum()), np.asarray(passing.sum())))
