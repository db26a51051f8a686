"""The control regions of a run: their cards and the priors of their composition."""

from __future__ import annotations

import torch
from jaxtyping import Float

from selfcal.config.card import DataCard
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError
from selfcal.run.context import RunContext
from selfcal.transport.composition import CompositionPrior

FRACTION_UNCERTAINTY_MIN = 0.002
"""A flavour absent from the simulation of a region may still be there in data."""


def control_regions(context: RunContext) -> tuple[str, ...]:
    """Regions with both simulation and data, in the order of the cards.

    Raises
    ------
    ConfigError
        If a control region lacks one of the two.
    """
    simulated = dict.fromkeys(card.region for card in context.cards_for("simulation", "control"))
    observed = dict.fromkeys(card.region for card in context.cards_for("data", "control"))
    if unmatched := sorted(set(simulated) ^ set(observed)):
        raise ConfigError(
            f"control region(s) without both simulation and data: {', '.join(unmatched)}",
            where="data.cards",
            expected="one card or more of each role for every control region",
        )
    return tuple(simulated)


def cards_of(context: RunContext, role: str, region: str) -> list[DataCard]:
    """The control cards of one region and role."""
    return [card for card in context.cards_for(role, "control") if card.region == region]


def composition_prior(
    context: RunContext, regions: tuple[str, ...], simulated: Float[torch.Tensor, "regions flavours"]
) -> CompositionPrior:
    """The cards' priors: central fractions renormalised to one, and their widths.

    ``simulated`` are the fractions in simulation, which a card without values of its own has.
    """
    centre = simulated.clone()
    relative = torch.zeros_like(centre)
    for row, region in enumerate(regions):
        card = next(c for c in context.cards_for("data", "control") if c.region == region)
        assert card.composition is not None
        for column, name in enumerate(FLAVOURS):
            start = card.composition.fractions.get(name, float(simulated[row, column]))  # type: ignore[call-overload]
            centre[row, column] = max(start, 1e-4) * card.composition.scale.get(name, 1.0)  # type: ignore[call-overload]
            relative[row, column] = card.composition.relative_uncertainty
    centre = centre / centre.sum(1, keepdim=True)
    return CompositionPrior(centre, (relative * centre).clamp_min(FRACTION_UNCERTAINTY_MIN))
