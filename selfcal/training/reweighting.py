"""Weights of training jets, so that the tagger learns flavours and not their spectra or numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.config.training import TrainingConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import DataError
from selfcal.tagger.batching import TensorJets

Doubles = NDArray[np.float64]


def reweighted(jets: TensorJets, config: TrainingConfig) -> TensorJets:
    """``jets`` with the weights that ``config`` asks for: kinematics, then balance, then given factors.

    Raises
    ------
    DataError
        If kinematics are to be matched to a flavour of which there are no jets.
    """
    flavour, weight = jets.flavour.numpy(), jets.weight.numpy().astype(np.float64)
    if config.match_kinematics_to is not None:
        weight = weight * kinematic_factors(
            jets.jet.numpy(),
            flavour,
            weight,
            reference=FLAVOURS.index(config.match_kinematics_to),
            bins=config.kinematic_bins,
            largest=config.kinematic_weight_max,
        )
    if config.balance_flavours:
        weight = weight * balance_factors(flavour, weight)
    given = np.ones(len(FLAVOURS))
    for name, factor in config.flavour_weights.items():
        given[FLAVOURS.index(name)] = factor
    weight = weight * np.where(flavour >= 0, given[np.maximum(flavour, 0)], 1.0)
    return replace(jets, weight=torch.from_numpy(weight.astype(np.float32)))


def balance_factors(flavour: NDArray[np.int64], weight: Doubles) -> Doubles:
    """Factors (N,) that give every flavour present the same total weight and keep the sum of all."""
    totals = np.array([weight[flavour == k].sum() for k in range(len(FLAVOURS))])
    present = totals > 0
    factors = np.divide(
        totals.sum() / max(present.sum(), 1), totals, out=np.zeros(len(totals)), where=present
    )
    return np.where(flavour >= 0, factors[np.maximum(flavour, 0)], 1.0)


def kinematic_factors(
    kinematics: NDArray[np.float32],
    flavour: NDArray[np.int64],
    weight: Doubles,
    *,
    reference: int,
    bins: int,
    largest: float,
) -> Doubles:
    """Factors (N,) that bring every flavour to the spectrum of ``reference`` in ``kinematics`` (N, J).

    In each cell of a grid of ``bins`` quantiles of the reference per column: share of the
    reference / share of the flavour, at most ``largest``. Every flavour keeps its total weight.

    Raises
    ------
    DataError
        If there are no jets of the reference.
    """
    if not (flavour == reference).any():
        raise DataError(
            f"no jets of flavour {FLAVOURS[reference]} to match kinematics to",
            where="training.match_kinematics_to",
            expected="training jets of that flavour",
        )
    cell = np.zeros(len(flavour), dtype=np.int64)
    inner = np.arange(1, bins) / bins
    for column in kinematics.T:
        edges = np.quantile(column[flavour == reference], inner)
        cell = cell * bins + np.searchsorted(edges, column, side="right")
    cells = bins ** kinematics.shape[1]

    def shares(of: int) -> Doubles:
        counts = np.bincount(cell[flavour == of], weight[flavour == of], minlength=cells)
        share: Doubles = counts / counts.sum()
        return share

    factors = np.ones(len(flavour))
    for k in np.unique(flavour[flavour >= 0]):
        mine, wanted = shares(int(k)), shares(reference)
        ratio = np.minimum(np.divide(wanted, mine, out=np.zeros(cells), where=mine > 0), largest)
        chosen = flavour == k
        kept = (weight[chosen] * ratio[cell[chosen]]).sum()
        factors[chosen] = ratio[cell[chosen]] * weight[chosen].sum() / kept if kept > 0 else 1.0
    return factors
