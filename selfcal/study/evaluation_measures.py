"""How far simulated jets of one flavour are from data of the same flavour, with bootstrap errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.scored import ScoredJets
from selfcal.likelihood.templates import Binning
from selfcal.tagger.working_points import area_under_curve, thresholds
from selfcal.transport.conditions import ScoreFrame, condition_features
from selfcal.transport.kinematics import kinematic_weights
from selfcal.transport.references import ClassifierReweighting

Doubles = NDArray[np.float64]

CLASSIFIER_STEPS = 60
PASSING_MIN = 25.0
"""Effective number of jets that must pass on either side for a working point to be judged."""
COUNTED_JETS_MIN = 10.0
"""Bins with fewer effective jets in data or simulation are merged with their looser neighbour."""


@dataclass(frozen=True)
class FlavourJets:
    """Jets of one flavour as they are compared.

    ``coordinates`` (N, D) in the frame of the calibration, ``conditions`` (N, 2), ``discriminant`` and
    ``weight`` (N,), ``kinematic_bin`` (N,), -1 outside, ``event`` (N,).
    """

    coordinates: Doubles
    conditions: Doubles
    discriminant: Doubles
    kinematic_bin: NDArray[np.int64]
    weight: Doubles
    event: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.weight)

    @classmethod
    def of(
        cls, jets: ScoredJets, flavour: int, frame: ScoreFrame, binning: Binning, discriminant: Doubles
    ) -> FlavourJets:
        """The jets of ``flavour``; ``discriminant`` is that of all ``jets``."""
        own = jets.flavour == flavour
        part = jets.select(own)
        place, inside = binning.kinematic_bins(part.pt_gev, part.abs_eta)
        return cls(
            frame.enter(torch.from_numpy(part.log_probability)).numpy(),
            condition_features(part.pt_gev, part.abs_eta).numpy(),
            discriminant[own],
            np.where(inside, place, -1),
            part.weight,
            part.event,
        )

    def rows(self, index: NDArray[np.int64]) -> FlavourJets:
        """Some of the jets."""
        return FlavourJets(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def like(self, other: FlavourJets) -> FlavourJets:
        """The same jets with the (pT, |eta|) spectrum of ``other``."""
        factor = kinematic_weights(
            *(torch.from_numpy(part.conditions) for part in (self, other)),
            *(torch.from_numpy(part.weight) for part in (self, other)),
        )
        return replace(self, weight=self.weight * factor.numpy())

    def bootstrap(self, replicas: int, random: np.random.Generator) -> NDArray[np.float32]:
        """Row 0 is one, the others are Poisson(1) factors that all jets of an event share, (B + 1, N)."""
        events, inverse = np.unique(self.event, return_inverse=True)
        factors = random.poisson(1.0, (replicas, len(events))).astype(np.float32)[:, inverse]
        return np.concatenate([np.ones((1, len(self)), np.float32), factors])


def passing(jets: FlavourJets, factors: NDArray[np.float32], edges: Sequence[float]) -> Doubles:
    """Efficiencies of D >= edge for every row of bootstrap ``factors``, (B, S)."""
    place = np.digitize(jets.discriminant, edges)
    counts = np.stack([np.bincount(place, jets.weight * row, len(edges) + 1) for row in factors])
    tail = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(tail[:, 1:] / tail[:, :1])


def wasserstein(
    first: FlavourJets,
    second: FlavourJets,
    first_factors: NDArray[np.floating],
    second_factors: NDArray[np.floating],
) -> Doubles:
    """W1 = ∫ |F - G| du of every coordinate, for every row of bootstrap factors, (B, D)."""
    result = np.empty((len(first_factors), first.coordinates.shape[1]))
    for axis in range(result.shape[1]):
        values = np.concatenate([first.coordinates[:, axis], second.coordinates[:, axis]])
        order = np.argsort(values, kind="stable")
        step = np.diff(values[order])
        for b, (one, other) in enumerate(zip(first_factors, second_factors, strict=True)):
            a, c = first.weight * one, second.weight * other
            signed = np.concatenate([a / a.sum(), -c / c.sum()])[order]
            result[b, axis] = np.abs(np.cumsum(signed)[:-1]) @ step
    return result


def histogram_chi2(data: FlavourJets, simulation: FlavourJets, binning: Binning) -> tuple[float, int]:
    """χ² between the discriminant shapes in every kinematic bin, and its degrees of freedom.

    Σ_k (W v_k - V w_k)² / (W² s²(v_k) + V² s²(w_k)) with the weights v, w of both samples in bin k, their
    totals V, W and their variances s² (physics/0605123), summed over kinematic bins, each of which loses
    one degree of freedom to its total.
    """
    chi2, ndf = 0.0, 0
    for p in range(binning.n_kinematic):
        v, w = (
            _binned(jets.rows(np.flatnonzero(jets.kinematic_bin == p)), binning.discriminant_edges)
            for jets in (data, simulation)
        )
        v, w = _merged(v, w)
        if v.shape[1] < 2:
            continue
        (v, v_variance), (w, w_variance) = v, w
        difference = w.sum() * v - v.sum() * w
        chi2 += float((difference**2 / (w.sum() ** 2 * v_variance + v.sum() ** 2 * w_variance)).sum())
        ndf += len(v) - 1
    return chi2, ndf


def _binned(jets: FlavourJets, edges: Sequence[float]) -> Doubles:
    """Sums of weights and of their squares, (2, K)."""
    place = np.digitize(jets.discriminant, edges)
    return np.stack([np.bincount(place, jets.weight**power, len(edges) + 1) for power in (1, 2)])


def _merged(first: Doubles, second: Doubles) -> tuple[Doubles, Doubles]:
    """Both with bins merged, from the tightest down, until each has ``COUNTED_JETS_MIN`` effective jets."""
    kept: list[list[Doubles]] = []
    open_bins: list[Doubles] = []
    for k in reversed(range(first.shape[1])):
        here = np.stack([first[:, k], second[:, k]])
        open_bins.append(here)
        total = np.sum(open_bins, axis=0)
        if all(s1 > 0 and s1**2 >= COUNTED_JETS_MIN * s2 for s1, s2 in total):
            kept.append(open_bins)
            open_bins = []
    if open_bins and kept:
        kept[-1] = kept[-1] + open_bins
    columns = np.array([np.sum(group, axis=0) for group in kept]).reshape(len(kept), 2, 2)
    return columns[:, 0].T, columns[:, 1].T


def separations(
    data: FlavourJets, simulation: FlavourJets, jets: int, repeats: int, seed: Sequence[int]
) -> Doubles:
    """AUC of fresh classifiers of data against simulation on jets that they have not seen, (repeats,).

    Each sees (scores, pT, |eta|) of half of ``jets`` of either sample and is judged on the other half;
    0.5 where nothing tells them apart, and below by chance.
    """
    random = np.random.default_rng(seed)
    half, found = jets // 2, []
    for repeat in range(repeats):
        parts = [sample.rows(random.permutation(len(sample))[:jets]) for sample in (simulation, data)]
        x = [np.concatenate([part.coordinates, part.conditions], axis=1) for part in parts]
        w = [part.weight for part in parts]
        learnt_from = (x[0][:half], x[1][:half], w[0][:half], w[1][:half])
        classifier = ClassifierReweighting.between(*learnt_from, steps=CLASSIFIER_STEPS, seed=repeat)
        simulated, observed = (classifier.log_ratio(points[half:]) for points in x)
        found.append(area_under_curve(observed, simulated, w[1][half:], w[0][half:]))
    return np.array(found)


def null_measures(simulation: FlavourJets, jets: int, repeats: int, seed: Sequence[int]) -> dict[str, Any]:
    """AUC and W1 between halves of the same simulation, ``jets`` each: what no map can fall below."""
    random = np.random.default_rng([*seed, 1])
    areas, distances = [], []
    for repeat in range(repeats):
        order = random.permutation(len(simulation))
        first, second = simulation.rows(order[:jets]), simulation.rows(order[jets : 2 * jets])
        areas += separations(first, second, jets, 1, [*seed, 2, repeat]).tolist()
        ones = [np.ones((1, len(part))) for part in (first, second)]
        distances.append(wasserstein(first, second, *ones)[0])
    return {
        "jets": jets,
        "auc": float(np.mean(areas)),
        "auc_spread": float(np.std(areas, ddof=1)),
        "w1": np.mean(distances, axis=0).tolist(),
    }


def efficiency_measures(
    data: FlavourJets,
    calibrated: FlavourJets,
    replicas: Sequence[FlavourJets],
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    binning: Binning,
) -> dict[str, Any]:
    """ε(data) / ε(calibrated) at every working point, and the mean distance of these ratios from one.

    ``error`` is the spread over the bootstrap ``factors`` of data and simulation, ``map_uncertainty`` that
    over the ``replicas`` of the map (None without any two). Working points that fewer than ``PASSING_MIN``
    effective jets of either sample pass are left out; without any there is no ``deviation``.
    """
    edges = binning.discriminant_edges
    observed = passing(data, factors[0], edges)
    ratio = _ratio(observed, passing(calibrated, factors[1], edges))
    varied = [_ratio(observed[:1], passing(one, factors[1][:1], edges))[0] for one in replicas]
    enough = (_passing_jets(jets, edges) >= PASSING_MIN for jets in (data, calibrated))
    known = np.isfinite(ratio[0]) & np.logical_and(*enough)
    if not known.any():
        return {"points": [], "deviation": None}
    deviation = np.nanmean(np.abs(ratio[:, known] - 1.0), axis=1)
    by_map = [float(np.nanmean(np.abs(one[known] - 1.0))) for one in varied]
    points = [
        {
            "working_point": point,
            "ratio": float(ratio[0, slot]),
            "error": _spread(ratio[1:, slot]),
            "map_uncertainty": _spread(np.array([one[slot] for one in varied])),
        }
        for slot, point in enumerate(binning.working_points)
        if known[slot]
    ]
    return {
        "points": points,
        "deviation": float(deviation[0]),
        "deviation_error": _spread(deviation[1:]),
        "deviation_map_uncertainty": _spread(np.array(by_map)),
        "deviation_bootstraps": deviation[1:].tolist(),
    }


def _passing_jets(jets: FlavourJets, edges: Sequence[float]) -> Doubles:
    """Effective number of jets (Σw)² / Σw² with D >= edge, (S,)."""
    total, squared = _binned(jets, edges)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return np.asarray(np.divide(total**2, squared, out=np.zeros_like(total), where=squared > 0))


def _ratio(first: Doubles, second: Doubles) -> Doubles:
    """first / second, NaN where there is nothing to divide by."""
    return np.divide(first, second, out=np.full_like(first, np.nan), where=second > 0)


def _spread(values: Doubles) -> float | None:
    """Standard deviation of the finite values; None of fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else None


