"""What densities and maps are conditioned on, and the scale on which scores are seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from selfcal.data.scored import ScoredJets
from selfcal.transport.simplex import log_probability_from_coordinates, log_ratio_coordinates

CONDITIONS = 2
"""Number of conditioning features: pT and |eta|."""

CONDITION_SCALE = (0.5, 0.7)
"""Their spreads, by which they are divided."""


def condition_features(
    pt_gev: NDArray[np.floating], abs_eta: NDArray[np.floating]
) -> Float[Tensor, "jets conditions"]:
    """(ln(pT / 45 GeV) / 0.5, (|eta| - 1) / 0.7): of order one for b-tagging jets, (N, 2) float64."""
    columns = unscaled_conditions(np.asarray(pt_gev, np.float64), np.asarray(abs_eta, np.float64), np)
    return torch.from_numpy(np.stack(columns, axis=1) / np.array(CONDITION_SCALE))


def unscaled_conditions(pt_gev: Any, abs_eta: Any, xp: Any) -> list[Any]:
    """ln(pT / 45 GeV) and |eta| - 1 as arrays of the module ``xp`` (numpy or torch)."""
    return [xp.log(pt_gev / 45.0), abs_eta - 1.0]


@dataclass(frozen=True)
class ScoreFrame:
    """Fixed affine frame u = (z - mean) / scale of the log-ratio coordinates.

    It is derived once from simulation, so that a distance means the same
    throughout a run, whatever tagger or map is being changed.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def from_jets(cls, jets: ScoredJets) -> ScoreFrame:
        """Mean and standard deviation of the coordinates over ``jets``."""
        z = log_ratio_coordinates(torch.from_numpy(jets.log_probability))
        return cls(tuple(z.mean(0).tolist()), tuple(z.std(0).tolist()))

    def enter(self, log_probability: Float[Tensor, "jets classes"]) -> Float[Tensor, "jets coordinates"]:
        """ln p to standardised coordinates."""
        z = log_ratio_coordinates(log_probability)
        return (z - z.new_tensor(self.mean)) / z.new_tensor(self.scale)

    def leave(self, coordinates: Float[Tensor, "jets coordinates"]) -> Float[Tensor, "jets classes"]:
        """Standardised coordinates to ln p."""
        mean, scale = coordinates.new_tensor(self.mean), coordinates.new_tensor(self.scale)
        return log_probability_from_coordinates(coordinates * scale + mean)
