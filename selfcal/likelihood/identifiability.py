"""Whether the data can tell the free parameters apart, from the Fisher information before the fit.

The information F = Jᵀ diag(1/ν) J + P, with the constraints P of the nuisance parameters but nothing for
the free ones, is scaled to unit diagonal; a direction with eigenvalue below 1e-9 is one along which
nothing changes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from selfcal.errors import FitError
from selfcal.likelihood.fit import FitResult, expected_and_jacobian, fisher_information
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.templates import Binning

EIGENVALUE_MIN = 1e-9
PRIOR_DOMINATED = 0.7
WORDS_MAX = 6


@dataclass(frozen=True)
class Identifiability:
    """Verdict on a model: smallest eigenvalue, condition number, null directions in words."""

    smallest_eigenvalue: float
    condition_number: float
    null_directions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def identifiability(model: HistFactory, binning: Binning | None = None) -> Identifiability:
    """Eigen-analysis of the scaled Fisher information at the start values."""
    theta = model.start
    expected, jacobian = expected_and_jacobian(model, theta)
    moving = ~model.fixed
    information = fisher_information(model, theta, expected, jacobian)[moving][:, moving]
    diagonal = torch.diagonal(information)
    scale = torch.where(diagonal > 0, diagonal.clamp_min(1e-300).rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(information * scale[:, None] * scale[None, :])
    names = [p.name for p, free in zip(model.parameters, moving, strict=True) if free]
    null = [
        _in_words(vectors[:, i] * scale, names, binning)
        for i in range(len(values))
        if values[i] < EIGENVALUE_MIN
    ]
    unseen = [describe(name, binning) for name, d in zip(names, diagonal, strict=True) if d <= 0]
    smallest, largest = float(values[0]), float(values[-1])
    condition = largest / smallest if smallest > 0 else float(torch.finfo(torch.float64).max)
    return Identifiability(smallest, condition, tuple(null + unseen))


def require_identifiable(verdict: Identifiability) -> None:
    """Refuse a model with null directions.

    Raises
    ------
    FitError
        Naming each null direction.
    """
    if verdict.null_directions:
        raise FitError(
            f"{len(verdict.null_directions)} direction(s) of the fit are not determined by any data",
            where="; ".join(verdict.null_directions),
            expected=f"all eigenvalues of the scaled Fisher information above {EIGENVALUE_MIN:.0e}",
            fix="fix one of the named quantities (fit.fix_reference_yield, fit.free_flavours), "
            "or add a region that tells them apart",
        )


def prior_dominated(model: HistFactory, result: FitResult) -> list[str]:
    """Constrained parameters whose posterior width exceeds 0.7 of the prior's: not measured by the data.

    Statistical errors of the simulation are left out; they are meant to be of that kind.
    """
    names = []
    for parameter, sigma in zip(model.parameters, result.uncertainty, strict=True):
        statistical = parameter.name.startswith(("staterror_", "simulation_"))
        if not parameter.width or parameter.fixed or statistical:
            continue
        if sigma / parameter.width > PRIOR_DOMINATED:
            names.append(parameter.name)
    return names


def describe(name: str, binning: Binning | None = None) -> str:
    """A parameter in words: ``shape_b_0[3]`` is 'b shape in pT 20–40 GeV'."""

    for pattern, words in _WORDS.items():
        match = re.fullmatch(pattern, name)
        if match:
            parts = match.groupdict()
            if "p" in parts:
                parts["p"] = _pt_in_words(int(parts["p"]), binning)
            return words.format(**parts)
    return name


_WORDS: dict[str, str] = {
    r"shape_(?P<f>[a-z]+)_(?P<p>\d+)\[\d+\]": "{f} shape in {p}",
    r"mu_(?P<r>\w+)_(?P<p>\d+)": "yield of {r} in {p}",
    r"composition_(?P<r>\w+)_(?P<f>[a-z]+)": "{f} fraction of {r}",
    r"pt_shape_(?P<r>\w+)_(?P<f>[a-z]+)_(?P<p>\d+)": "{f} spectrum of {r} in {p}",
    r"residual_(?P<f>[a-z]+)_(?P<p>\d+)_\d+": "{f} shape (constrained) in {p}",
}


def _pt_in_words(index: int, binning: Binning | None) -> str:
    if binning is None or index >= binning.n_pt:
        return f"pT bin {index}"
    low, high = binning.pt_gev_edges[index : index + 2]
    return f"pT {low:g}–{high:g} GeV"


def _in_words(direction: torch.Tensor, names: list[str], binning: Binning | None) -> str:
    """The parameters that move along a direction, strongest first."""
    size = direction.abs() / direction.abs().max()
    order = [int(i) for i in np.argsort(-size.numpy())]
    words = list(dict.fromkeys(describe(names[i], binning) for i in order if size[i] > 0.1))
    more = f" and {len(words) - WORDS_MAX} more" if len(words) > WORDS_MAX else ""
    return " with ".join(words[:WORDS_MAX]) + more
