"""Guards against data that can be read but must not be used: wrong units, wrong columns, duplicates.

A guard looks at one dataset chunk by chunk, in memory that grows by eight bytes a jet. What it finds is
refused with the evidence; the card's ``accept`` overrides it by name and with a reason, and both are
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import DataCard, GuardName
from selfcal.config.run import DataConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.folds import Fold, event_hash, fold_of
from selfcal.data.jets import Jets
from selfcal.data.units import units_of

PT_MEDIAN_GEV = (8.0, 2_500.0)
"""Jets of a flavour-tagging sample; a factor 1000 leaves the range on either side."""

PT_MAX_GEV = 7_000.0
"""No jet has more than the energy of an LHC beam."""

D0_SIGMA_MEDIAN_MM = (0.006, 0.15)
"""Median d0 uncertainty of tracks in jets: 0.02 to 0.06 mm in ATLAS and CMS; a factor 10 leaves the range."""

D0_MEDIAN_MM = (0.004, 0.4)
"""Median |d0|, used where there are no significances."""

DPHI_MAX_RAD = 1.6
DPHI_MEDIAN_MIN_RAD = 0.002
"""Tracks in a jet are within about 1 rad of its axis, at a median distance of about 0.1 rad."""

SCORE_JETS, SCORE_SIGMA = 50, 5.0
"""Labelled jets of each of two flavours, and how clearly the scores must contradict them, to be refused."""

_THIN_JETS, _THIN_TRACKS = 2_000, 4_000
_QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a dataset; ``guard`` names it where a card may accept it."""

    guard: GuardName | None
    text: str


