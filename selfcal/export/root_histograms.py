"""ROOT histograms from arrays, for uproot to write: TH1D, TH2D, TH3D with errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from uproot.writing.identify import to_TAxis, to_TH1x, to_TH2x, to_TH3x

from selfcal.errors import DataError

Edges = Sequence[float] | NDArray[np.float64]

MAKERS = {1: to_TH1x, 2: to_TH2x, 3: to_TH3x}


def root_histogram(
    name: str,
    values: NDArray[np.float64],
    edges: Sequence[Edges],
    *,
    variances: NDArray[np.float64] | None = None,
    title: str = "",
    axis_titles: Sequence[str] = (),
) -> Any:
    """A histogram of one to three axes: ``values`` (X[, Y[, Z]]), ``edges`` one array per axis.

    Errors are the roots of ``variances`` (same shape), zero where they are not given. Flow bins are empty.

    Raises
    ------
    DataError
        If shapes and edges do not fit.
    """
    values = np.asarray(values, dtype=np.float64)
    variances = np.zeros_like(values) if variances is None else np.asarray(variances, dtype=np.float64)
    if values.shape != tuple(len(edge) - 1 for edge in edges) or variances.shape != values.shape:
        raise DataError(
            f"values {values.shape}, variances {variances.shape} and edges do not fit", where=name
        )
    titles = [*axis_titles, "", "", ""][: len(edges)]
    axes = [
        to_TAxis(letter, text, len(edge) - 1, float(edge[0]), float(edge[-1]), np.asarray(edge, np.float64))
        for letter, text, edge in zip(("xaxis", "yaxis", "zaxis")[: len(edges)], titles, edges, strict=True)
    ]
    # ROOT's statistics: sum of weights and of their squares, then moments that nobody reads here.
    moments = [0.0] * {1: 2, 2: 5, 3: 9}[values.ndim]
    total, squares = float(np.nansum(values)), float(np.nansum(variances))
    return MAKERS[values.ndim](
        name, title, _with_flow(values), total, total, squares, *moments, _with_flow(variances), *axes
    )


def _with_flow(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """ROOT's order: under- and overflow on every axis, the first axis running fastest."""
    return np.asarray(np.pad(values, 1).ravel(order="F"))
