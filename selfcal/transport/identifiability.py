"""What the control regions can and cannot tell about fractions and maps, from the Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.data.flavours import FLAVOURS
from selfcal.transport.base_density import BaseDensities
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.mixture import KinematicFractions
from selfcal.transport.sample import Sample

NULL_EIGENVALUE = 1e-9
"""Eigenvalues of the information, scaled to unit diagonal, below which a direction is null."""

PRIOR_DOMINATED = 0.7
"""Posterior width over prior width above which the prior decides a direction."""

NAMED_SHARE = 0.1
"""Parameters with at least this part of a direction's squared length are named with it."""


@dataclass(frozen=True)
class Direction:
    """A combination of parameters in units of their scale, the largest parts named first."""

    names: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Identifiability:
    """The information of P parameters, without priors, and what the priors add.

    ``null`` : directions about which the data say nothing (eigenvalue of the scaled information);
    ``prior_dominated`` : directions whose ``value`` = posterior/prior width exceeds ``PRIOR_DOMINATED``;
    ``width_ratio`` (P,) : the same of single parameters; ``condition_number`` of the fractions;
    ``undetermined`` : flavours all of whose shifts are prior-dominated: no region determines their map.
    """

    names: tuple[str, ...]
    information: NDArray[np.float64]
    null: tuple[Direction, ...]
    prior_dominated: tuple[Direction, ...]
    width_ratio: NDArray[np.float64]
    condition_number: float
    undetermined: tuple[str, ...]

    def table(self, regions: Sequence[str]) -> dict[str, Any]:
        """The content of ``identifiability.json``, with regions by name: ``fraction dijet/c``."""

        def named(name: str) -> str:
            kind, _, place = name.partition(" ")
            number, _, flavour = place.partition("/")
            return f"fraction {regions[int(number)]}/{flavour}" if kind == "fraction" else name

        return {
            "condition_number": self.condition_number,
            "undetermined_flavours": list(self.undetermined),
            "null_directions": [
                {"names": [named(n) for n in d.names], "eigenvalue": d.value} for d in self.null
            ],
            "prior_dominated_directions": [
                {"names": [named(n) for n in d.names], "posterior_over_prior_width": d.value}
                for d in self.prior_dominated
            ],
            "parameters": [
                {"name": named(name), "posterior_over_prior_width": float(ratio)}
                for name, ratio in zip(self.names, self.width_ratio, strict=True)
            ],
        }


def fraction_scores(
    responsibility: Float[Tensor, "jets flavours"],
    local: Float[Tensor, "jets flavours"],
    fractions: Float[Tensor, " flavours"],
    reference: int,
) -> Float[Tensor, "jets free"]:
    """∂ ln p / ∂π_f of every jet of a region, for all f but ``reference``, whose fraction is what is left.

    With s_f(u) the responsibility of flavour f and w_f(c) its local fraction, the derivative in ln π_f is
    s_f - w_f; moving from the reference to f gives (s_f - w_f)/π_f - (s_ref - w_ref)/π_ref.
    """
    each = (responsibility - local) / fractions.clamp_min(1e-9)
    free = [index for index in range(len(fractions)) if index != reference]
    return each[:, free] - each[:, [reference]]


