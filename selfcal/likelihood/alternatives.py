"""Other simulations of the control regions: modelling nuisances, generator scale factors, high pT.

An alternative simulation (another shower, radiation, top-quark pT) is used three times. Its calibrated
templates are one standard deviation of a nuisance ``modelling_<name>``, common to all flavours and regions.
Its efficiencies ε_alt give the factors by which an analysis that uses that simulation divides the scale
factors of data,

    SF^{gen}_fpw = ε_alt,fpw / ε⁰_fpw.

And what it does to the dependence on pT, with what the detector's posterior does, is the uncertainty of
carrying the scale factor of the last measured bin L to a bin h beyond,

    δ_j = (ε_j,h / ε_h) / (ε_j,L / ε_L) − 1,    σ² = σ_L² + SF_L² Σ_j δ_j².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from selfcal.data.folds import Fold
from selfcal.data.score_files import NOMINAL, scores_of, within_abs_eta
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError
from selfcal.run.context import RunContext

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Alternative:
    """Jets of another simulation by region: with the inferred detector, if there is one, and as they are."""

    simulation: dict[str, ScoredJets]
    nominal: dict[str, ScoredJets]


def read_alternatives(context: RunContext, regions: Sequence[str]) -> dict[str, Alternative]:
    """The jets of all ``alternative`` datasets by name of the variation; nothing else was made from them.

    Raises
    ------
    ConfigError
        If one is of a region that is not calibrated.
    """
    edges, cards = context.config.fit.abs_eta_edges, context.cards_for("simulation", "alternative")
    found: dict[str, Alternative] = {}
    for name in dict.fromkeys(card.variation for card in cards if card.variation):
        own = [card for card in cards if card.variation == name]
        unknown = sorted({card.region for card in own} - set(regions))
        if unknown:
            raise ConfigError(
                f"the alternative simulation '{name}' is of a region that is not calibrated",
                where=f"region {unknown[0]}",
                expected=f"one of {', '.join(regions)}",
            )

        def read(region: str, variant: str | None, chosen: Sequence[Any] = own) -> ScoredJets:
            of_region = [card for card in chosen if card.region == region]
            return within_abs_eta(scores_of(context, of_region, tuple(Fold), variant), edges)

        places = dict.fromkeys(card.region for card in own)
        simulation, nominal = ({r: read(r, variant) for r in places} for variant in (None, NOMINAL))
        found[name] = Alternative(simulation, nominal)
    return found


def modelling_template(
    counts: Mapping[str, Float[Array, "F P K"]], regions: Sequence[str], calibrated: Float[Array, "R F P K"]
) -> Float[Array, "R F P K"]:
    """Templates of an alternative with as many jets per region and flavour as the calibrated ones.

    Regions that it does not have, and flavours without jets in it, are left as they are.
    """
    result = calibrated.copy()
    for r, region in enumerate(regions):
        if region not in counts:
            continue
        size, wanted = counts[region].sum(axis=(1, 2)), calibrated[r].sum(axis=(1, 2))
        scaled = (
            counts[region] * np.divide(wanted, size, out=np.zeros_like(size), where=size > 0)[:, None, None]
        )
        result[r] = np.where((size > 0)[:, None, None], scaled, calibrated[r])
    return result


def efficiencies(counts: Float[Array, "F P K"], variance: Float[Array, "F P K"]) -> tuple[Array, Array]:
    """ε at the K − 1 working points and its variance, both (F, P, K − 1); NaN without jets.

    With A weights passing and B failing, of variances V: var ε = [(1 − ε)² V_A + ε² V_B]/(A + B)².
    """
    total = counts.sum(axis=2, keepdims=True)
    passing, v_passing = (np.cumsum(x[:, :, ::-1], axis=2)[:, :, ::-1][:, :, 1:] for x in (counts, variance))
    v_failing = variance.sum(axis=2, keepdims=True) - v_passing
    with np.errstate(divide="ignore", invalid="ignore"):
        share = passing / total
        return share, ((1 - share) ** 2 * v_passing + share**2 * v_failing) / total**2


Counted = Callable[[ScoredJets], tuple[Array, Array]]
"""Sums of weights and of squared weights of jets, each (F, P, K)."""


def generator_rows(
    alternatives: Mapping[str, Alternative],
    nominal: Mapping[str, ScoredJets],
    references: Mapping[str, str],
    flavours: Sequence[str],
    counted: Counted,
) -> list[tuple[str, int, int, int, float, float]]:
    """(variation, flavour, kinematic bin, working point, ε_alt/ε⁰, its statistical error).

    Each flavour in its reference region, where the alternative has that region and both have passing jets.
    """
    rows = []
    for name, other in alternatives.items():
        for f, flavour in enumerate(flavours):
            region = references.get(flavour)
            if region not in other.nominal or region not in nominal:
                continue
            (above, v_above), (below, v_below) = (
                efficiencies(*counted(jets[region])) for jets in (other.nominal, nominal)
            )
            for p, w in np.ndindex(above.shape[1:]):
                one, two = above[f, p, w], below[f, p, w]
                if not (one > 0 and two > 0):
                    continue
                relative = v_above[f, p, w] / one**2 + v_below[f, p, w] / two**2
                rows.append((name, f, p, w, float(one / two), float(one / two * np.sqrt(relative))))
    return rows


def pt_trend(
    varied: Float[Array, "F P W"], around: Float[Array, "F P W"], n_eta: int
) -> Float[Array, "F P W"]:
    """δ of the equation above against the first pT bin; |eta| runs fastest. NaN without jets."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = varied / around
        n_flavours, n_bins, n_points = ratio.shape
        by_pt = ratio.reshape(n_flavours, n_bins // n_eta, n_eta, n_points)
        return np.asarray((by_pt / by_pt[:, :1] - 1).reshape(ratio.shape))