@dataclass
class ScoreMoments:
    """Number, sum and sum of products of ln p of labelled jets, by flavour: (F,), (F, K), (F, K, K)."""

    classes: tuple[str, ...]
    number: NDArray[np.int64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @classmethod
    def none(cls, classes: tuple[str, ...]) -> ScoreMoments:
        """Of no jets yet."""
        f, k = len(FLAVOURS), len(classes)
        return cls(classes, np.zeros(f, np.int64), np.zeros((f, k)), np.zeros((f, k, k)))

    def add(self, log_score: NDArray[np.floating], flavour: NDArray[np.integer]) -> None:
        """Count the jets of a chunk; those without label stay out."""
        for index in range(len(FLAVOURS)):
            values = np.asarray(log_score[flavour == index], np.float64)
            self.number[index] += len(values)
            self.first[index] += values.sum(axis=0)
            self.second[index] += values.T @ values

    def _ratio(self, flavour: int, one: int, other: int) -> tuple[float, float]:
        """Mean of ln(p_one / p_other) for a flavour, and its variance."""
        n = self.number[flavour]
        mean = self.first[flavour] / n
        spread = self.second[flavour] / n - np.outer(mean, mean)
        variance = spread[one, one] + spread[other, other] - 2 * spread[one, other]
        return float(mean[one] - mean[other]), float(max(variance, 0.0)) / float(n)

    def findings(self) -> list[Finding]:
        """Two classes whose ratio is larger for the other's jets than for its own: swapped columns."""
        found = []
        for one, other in combinations(range(len(self.classes)), 2):
            first, second = (FLAVOURS.index(self.classes[k]) for k in (one, other))
            if min(self.number[first], self.number[second]) < SCORE_JETS:
                continue
            (own, own_variance), (others, others_variance) = (
                self._ratio(flavour, one, other) for flavour in (first, second)
            )
            if own - others < -SCORE_SIGMA * (own_variance + others_variance) ** 0.5:
                a, b = self.classes[one], self.classes[other]
                text = (
                    f"the mean of ln(p_{a} / p_{b}) is {own:.3g} for {a} jets and {others:.3g} for {b} jets; "
                    "their columns, or the labels, may be swapped: see 'scores.fields' of the card"
                )
                found.append(Finding("score_columns", text))
        return found


@dataclass
class DatasetGuard:
    """What the guards and the report need of a dataset, gathered over its chunks.

    Up to ``_THIN_JETS`` pT and ``_THIN_TRACKS`` tracks of each chunk stand for the whole in the
    quantiles; keys are kept as 64-bit hashes.
    """

    card: DataCard
    selection: DataConfig
    jets: int = 0
    tracks: int = 0
    missing_scores: int = 0
    without_tracks: int = 0
    negative_weights: int = 0
    sum_of_weights: float = 0.0
    sum_of_squares: float = 0.0
    folds: dict[str, int] = field(default_factory=lambda: {fold.name.lower(): 0 for fold in Fold})
    flavours: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FLAVOURS, 0))
    above_beam_energy: int = 0
    negative_uncertainties: int = 0
    has_run_numbers: bool = False
    _keys: list[NDArray[np.uint64]] = field(default_factory=list)
    _scores: ScoreMoments | None = None
    _samples: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)

    def add(self, jets: Jets) -> None:
        """Look at the next chunk."""
        kept = (
            (jets.pt_gev >= self.selection.pt_gev_min)
            & (jets.pt_gev < self.selection.pt_gev_max)
            & (jets.abs_eta < self.selection.abs_eta_max)
        )
        if jets.log_score is not None:
            scored = np.isfinite(jets.log_score).all(axis=1)
            self.missing_scores += int((kept & ~scored).sum())
            kept &= scored
        self.jets += len(jets)
        self.tracks += int(jets.track_offsets[-1])
        self.without_tracks += int((jets.n_tracks[kept] == 0).sum()) if jets.track_fields else 0
        fold = fold_of(jets, self.selection.folds_for(self.card.role))[kept]
        for member in Fold:
            self.folds[member.name.lower()] += int((fold == member).sum())
        for index, name in enumerate(FLAVOURS):
            self.flavours[name] += int((jets.flavour[kept] == index).sum())
        weight = jets.weight[kept] if self.card.weights == "event" else np.ones(int(kept.sum()))
        self.negative_weights += int((weight < 0).sum())
        self.sum_of_weights += float(weight.sum())
        self.sum_of_squares += float((weight**2).sum())
        self.has_run_numbers |= bool((jets.run > 0).any())
        self._keys.append(jet_keys(jets))
        if jets.log_score is not None:
            self._scores = self._scores or ScoreMoments.none(jets.score_classes)
            self._scores.add(jets.log_score[kept], jets.flavour[kept])
        self._sample(jets)

    def _sample(self, jets: Jets) -> None:
        self.above_beam_energy += int((jets.pt_gev > PT_MAX_GEV).sum())
        self._keep("pt_gev", jets.pt_gev, _THIN_JETS)
        columns = {name: jets.tracks[:, i] for i, name in enumerate(jets.track_fields)}
        for name in ("d0", "dphi"):
            if name in columns:
                self._keep(name, np.abs(columns[name]), _THIN_TRACKS)
        for name, values in columns.items():
            if name.endswith("Uncertainty"):
                self.negative_uncertainties += int((values < 0).sum())
        significance = columns.get("lifetimeSignedD0Significance")
        if significance is not None and "d0" in columns:
            known = np.abs(significance) > 1e-3
            self._keep("d0_sigma", np.abs(columns["d0"][known] / significance[known]), _THIN_TRACKS)

    def _keep(self, name: str, values: NDArray[np.floating], most: int) -> None:
        step = max(1, len(values) // most)
        self._samples.setdefault(name, []).append(values[::step].astype(np.float32))

    @property
    def selected(self) -> int:
        """Jets within the kinematic range, with scores if these are used."""
        return sum(self.folds.values())

    @property
    def effective_size(self) -> float:
        """(sum w)^2 / sum w^2 of the selected jets."""
        return self.sum_of_weights**2 / self.sum_of_squares if self.sum_of_squares else 0.0

    def keys(self) -> NDArray[np.uint64]:
        """Hashes of the keys of all jets, in order, (N,)."""
        return np.concatenate(self._keys) if self._keys else np.zeros(0, dtype=np.uint64)

    def quantiles(self, name: str) -> tuple[float, float, float] | None:
        """1, 50 and 99 per cent quantiles of a sampled quantity, or None where there is none."""
        values = np.concatenate(self._samples.get(name) or [np.zeros(0, dtype=np.float32)])
        if not len(values):
            return None
        low, middle, high = (float(q) for q in np.quantile(values, _QUANTILES))
        return low, middle, high

    def findings(self) -> list[Finding]:
        """Everything wrong with the dataset, whether the card accepts it or not."""
        if not self.jets:
            return [Finding(None, "no jets")]
        found = [*_momentum(self), *_length(self), *_angle(self), *_duplicates(self.keys())]
        if self.missing_scores:
            text = (
                f"{self.missing_scores} of {self.missing_scores + self.selected} jets in the kinematic "
                "range have no score (a sentinel below zero); accepted, they are left out"
            )
            found.append(Finding("missing_scores", text))
        found += self._scores.findings() if self._scores else []
        if self.negative_uncertainties:
            text = f"{self.negative_uncertainties} uncertainties of tracks are below zero: another column?"
            found.append(Finding(None, text))
        if self.sum_of_weights <= 0 < self.selected:
            text = f"the weights of the selected jets add up to {self.sum_of_weights:g}, not above zero"
            found.append(Finding(None, text))
        return found


def jet_keys(jets: Jets) -> NDArray[np.uint64]:
    """64-bit hash of (run, event, jet index), (N,): equal for equal keys of any dataset."""
    of_event = event_hash("", jets.run, jets.event).view(np.int64)
    return event_hash("", of_event, jets.jet_index.astype(np.int64))


def _described(quantiles: tuple[float, float, float], unit: str) -> str:
    return "1/50/99 % quantiles " + ", ".join(f"{value:.4g}" for value in quantiles) + f" {unit}"


def _momentum(guard: DatasetGuard) -> list[Finding]:
    quantiles = guard.quantiles("pt_gev")
    if quantiles is None:
        return []
    low, high = PT_MEDIAN_GEV
    unit = units_of(guard.card).momentum
    evidence = f"jet pT read as {unit}: {_described(quantiles, 'GeV')}"
    if low <= quantiles[1] <= high and not guard.above_beam_energy:
        return []
    if low <= quantiles[1] <= high:
        text = f"{guard.above_beam_energy} jets with more pT than {PT_MAX_GEV:g} GeV; {evidence}"
        return [Finding("momentum_unit", text)]
    other = "MeV" if quantiles[1] > high else "GeV"
    hint = f". The file is probably in {other}: say 'units: {{momentum: {other}}}'" if other != unit else ""
    text = f"{evidence}; a median in [{low:g}, {high:g}] GeV is expected{hint}"
    return [Finding("momentum_unit", text)]


def _length(guard: DatasetGuard) -> list[Finding]:
    for name, (low, high), words in (
        ("d0_sigma", D0_SIGMA_MEDIAN_MM, "d0 uncertainty"),
        ("d0", D0_MEDIAN_MM, "|d0|"),
    ):
        quantiles = guard.quantiles(name)
        if quantiles is None:
            continue
        if low <= quantiles[1] <= high:
            return []
        return [
            Finding(
                "length_unit",
                f"{words} read as {units_of(guard.card).length}: {_described(quantiles, 'mm')}; a median in "
                f"[{low:g}, {high:g}] mm is expected. Say 'units: {{length: mm}}' (or cm, um)",
            )
        ]
    return []


def _angle(guard: DatasetGuard) -> list[Finding]:
    quantiles = guard.quantiles("dphi")
    if quantiles is None or (quantiles[1] >= DPHI_MEDIAN_MIN_RAD and quantiles[2] <= DPHI_MAX_RAD):
        return []
    text = (
        f"|dphi| of tracks read as {units_of(guard.card).angle}: {_described(quantiles, 'rad')}; a median "
        f"above {DPHI_MEDIAN_MIN_RAD:g} and 99 % below {DPHI_MAX_RAD:g} rad are expected. "
        "Say 'units: {angle: rad}' (or deg)"
    )
    return [Finding("angle_unit", text)]


def _duplicates(keys: NDArray[np.uint64]) -> list[Finding]:
    ordered = np.sort(keys)
    repeated = int((ordered[1:] == ordered[:-1]).sum())
    if not repeated:
        return []
    first = keys[np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]]).argmax()]
    one, other = (int(index) for index in np.flatnonzero(keys == first)[:2])
    text = f"{repeated} duplicate jets by (run, event, jet index), as jets {one} and {other} of the dataset"
    return [Finding("duplicate_jets", text)]


def overlap_problems(guards: Sequence[DatasetGuard]) -> list[str]:
    """Jets that two datasets share; sought where both have run numbers, because only then keys are global.

    A jet in two datasets falls into different folds of them, so that what shaped a map would measure.
    """
    problems = []
    for i, one in enumerate(guards):
        for other in guards[i + 1 :]:
            if not (one.has_run_numbers and other.has_run_numbers):
                continue
            shared = len(np.intersect1d(one.keys(), other.keys()))
            if shared:
                problems.append(
                    f"{one.card.name} and {other.card.name} share {shared} jets by (run, event, jet index): "
                    "make the selections of the datasets disjoint"
                )
    return problems