def mixture_scores(
    data: Sample,
    densities: BaseDensities,
    kinematic_fractions: KinematicFractions,
    fractions: Float[Tensor, "regions flavours"],
) -> tuple[Float[Tensor, "jets parameters"], tuple[str, ...]]:
    """∂ ln p(u) / ∂(π, T) of every jet of ``data``, and the names of the parameters.

    p = Σ_f w_f(c) p_rf(T_f⁻¹ u) |det ∂T_f⁻¹/∂u| near T = identity, where T_f shifts and stretches each
    coordinate: T_f(u) = e^{a} u + b. There ∂ ln p/∂b = -s_f ∂ ln p_f/∂u and
    ∂ ln p/∂a = -s_f (1 + u ∂ ln p_f/∂u).
    """
    coordinates = data.coordinates.clone().requires_grad_()
    local = torch.softmax(kinematic_fractions.log_prior(data) + fractions.log()[data.region], dim=1)
    log_p, slopes = [], []
    for index in range(len(FLAVOURS)):
        value = densities.log_prob(index, coordinates, data.conditions, data.region)
        (slope,) = torch.autograd.grad(value.sum(), coordinates)
        log_p.append(value.detach())
        slopes.append(slope)
    responsibility = torch.softmax(local.log() + torch.stack(log_p, 1), dim=1)
    columns, names = [], []
    for region in range(len(fractions)):
        rows = data.region == region
        reference = int(fractions[region].argmax())
        block = torch.zeros(len(data), len(FLAVOURS) - 1, dtype=torch.float64)
        block[rows] = fraction_scores(responsibility[rows], local[rows], fractions[region], reference)
        columns.append(block)
        names += [f"fraction {region}/{f}" for i, f in enumerate(FLAVOURS) if i != reference]
    for index, flavour in enumerate(FLAVOURS):
        share = responsibility[:, index : index + 1]
        columns += [-share * slopes[index], -share * (1.0 + data.coordinates * slopes[index])]
        for kind in ("shift", "stretch"):
            names += [f"{kind} {flavour}/{axis}" for axis in range(data.coordinates.shape[1])]
    return torch.cat(columns, dim=1), tuple(names)


def identifiability(
    scores: NDArray[np.float64],
    weight: NDArray[np.float64],
    names: tuple[str, ...],
    prior_width: NDArray[np.float64],
    fractions: NDArray[np.float64],
) -> Identifiability:
    """From per-jet scores (N, P): F = Σ w s sᵀ, without priors; then the posterior (F + diag(1/σ²))⁻¹.

    Null directions are those of F scaled to unit diagonal. Directions in units of the prior widths are
    eigenvectors of σ F σ with eigenvalue λ, whose posterior/prior width is 1/√(1 + λ).
    """
    information = (scores * weight[:, None]).T @ scores
    diagonal = np.sqrt(np.diag(information))
    known = diagonal > 1e-9 * max(float(diagonal.max()), 1e-300)
    null = [Direction((name,), 0.0) for name, informed in zip(names, known, strict=True) if not informed]
    scaled = information[np.ix_(known, known)] / np.outer(diagonal[known], diagonal[known])
    kept = [name for name, informed in zip(names, known, strict=True) if informed]
    values, vectors = np.linalg.eigh(scaled)
    null += [
        Direction(_leading(vectors[:, i], kept), float(values[i]))
        for i in range(len(values))
        if values[i] < NULL_EIGENVALUE
    ]
    whitened = information * np.outer(prior_width, prior_width)
    values, vectors = np.linalg.eigh(whitened)
    ratios = 1.0 / np.sqrt(1.0 + np.clip(values, 0.0, None))
    dominated = tuple(
        Direction(_leading(vectors[:, i], names), float(ratios[i]))
        for i in range(len(values))
        if ratios[i] > PRIOR_DOMINATED
    )
    width_ratio = np.sqrt((vectors**2 / (1.0 + np.clip(values, 0.0, None))).sum(1))
    undetermined = []
    for flavour in FLAVOURS:
        own = [ratio for name, ratio in zip(names, width_ratio, strict=True) if f"shift {flavour}/" in name]
        if own and min(own) > PRIOR_DOMINATED:
            undetermined.append(flavour)
    return Identifiability(
        names,
        information,
        tuple(null),
        dominated,
        width_ratio,
        float(np.linalg.cond(fractions)),
        tuple(undetermined),
    )


def _leading(vector: NDArray[np.float64], names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    share = vector**2 / (vector**2).sum()
    return tuple(names[i] for i in np.argsort(-share) if share[i] >= NAMED_SHARE or share[i] == share.max())


def prior_widths(
    prior: CompositionPrior, fractions: Float[Tensor, "regions flavours"], coordinates: int, map_scale: float
) -> NDArray[np.float64]:
    """σ (P,) of every parameter of :func:`mixture_scores`, in its order."""
    widths: list[float] = []
    for region in range(len(fractions)):
        reference = int(fractions[region].argmax())
        widths += [float(s) for i, s in enumerate(prior.uncertainty[region]) if i != reference]
    widths += [map_scale] * (2 * coordinates * len(FLAVOURS))
    return np.array(widths)
