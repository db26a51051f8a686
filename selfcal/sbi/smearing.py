r"""The smearing model: the tracks of a given simulation as another detector would have measured them.

For a track with signed impact parameter x, resolution σ = \|x / significance\| and standard normal
numbers n, in this order:

1. *innermost hit lost* (probability -``innermost_efficiency_shift``): hits are taken off, σ → kσ with the
   simulation's own ratio k, x → x + sqrt(k² - 1) σ n; gained: the reverse, primary tracks x → x/k;
2. *core scale s*: s > 1: x → x + sqrt(s² - 1) σ n; s < 1: primary tracks x → s x;
3. *tail scale t*: t > 1: with probability 0.06 (t - 1), x → x + sqrt(2² - 1) σ n (far tail: 0.008 and 5);
   t < 1: primary tracks beyond 2.5 σ (far tail: 5 σ), with probability 1 - t, x → x/2 (x/5);
4. *bias*: x → x + bias.

The significance is x/σ with the sign that the jet's direction gave it, which does not depend on x. Then
tracks are lost (``efficiency_shift`` < 0, scales of pile-up and fakes below one) or added: donors of the
same \|eta\| band, in numbers of a Poisson law. Primary, pile-up and fake are truth origins; where there are
none, only what needs none is done. Nothing else of a track changes, nothing of a jet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters
from selfcal.data.jets import ORIGINS, Jets
from selfcal.errors import DataError
from selfcal.sbi.donors import ABS_ETA_EDGES, PT_GEV_EDGES, SIGNIFICANCE_MIN, Donors
from selfcal.sbi.noise import Noise, draw_noise, hashed_uniform, poisson_quantile
from selfcal.sbi.track_columns import (
    FAKE,
    INNERMOST_HITS,
    OTHER,
    PILEUP,
    TrackColumns,
    column,
    track_columns,
    track_kind,
    track_pt_gev,
)

TAIL_FRACTION, TAIL_FACTOR, TAIL_FROM = 0.06, 2.0, 2.5
FAR_TAIL_FRACTION, FAR_TAIL_FACTOR, FAR_TAIL_FROM = 0.008, 5.0, 5.0
UNKNOWN_VERTEX = -2
_COUNT_STREAM, _DONOR_STREAM = 100, 200
_PIXEL_HITS = "numberOfPixelHits"
_OF_INNERMOST = ("numberOfInnermostPixelLayerSharedHits", "numberOfInnermostPixelLayerSplitHits")

Floats = NDArray[np.float64]
_Values = Mapping[str, float | Floats]
"""The parameters by name: numbers, or one number per jet or track."""


def smear(
    jets: Jets, parameters: SmearingParameters, donors: Donors, seed: int, noise: Noise | None = None
) -> Jets:
    """``jets`` under ``parameters``; the same jets at the nominal values.

    The result for a jet depends on its key and ``seed`` alone, and moves little when the parameters
    do, because the random numbers stay. ``noise``: what ``draw_noise(jets, seed)`` gave before.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent, or a field is none of the donors'.
    """
    if parameters == NOMINAL:
        return jets
    values = parameters.model_dump()
    return _smeared(jets, values, values, donors, draw_noise(jets, seed) if noise is None else noise)


def smear_each(jets: Jets, theta: Floats, donors: Donors, seed: int, noise: Noise | None = None) -> Jets:
    """Every jet under a detector of its own: ``theta`` (N, D), within the ranges of the parameters.

    A jet is exactly what :func:`smear` makes of it with its row of ``theta``.

    Raises
    ------
    DataError
        If an impact parameter or a signed significance is absent, or a field is none of the donors'.
    """
    of_jet = dict(zip(PARAMETERS, theta.T, strict=True))
    of_track = {name: np.repeat(row, jets.n_tracks) for name, row in of_jet.items()}
    noise = draw_noise(jets, seed) if noise is None else noise
    return _smeared(jets, of_jet, of_track, donors, noise)


def _smeared(jets: Jets, of_jet: _Values, of_track: _Values, donors: Donors, noise: Noise) -> Jets:
    columns = track_columns(jets)
    kind = track_kind(jets)
    state = _initial(jets, columns, donors)
    tracks = jets.tracks.copy()
    _change_innermost(state, tracks, jets, columns, of_track, donors, noise)
    _scale_core(state, columns, of_track, noise)
    _change_tails(state, columns, of_track, noise)
    state.value[0] += of_track["d0_bias_mm"]
    state.value[1] += of_track["z0_bias_mm"]
    _write(state, tracks, jets)
    kept = _kept(kind, of_track, noise)
    return _with_added(jets, tracks, kept, of_jet, donors, noise)


@dataclass
class _State:
    """Impact parameters and resolutions of T tracks while they are changed: rows d0 and z0, (2, T)."""

    value: Floats
    sigma: Floats
    direction: Floats
    primary: NDArray[np.bool_]


def _initial(jets: Jets, columns: TrackColumns, donors: Donors) -> _State:
    value = np.stack([column(jets, "d0"), column(jets, "z0SinTheta")]).astype(np.float64)
    significance = np.stack([columns.d0_significance, columns.z0_significance]).astype(np.float64)
    band = np.digitize(track_pt_gev(jets), PT_GEV_EDGES)
    typical = np.stack([donors.d0_sigma_mm[band], donors.z0_sigma_mm[band]])
    known = (np.abs(significance) > SIGNIFICANCE_MIN) & (value != 0)
    sigma = np.where(known, np.abs(value / np.where(known, significance, 1.0)), typical)
    direction = np.sign(value * significance)
    # A track exactly at zero has no sign to read: the side of the jet on which it flies decides.
    for row, name in enumerate(("dphi", "deta")):
        angle = column(jets, name) if name in jets.track_fields else np.ones(len(jets.tracks))
        direction[row] = np.where(direction[row] == 0, np.where(angle > 0, -1.0, 1.0), direction[row])
    return _State(value, sigma, direction, jets.track_origin == ORIGINS.index("primary"))


def _change_innermost(
    state: _State,
    tracks: NDArray[np.float32],
    jets: Jets,
    columns: TrackColumns,
    parameters: _Values,
    donors: Donors,
    noise: Noise,
) -> None:
    shift = parameters["innermost_efficiency_shift"]
    if not np.any(shift) or INNERMOST_HITS not in jets.track_fields:
        return
    place = {name: i for i, name in enumerate(jets.track_fields)}
    band = np.digitize(track_pt_gev(jets), PT_GEV_EDGES)
    efficiency = float(donors.innermost_efficiency[0])
    uniform = noise.uniform["innermost"]
    lost = columns.innermost & (uniform < -shift / max(efficiency, 1e-6))
    gained = ~columns.innermost & (uniform < shift / max(1 - efficiency, 1e-6))
    hits = tracks[lost, place[INNERMOST_HITS]]
    for name in (INNERMOST_HITS, *_OF_INNERMOST):
        if name in place:
            tracks[lost, place[name]] = 0
    tracks[gained, place[INNERMOST_HITS]] = 1
    if _PIXEL_HITS in place:
        pixel = place[_PIXEL_HITS]
        tracks[lost, pixel] = np.maximum(tracks[lost, pixel] - hits, 0)
        tracks[gained, pixel] += 1
    for row, name in enumerate(("hit_d0", "hit_z0")):
        ratio = donors.innermost_ratio[row, band[lost]]
        widening = np.sqrt(ratio**2 - 1) * state.sigma[row, lost]
        state.value[row, lost] += widening * noise.normal[name][lost]
        state.sigma[row, lost] *= ratio
        ratio = donors.innermost_ratio[row, band[gained]]
        state.value[row, gained] /= np.where(state.primary[gained], ratio, 1.0)
        state.sigma[row, gained] /= ratio


def _scale_core(state: _State, columns: TrackColumns, parameters: _Values, noise: Noise) -> None:
    for row, name in enumerate(("d0", "z0")):
        low, high = (parameters[f"{name}_core_scale_{band}"] for band in ("low", "high"))
        if np.all(low == 1) and np.all(high == 1):
            continue
        scale = np.where(columns.high, high, low)
        widening = np.sqrt(np.maximum(scale**2 - 1, 0)) * state.sigma[row]
        state.value[row] *= np.where(state.primary, np.minimum(scale, 1.0), 1.0)
        state.value[row] += widening * noise.normal[f"core_{name}"]


def _change_tails(state: _State, columns: TrackColumns, parameters: _Values, noise: Noise) -> None:
    near = np.where(columns.high, parameters["tail_scale_high"], parameters["tail_scale_low"])
    far = np.broadcast_to(parameters["far_tail_scale"], near.shape)
    for stream, scale, fraction, factor, start in (
        ("tail", near, TAIL_FRACTION, TAIL_FACTOR, TAIL_FROM),
        ("far_tail", far, FAR_TAIL_FRACTION, FAR_TAIL_FACTOR, FAR_TAIL_FROM),
    ):
        uniform = noise.uniform[stream]
        widened = uniform < fraction * (scale - 1)
        for row, name in enumerate(("d0", "z0")):
            size = np.sqrt(factor**2 - 1) * state.sigma[row, widened]
            state.value[row, widened] += size * noise.normal[f"tail_{name}"][widened]
            beyond = state.primary & (np.abs(state.value[row]) > start * state.sigma[row])
            state.value[row, beyond & (uniform < 1 - scale)] /= factor


def _write(state: _State, tracks: NDArray[np.float32], jets: Jets) -> None:
    """Only what changed is written, so that an untouched track keeps its exact numbers."""
    names = (
        ("d0", "lifetimeSignedD0Significance"),
        ("z0SinTheta", "lifetimeSignedZ0SinThetaSignificance"),
    )
    for row, (value, significance) in enumerate(names):
        v, s = jets.track_fields.index(value), jets.track_fields.index(significance)
        changed = state.value[row] != jets.tracks[:, v]
        tracks[changed, v] = state.value[row, changed]
        tracks[changed, s] = (state.direction[row] * state.value[row] / state.sigma[row])[changed]


def _kept(kind: NDArray[np.int8], parameters: _Values, noise: Noise) -> NDArray[np.bool_]:
    survival = np.minimum(1.0 + parameters["efficiency_shift"], 1.0)
    survival = survival * np.where(kind == PILEUP, np.minimum(parameters["pileup_scale"], 1.0), 1.0)
    survival = survival * np.where(kind == FAKE, np.minimum(parameters["fake_scale"], 1.0), 1.0)
    kept: NDArray[np.bool_] = noise.uniform["loss"] < survival
    return kept


def _with_added(
    jets: Jets,
    tracks: NDArray[np.float32],
    kept: NDArray[np.bool_],
    parameters: _Values,
    donors: Donors,
    noise: Noise,
) -> Jets:
    jet_of, rows = _additions(jets, parameters, donors, noise)
    added = donors.tracks[rows]
    names = list(donors.track_fields)
    if donors.track_fields != jets.track_fields:
        if absent := [name for name in jets.track_fields if name not in names]:
            raise DataError(
                f"the tracks that may be added have no {', '.join(absent)}",
                where=jets.dataset,
                expected=f"the track fields of the control regions' simulation: {', '.join(names)}",
                fix="give all simulated datasets the same track fields",
            )
        added = added[:, [names.index(name) for name in jets.track_fields]]
    owner = np.concatenate([np.repeat(np.arange(len(jets)), jets.n_tracks)[kept], jet_of])
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(jets))
    unknown = np.full(len(rows), UNKNOWN_VERTEX, dtype=np.int16)
    return replace(
        jets,
        track_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tracks=np.concatenate([tracks[kept], added])[order],
        track_origin=np.concatenate([jets.track_origin[kept], donors.origin[rows]])[order],
        track_vertex=np.concatenate([jets.track_vertex[kept], unknown])[order],
    )


def _additions(
    jets: Jets, parameters: _Values, donors: Donors, noise: Noise
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Jet of every added track and the row of its donor."""
    band = np.digitize(jets.abs_eta, ABS_ETA_EDGES)
    bands = donors.rate.shape[1]
    more = {
        PILEUP: parameters["pileup_scale"] - 1,
        FAKE: parameters["fake_scale"] - 1,
        OTHER: parameters["efficiency_shift"],
    }
    jet_of, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for kind, scale in more.items():
        scale = np.maximum(scale, 0.0)
        if not np.any(scale):
            continue
        available = np.diff(donors.offsets)[kind * bands + band]
        mean = np.where(available > 0, scale * donors.rate[kind, band], 0.0)
        if kind == OTHER:
            # A better efficiency finds more where there is more to find.
            mean = np.where(available > 0, scale * jets.n_tracks, 0.0)
        count = poisson_quantile(hashed_uniform(noise.jet_key, _COUNT_STREAM + kind), mean)
        owner = np.repeat(np.arange(len(jets)), count)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        u = np.empty(len(owner))
        for n in range(int(count.max(initial=0))):
            stream = _DONOR_STREAM + 100 * kind + n
            u[place == n] = hashed_uniform(noise.jet_key[owner[place == n]], stream)
        jet_of.append(owner)
        rows.append(donors.offsets[kind * bands + band[owner]] + (u * available[owner]).astype(np.int64))
    return np.concatenate(jet_of), np.concatenate(rows)
