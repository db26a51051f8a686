"""How far a map moves jets, and how much farther than it had to (POT)."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.transport.conditions import ScoreFrame, condition_features
from selfcal.transport.maps import FlavourMaps

OPTIMAL_TRANSPORT_JETS = 1000
"""Jets per flavour for the exact plan: its cost grows with the third power of their number."""


def optimal_cost(start: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    """Smallest mean squared displacement that turns the points ``start`` into ``end`` (N, D).

    The exact optimal transport plan between uniform masses, ``ot.emd2`` of POT 0.9.
    """
    mass = np.full(len(start), 1.0 / len(start))
    return float(ot.emd2(mass, mass, ot.dist(start, end), numItermax=1_000_000))


def displacement_table(
    maps: FlavourMaps, frame: ScoreFrame, jets: ScoredJets, seed: int
) -> list[dict[str, Any]]:
    """Per flavour: root mean square displacement in standard deviations, and the excess cost.

    excess = E|T(u) - u|² / optimal cost - 1 between the same two samples of jets: zero for an
    optimal map. Conditions are not held fixed in the optimum, so even the gradient of a
    convex function has a small excess.
    """
    random = np.random.default_rng(seed)
    rows = []
    for index, flavour in enumerate(FLAVOURS):
        chosen = np.flatnonzero(jets.flavour == index)
        if len(chosen) < 2:
            continue
        chosen = random.permutation(chosen)[:OPTIMAL_TRANSPORT_JETS]
        start = frame.enter(torch.from_numpy(jets.log_probability[chosen]))
        conditions = condition_features(jets.pt_gev[chosen], jets.abs_eta[chosen])
        with torch.no_grad():
            end = maps.of(index)(start, conditions)
        cost = float((end - start).square().sum(1).mean())
        best = optimal_cost(start.numpy(), end.numpy())
        rows.append(
            {
                "flavour": flavour,
                "jets": len(chosen),
                "root_mean_square_displacement": cost**0.5,
                "excess_cost": cost / best - 1.0 if best > 1e-12 else 0.0,
            }
        )
    return rows