def rejection_measures(
    signal: Sequence[FlavourJets],
    background: Sequence[FlavourJets],
    factors: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    working_points: Sequence[float],
) -> list[dict[str, Any]]:
    """Rejection of a background at fixed b efficiency, as part of that of the uncalibrated simulation.

    ``signal`` and ``background`` are (data, uncalibrated, calibrated), each with bootstrap ``factors``; every
    sample has its own thresholds, at which its own b jets have the efficiency of the working point.
    ``kept`` is 1/ε(calibrated) over 1/ε(uncalibrated), ``kept_in_data`` the same of data.
    """
    columns = []
    for own, other, (own_factors, other_factors) in zip(signal, background, factors, strict=True):
        values = []
        for one, two in zip(own_factors, other_factors, strict=True):
            cuts = thresholds(own.discriminant, own.weight * one, working_points)
            weight = other.weight * two
            values.append([weight[other.discriminant >= cut].sum() / weight.sum() for cut in cuts])
        columns.append(np.array(values))
    data, uncalibrated, calibrated = columns
    kept, kept_in_data = _ratio(uncalibrated, calibrated), _ratio(uncalibrated, data)
    return [
        {
            "working_point": point,
            "kept": float(kept[0, slot]),
            "error": _spread(kept[1:, slot]),
            "kept_in_data": float(kept_in_data[0, slot]),
            "error_in_data": _spread(kept_in_data[1:, slot]),
        }
        for slot, point in enumerate(working_points)
        if np.isfinite([kept[0, slot], kept_in_data[0, slot]]).all()
    ]
