"""pyhf as the judge: the workspace opened, the likelihood and its gradient evaluated by pyhf itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyhf
import torch
from numpy.typing import NDArray

from selfcal.errors import FitError
from selfcal.likelihood.fit import FitResult
from selfcal.likelihood.histfactory import HistFactory

AGREEMENT = 1e-9
"""Largest relative difference of −2 ln L from that of pyhf."""


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use a pyhf backend in double precision and give the former one back afterwards.

    pyhf's PyTorch backend changes the default precision of all of PyTorch; that is given back too.
    """
    before, precision = pyhf.get_backend(), torch.get_default_dtype()
    pyhf.set_backend(name, precision="64b")
    try:
        yield
    finally:
        pyhf.set_backend(*before)
        torch.set_default_dtype(precision)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # pyhf 0.7 validates with an interface that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        # pyhf hands lists of arrays to torch, which is slow there and harmless here.
        warnings.filterwarnings("ignore", message="Creating a tensor from a list of numpy.ndarrays")
        yield


def pyhf_order(names: tuple[str, ...], pdf: Any) -> NDArray[np.int64]:
    """Position of each of pyhf's parameters in ours, (P,)."""
    ours = {name: i for i, name in enumerate(names)}
    return np.array([ours[name] for name in pdf.config.par_names], dtype=np.int64)


def pyhf_twice_nll(
    workspace: Mapping[str, Any], names: tuple[str, ...], theta: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """−2 ln L of the workspace's data at ``theta`` by pyhf, and half its gradient in our order, (P,).

    Raises
    ------
    FitError
        If pyhf rejects the workspace.
    """
    # Quiet before the change of backend: it converts the tensors of every pyhf model that is alive.
    with _quiet(), backend("pytorch"):
        try:
            opened = pyhf.Workspace(dict(workspace))
            pdf = opened.model(measurement_name=workspace["measurements"][0]["name"])
        except pyhf.exceptions.InvalidSpecification as error:
            raise FitError(f"pyhf refuses the workspace: {error}", where="workspace.json") from error
        order = pyhf_order(names, pdf)
        parameters = torch.tensor(theta[order], dtype=torch.float64, requires_grad=True)
        value = -2 * pdf.logpdf(parameters, torch.tensor(opened.data(pdf), dtype=torch.float64)).sum()
        (slope,) = torch.autograd.grad(value, parameters)
    gradient = np.zeros(len(theta))
    gradient[order] = 0.5 * slope.numpy()
    return float(value.detach()), gradient


def confirm_with_pyhf(workspace: Mapping[str, Any], model: HistFactory, result: FitResult) -> dict[str, Any]:
    """Evaluate the best fit with pyhf: likelihood difference, and gradient in units of sigma.

    Raises
    ------
    FitError
        If pyhf's −2 ln L differs by more than 1e-9 of its value.
    """
    value, gradient = pyhf_twice_nll(workspace, result.names, result.best_fit)
    difference = abs(value - result.twice_nll) / max(1.0, abs(value))
    if not difference < AGREEMENT:
        raise FitError(
            "pyhf gives another likelihood at the best fit",
            where=f"pyhf {value:.12g}, here {result.twice_nll:.12g}",
            expected=f"relative difference below {AGREEMENT:.0e}",
        )
    moving = result.uncertainty > 0
    strongest = float(np.abs(gradient * result.uncertainty)[moving].max()) if moving.any() else 0.0
    return {
        "pyhf_version": pyhf.__version__,
        "pyhf_twice_nll": value,
        "relative_difference": difference,
        "pyhf_gradient_in_sigma_max": strongest,
        "parameters": len(model.parameters),
        "bins": len(model.observed),
    }
