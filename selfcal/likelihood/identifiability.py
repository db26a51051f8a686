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
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

from selfcal.errors import FitError
from selfcal.likelihood.fit import FitResult, expected_and_jacobian, fisher_information
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.templates import Binning

EIGENVALUE_MIN = 1e-9
"""Of the Fisher matrix scaled to unit diagonal: below it a direction is flat."""
PRIOR_DOMINATED = 0.7
"""Posterior over prior width beyond which data say little."""
WORDS_MAX = 6
LISTED_MAX = 3
SHARE_MIN = 0.1
"""Parameters that move less than this share of the one that moves most are not named."""


@dataclass(frozen=True)
class Identifiability:
    """Verdict on a model: smallest eigenvalue, condition number, null directions in words."""

    smallest_eigenvalue: float
    condition_number: float
    null_directions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "null_directions": list(self.null_directions)}


def identifiability(model: HistFactory, binning: Binning | None = None) -> Identifiability:
    """Eigen-analysis of the scaled Fisher information at the start values."""
    theta = model.start
    expected, jacobian = expected_and_jacobian(model, theta)
    information = fisher_information(model, theta, expected, jacobian)
    diagonal = torch.diagonal(information)
    seen = torch.nonzero(~model.fixed & (diagonal > 0))[:, 0]
    words = _Words(model, binning)
    unseen = [words.of(int(j)) for j in torch.nonzero(~model.fixed & (diagonal <= 0))[:, 0]]
    if not len(seen):
        return Identifiability(0.0 if unseen else 1.0, 1.0, tuple(unseen))
    scale = diagonal[seen].rsqrt()
    scaled = information[seen][:, seen] * scale[:, None] * scale[None, :]
    values, vectors = torch.linalg.eigh(scaled)
    null = _separated(vectors[:, values < EIGENVALUE_MIN].T.numpy()) * scale.numpy()
    null = null[np.abs(null).argmax(axis=1).argsort()] if len(null) else null
    directions = [words.of_direction(direction, seen.tolist()) for direction in null]
    smallest, largest = 0.0 if unseen else float(values[0]), float(values[-1])
    condition = largest / smallest if smallest > 0 else float(torch.finfo(torch.float64).max)
    return Identifiability(smallest, condition, tuple(directions + unseen))


def _separated(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """A basis of the same space (k, D) in which k of the columns are those of a unit matrix.

    An eigen-decomposition mixes null directions of different bins arbitrarily; here each gets a parameter of
    its own, and those of separate bins are separated.
    """
    if not len(directions):
        return directions
    _, triangle, order = qr(directions, mode="economic", pivoting=True)
    result = np.empty_like(directions)
    result[:, order] = solve_triangular(triangle[:, : len(directions)], triangle)
    return result


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
            fix="fix one of the quantities of each (in a run: fit.fix_reference_yield, fit.free_flavours), "
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
                parts["p"] = _kinematics_in_words(int(parts["p"]), binning)
            return words.format(**parts)
    return name


_WORDS: dict[str, str] = {
    r"shape_(?P<f>[a-z]+)_(?P<p>\d+)\[\d+\]": "{f} shape in {p}",
    r"mu_(?P<r>\w+)_(?P<p>\d+)": "yield of {r} in {p}",
    r"composition_(?P<r>\w+)_(?P<f>[a-z]+)": "{f} fraction of {r}",
    r"pt_shape_(?P<r>\w+)_(?P<f>[a-z]+)_(?P<p>\d+)": "{f} spectrum of {r} in {p}",
    r"external_(?P<f>[a-z]+)_\d+": "external scale factor of {f}",
    r"same_sign_(?P<r>\w+)_(?P<p>\d+)\[\d+\]": "background of {r} in {p}",
    r"residual_(?P<f>[a-z]+)_(?P<p>\d+)_\d+": "{f} shape (constrained) in {p}",
    r"residual_slide_(?P<f>[a-z]+)_(?P<p>\d+)": "{f} shape (all bins together) in {p}",
}


def _kinematics_in_words(index: int, binning: Binning | None) -> str:
    known = binning is not None and index < binning.n_kinematic
    return binning.words(index) if binning is not None and known else f"kinematic bin {index}"


class _Words:
    """Parameters of one model in words; names that are not ours by the samples and channels they act on."""

    def __init__(self, model: HistFactory, binning: Binning | None) -> None:
        self._names = [parameter.name for parameter in model.parameters]
        self._binning = binning
        self._places: dict[int, tuple[dict[str, None], dict[str, None]]] = {}
        for cell, position in zip(model.cells, model.terms.place.tolist(), strict=True):
            for j in model.terms.factor[position].tolist():
                samples, channels = self._places.setdefault(j, ({}, {}))
                samples[cell.sample], channels[cell.channel] = None, None

    def of(self, index: int) -> str:
        """One parameter."""
        name = self._names[index]
        words = describe(name, self._binning)
        if words != name or index not in self._places:
            return words
        samples, channels = self._places[index]
        return f"{name} ({_listed(list(samples))} in {_listed(list(channels))})"

    def of_direction(self, direction: NDArray[np.float64], indices: list[int]) -> str:
        """The parameters that move along a direction, strongest first."""
        size = np.abs(direction) / np.abs(direction).max()
        order = [int(i) for i in np.argsort(-size, kind="stable") if size[i] > SHARE_MIN]
        words = list(dict.fromkeys(self.of(indices[i]) for i in order))
        more = f" and {len(words) - WORDS_MAX} more" if len(words) > WORDS_MAX else ""
        return " with ".join(words[:WORDS_MAX]) + more


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more
