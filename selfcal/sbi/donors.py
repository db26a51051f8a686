"""What the smearing model knows of a simulation: tracks to add, their rates, and resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import ORIGINS, Jets
from selfcal.errors import DataError
from selfcal.sbi.track_columns import FAKE, OTHER, PILEUP, column, track_columns, track_kind, track_pt_gev

ABS_ETA_EDGES = np.array([0.5, 1.0, 1.5, 2.0])
"""Inner edges of the bands in which tracks are donated: pile-up and resolution depend on |eta|."""

PT_GEV_EDGES = np.array([1.0, 2.0, 5.0, 10.0])
"""Inner edges of the pT bands of the resolutions."""

KINDS = (PILEUP, FAKE, OTHER)
DONORS_MAX = 2000
"""Tracks kept per kind and |eta| band."""

SIGNIFICANCE_MIN = 1e-3
"""Below it |d0 / significance| is no measure of sigma."""

RATIO_FALLBACK = 1.5
"""sigma without over sigma with innermost hit, where the simulation has too few tracks to tell."""

BAND_TRACKS_MIN = 50
"""A band with fewer tracks takes what all bands have together."""


@dataclass(frozen=True)
class Donors:
    """Tracks and rates of one simulation; B |eta| bands, P pT bands, K kinds.

    Attributes
    ----------
    tracks : (n, F) float32, with ``track_fields``; those of kind k and band b are rows
        ``offsets[k * B + b]`` to ``offsets[k * B + b + 1]``
    origin : (n,) int8
    rate : (K, B) mean number of tracks of a kind per jet
    d0_sigma_mm, z0_sigma_mm : (P,) median resolution of tracks with innermost hit
    innermost_ratio : (2, P) sigma without over sigma with innermost hit, of d0 and z0
    innermost_efficiency : share of tracks with innermost hit
    """

    track_fields: tuple[str, ...]
    tracks: NDArray[np.float32]
    origin: NDArray[np.int8]
    offsets: NDArray[np.int64]
    rate: NDArray[np.float64]
    d0_sigma_mm: NDArray[np.float64]
    z0_sigma_mm: NDArray[np.float64]
    innermost_ratio: NDArray[np.float64]
    innermost_efficiency: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything but the names of the fields, to be written."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "track_fields"}


def collect_donors(samples: Sequence[Jets], seed: int) -> Donors:
    """Measure ``samples`` (of the train fold) and draw tracks from them.

    Where no track has a truth origin, the donated fakes are ordinary tracks whose impact
    parameters are drawn anew, evenly over the range seen, with their own resolution.

    Raises
    ------
    DataError
        If there are no tracks, or fields differ between samples.
    """
    names = samples[0].track_fields if samples else ()
    if not samples or not sum(len(jets.tracks) for jets in samples):
        raise DataError("no simulated tracks to learn the smearing model from", where="train fold")
    if any(jets.track_fields != names for jets in samples):
        raise DataError("the simulated datasets have different track fields", where=samples[0].dataset)
    generator = np.random.default_rng(seed)
    tracks = np.concatenate([jets.tracks for jets in samples])
    origin = np.concatenate([jets.track_origin for jets in samples])
    kind = np.concatenate([track_kind(jets) for jets in samples])
    bands = [np.digitize(jets.abs_eta, ABS_ETA_EDGES) for jets in samples]
    band = np.concatenate([np.repeat(b, jets.n_tracks) for b, jets in zip(bands, samples, strict=True)])
    jets_in_band = np.bincount(np.concatenate(bands), minlength=len(ABS_ETA_EDGES) + 1)
    kept: list[NDArray[np.int64]] = []
    rate = np.zeros((len(KINDS), len(jets_in_band)))
    labelled = bool((origin >= 0).any())
    for k in KINDS:
        for b, count in enumerate(jets_in_band):
            # Without labels nothing is known to be a fake: any track may lend its momentum and hits.
            member = band == b if k == FAKE and not labelled else (kind == k) & (band == b)
            rows = np.flatnonzero(member)
            rate[k, b] = len(rows) / max(count, 1)
            kept.append(generator.permutation(rows)[:DONORS_MAX])
    if not labelled:
        rate[FAKE] = 0.01 * rate[FAKE]
    chosen = np.concatenate(kept)
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])])
    donated = tracks[chosen]
    if not labelled:
        first, last = offsets[FAKE * len(jets_in_band)], offsets[(FAKE + 1) * len(jets_in_band)]
        _randomise(donated[first:last], names, tracks, generator)
    sigma_d0, sigma_z0, ratio, efficiency = _resolutions(samples)
    return Donors(
        track_fields=names,
        tracks=donated,
        origin=origin[chosen],
        offsets=offsets,
        rate=rate,
        d0_sigma_mm=sigma_d0,
        z0_sigma_mm=sigma_z0,
        innermost_ratio=ratio,
        innermost_efficiency=np.array([efficiency]),
    )


def _randomise(
    donated: NDArray[np.float32],
    names: tuple[str, ...],
    tracks: NDArray[np.float32],
    generator: np.random.Generator,
) -> None:
    """Impact parameters drawn evenly over the range of ``tracks``, in place; |x / significance| stays."""
    for value, significance in (
        ("d0", "lifetimeSignedD0Significance"),
        ("z0SinTheta", "lifetimeSignedZ0SinThetaSignificance"),
    ):
        v, s = names.index(value), names.index(significance)
        old = donated[:, v]
        new = generator.uniform(-1.0, 1.0, len(donated)) * np.quantile(np.abs(tracks[:, v]), 0.999)
        safe = np.where(old != 0, old, 1.0)
        donated[:, s] = np.where(old != 0, donated[:, s] * new / safe, donated[:, s])
        donated[:, v] = new


def _resolutions(
    samples: Sequence[Jets],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    parts = [track_columns(jets) for jets in samples]
    innermost = np.concatenate([part.innermost for part in parts])
    band = np.concatenate([np.digitize(track_pt_gev(jets), PT_GEV_EDGES) for jets in samples])
    prompt = np.concatenate([jets.track_origin for jets in samples]) == ORIGINS.index("primary")
    if not prompt.any():
        prompt[:] = True
    medians = np.ones((2, 2, len(PT_GEV_EDGES) + 1))
    ratio = np.full((2, len(PT_GEV_EDGES) + 1), RATIO_FALLBACK)
    pairs = (("d0", "d0_significance"), ("z0SinTheta", "z0_significance"))
    for row, (name, significance) in enumerate(pairs):
        values = np.concatenate([column(jets, name) for jets in samples]).astype(np.float64)
        signs = np.concatenate([getattr(part, significance) for part in parts]).astype(np.float64)
        known = np.abs(signs) > SIGNIFICANCE_MIN
        sigma = np.abs(values[known] / signs[known])
        overall = float(np.median(sigma)) if len(sigma) else 1.0
        for b in range(len(PT_GEV_EDGES) + 1):
            both = [sigma[(prompt & (band == b) & (innermost == hit))[known]] for hit in (True, False)]
            medians[row, 0, b] = np.median(both[0]) if len(both[0]) >= BAND_TRACKS_MIN else overall
            if min(len(part) for part in both) >= BAND_TRACKS_MIN:
                ratio[row, b] = max(float(np.median(both[1]) / np.median(both[0])), 1.0)
    return medians[0, 0], medians[1, 0], ratio, float(innermost.mean())
