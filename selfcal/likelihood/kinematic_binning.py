"""pT and |eta| bins that are as fine as a wanted uncertainty allows.

Starting from fine bins, neighbours are merged until the expected statistical uncertainty of every chosen
flavour's scale factor is small enough in every bin of pT × |eta|,

    σ(SF)/SF = √[(1 − ε) / (ε N)],   ε, N: efficiency and jets of the flavour in its reference region,

as if these jets were known one by one. Only the simulation's shape and the number of jets in data enter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.errors import ConfigError

Array = NDArray[np.float64]
Edges = tuple[float, ...]


def expected_uncertainty(
    jets: Float[Array, "*bins"], passing: Float[Array, "*bins"]
) -> Float[Array, "*bins"]:
    """σ(SF)/SF for ``passing`` of ``jets`` expected jets; infinite where none passes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = np.sqrt(np.maximum(jets - passing, 0.0) / (jets * passing))
    return np.where(passing > 0, sigma, np.inf)


def merged_edges(
    pt_gev_edges: Edges,
    abs_eta_edges: Edges,
    jets: Mapping[str, Float[Array, "P E"]],
    passing: Mapping[str, Float[Array, "P E"]],
    target: Mapping[str, float],
) -> tuple[Edges, Edges]:
    """The finest mergers of both edges with which every flavour of ``target`` reaches its uncertainty.

    For every choice of |eta| bins the pT bins are closed from low pT upwards as soon as all |eta| bins reach
    the target; what is left at the high end joins the last of them. The choice with the most bins is taken,
    and of several such the one with the most pT bins.

    Raises
    ------
    ConfigError
        If not even one single bin reaches the target, with the uncertainty that it has.
    """
    best: tuple[Edges, Edges] | None = None
    for inner in _choices(range(1, len(abs_eta_edges) - 1)):
        columns = (0, *inner)
        parts = [
            (np.add.reduceat(jets[name], columns, axis=1), np.add.reduceat(passing[name], columns, axis=1))
            for name in target
        ]
        rows = _closed_rows(parts, list(target.values()))
        if rows and (best is None or _size(rows, columns) > (len(best[0]) - 1) * (len(best[1]) - 1)):
            best = (
                tuple(pt_gev_edges[i] for i in (*rows, len(pt_gev_edges) - 1)),
                tuple(abs_eta_edges[i] for i in (*columns, len(abs_eta_edges) - 1)),
            )
    if best is None:
        found = {name: _of_all(jets[name], passing[name]) for name in target}
        short = {name: round(sigma, 4) for name, sigma in found.items() if sigma > target[name]}
        raise ConfigError(
            f"no binning reaches the wanted uncertainty of {', '.join(short)}",
            where="fit.target_uncertainty",
            expected=f"at least {short}, which a single bin has",
            fix="ask for less, or use more data",
        )
    return best


def _of_all(jets: Array, passing: Array) -> float:
    return float(expected_uncertainty(np.asarray(jets.sum()), np.asarray(passing.sum())))


def _choices(places: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All subsets, the smallest first."""
    for number in range(len(places) + 1):
        yield from itertools.combinations(places, number)


def _size(rows: Sequence[int], columns: Sequence[int]) -> int:
    return len(rows) * len(columns)


def _closed_rows(parts: Sequence[tuple[Array, Array]], limits: Sequence[float]) -> list[int]:
    """First pT bins of the merged ones; empty if not even all of them together reach the limits."""

    def reached(first: int, last: int) -> bool:
        return all(
            bool((expected_uncertainty(n[first:last].sum(0), k[first:last].sum(0)) <= limit).all())
            for (n, k), limit in zip(parts, limits, strict=True)
        )

    total = len(parts[0][0])
    starts, first = [], 0
    for last in range(1, total + 1):
        if reached(first, last):
            starts.append(first)
            first = last
    # Jets that do not pass make a bin worse, so that the left-over ones may spoil the last bin.
    while starts and not reached(starts[-1], total):
        starts.pop()
    return starts
