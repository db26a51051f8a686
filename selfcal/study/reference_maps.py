"""Classics to judge calibration maps by; they are told the true flavours of the control regions' data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from selfcal.config.evaluation import EvaluationConfig, Reference
from selfcal.data.scored import ScoredJets
from selfcal.study.evaluation_measures import FlavourJets
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.references import (
    BinnedScaleFactors,
    ClassifierReweighting,
    Points,
    QuantileMorphing,
    exact_map,
    sinkhorn_map,
)

NEIGHBOURS = 10
"""Jets of a plan whose mean step is that of a jet which the plan does not know."""

SINKHORN_JETS = 500
"""Jets per flavour in Sinkhorn's plan, whose iterations are many."""

BINS = 20
"""Bins of equal content of the discriminant for binned scale factors."""


@dataclass(frozen=True)
class Transported:
    """A change of simulated jets of one flavour: new coordinates and factors for their weights."""

    move: Callable[[Points], Points] | None = None
    weights: Callable[[FlavourJets], NDArray[np.float64]] | None = None


def learn_reference(
    name: Reference, simulation: FlavourJets, data: FlavourJets, config: EvaluationConfig, seed: int
) -> Transported:
    """A reference from two samples of the same flavour.

    Optimal transport plans pair at most ``transport_jets`` jets; others move with the mean step of their
    ``NEIGHBOURS`` nearest. The step of Sinkhorn's map is T(x; start, end) - T(x; start, start): without the
    second term, which is how far the blur alone pulls a jet inwards (arXiv 1810.08278). Quantiles are
    morphed one coordinate at a time. Binned factors are those of the discriminant. None of them looks at
    pT or |eta|.

    Raises
    ------
    DataError
        If a reference that moves mass meets negative weights.
    FitError
        If Sinkhorn's plan does not converge.
    """
    if name == "quantile_morphing":
        morphs = [
            QuantileMorphing.between(x, y, simulation.weight, data.weight)
            for x, y in zip(simulation.coordinates.T, data.coordinates.T, strict=True)
        ]
        return Transported(move=lambda u: np.stack([m(x) for m, x in zip(morphs, u.T, strict=True)], axis=1))
    if name == "binned_scale_factors":
        edges = np.unique(np.quantile(simulation.discriminant, np.arange(1, BINS) / BINS))
        binned = BinnedScaleFactors.between(
            simulation.discriminant, data.discriminant, edges, simulation.weight, data.weight
        )
        return Transported(weights=lambda jets: binned.weights(jets.discriminant))
    if name == "classifier_reweighting":
        classifier = ClassifierReweighting.between(
            simulation.coordinates, data.coordinates, simulation.weight, data.weight, seed=seed
        )
        return Transported(weights=lambda jets: classifier.weights(jets.coordinates, jets.weight))
    random = np.random.default_rng([seed, 3])
    count = config.transport_jets
    if name == "sinkhorn":
        count = min(count, SINKHORN_JETS)
    few = [jets.rows(random.permutation(len(jets))[:count]) for jets in (simulation, data)]
    (start, a), (end, b) = ((jets.coordinates, jets.weight) for jets in few)
    if name == "optimal_transport":
        step = exact_map(start, end, a, b) - start
    else:
        blur = config.regularisation
        step = sinkhorn_map(start, end, blur, a, b) - sinkhorn_map(start, start, blur, a, a)
    tree, neighbours = cKDTree(start), min(NEIGHBOURS, len(start))

    def move(u: Points) -> Points:
        nearest = np.asarray(tree.query(u, k=range(1, neighbours + 1))[1])
        return np.asarray(u + step[nearest].mean(axis=1))

    return Transported(move=move)


def apply_reference(
    jets: ScoredJets,
    learnt: Mapping[int, Transported],
    of_flavour: Callable[[ScoredJets, int], FlavourJets],
    frame: ScoreFrame,
) -> ScoredJets:
    """Simulated ``jets`` changed flavour by flavour; flavours that are not ``learnt`` stay as they are."""
    log_p, weight = jets.log_probability.copy(), jets.weight.copy()
    for flavour, change in learnt.items():
        rows = np.flatnonzero(jets.flavour == flavour)
        if not len(rows):
            continue
        own = of_flavour(jets, flavour)
        if change.move is not None:
            log_p[rows] = frame.leave(torch.from_numpy(change.move(own.coordinates))).numpy()
        if change.weights is not None:
            weight[rows] = own.weight * change.weights(own)
    return replace(jets, log_probability=log_p, weight=weight)
