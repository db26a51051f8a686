"""From jets to the numbers that the network sees.

Every track input is a fixed transformation of the file's own fields, chosen so that
no value dominates (impact parameters span five orders of magnitude), followed by a
:class:`Normalisation` to zero mean and unit width measured on the training jets.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcal.data.jets import Jets
from selfcal.errors import DataError

Floats = NDArray[np.float32]

LARGEST_MOMENTUM_GEV = 1e5
SMALLEST_UNCERTAINTY = 1e-12


def signed_log(x: Any, scale: float, limit: float, xp: Any = np) -> Any:
    """sign(x) ln(1 + |x| / scale), clipped to [-limit, limit]; linear for |x| << scale."""
    return xp.clip(xp.sign(x) * xp.log1p(xp.abs(x) / scale), -limit, limit)


@dataclass(frozen=True)
class TrackInput:
    """One number per track.

    ``compute`` takes the columns of ``fields``, the eta of each track's jet, and the
    module whose arrays these are: ``numpy``, or ``torch`` in an exported graph.
    """

    name: str
    fields: tuple[str, ...]
    compute: Callable[[dict[str, Any], Any, Any], Any]


def _plain(name: str) -> TrackInput:
    return TrackInput(name, (name,), lambda columns, _, xp: columns[name])


def _signed_log(name: str, scale: float, limit: float) -> TrackInput:
    return TrackInput(name, (name,), lambda columns, _, xp: signed_log(columns[name], scale, limit, xp))


def _log_uncertainty(name: str) -> TrackInput:
    return TrackInput(
        name, (name,), lambda columns, _, xp: xp.log(xp.clip(columns[name], SMALLEST_UNCERTAINTY, None))
    )


def _log_pt(columns: dict[str, Any], jet_eta: Any, xp: Any) -> Any:
    """ln(pT / GeV) = -ln(1000 |q/p| cosh(eta)), q/p in 1/MeV, at most LARGEST_MOMENTUM_GEV."""
    inverse_momentum = xp.clip(1000.0 * xp.abs(columns["qOverP"]), 1.0 / LARGEST_MOMENTUM_GEV, None)
    return -xp.log(inverse_momentum) - xp.log(xp.cosh(jet_eta + columns["deta"]))


TRACK_INPUTS: tuple[TrackInput, ...] = (
    _signed_log("d0", scale=0.02, limit=8.0),
    _signed_log("z0SinTheta", scale=0.05, limit=8.0),
    _plain("deta"),
    _plain("dphi"),
    TrackInput("log_pt_gev", ("qOverP", "deta"), _log_pt),
    _signed_log("lifetimeSignedD0Significance", scale=1.0, limit=8.0),
    _signed_log("lifetimeSignedZ0SinThetaSignificance", scale=1.0, limit=8.0),
    *(_log_uncertainty(f"{name}Uncertainty") for name in ("phi", "theta", "qOverP")),
    *(
        _plain(f"numberOf{name}")
        for name in (
            "PixelHits",
            "SCTHits",
            "InnermostPixelLayerHits",
            "NextToInnermostPixelLayerHits",
            "InnermostPixelLayerSharedHits",
            "InnermostPixelLayerSplitHits",
            "PixelSharedHits",
            "PixelSplitHits",
            "SCTSharedHits",
        )
    ),
)
"""All track inputs known; impact parameters in mm, angles in rad."""

JET_INPUTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "log_pt_gev": lambda pt_gev, eta, xp: xp.log(pt_gev),
    "abs_eta": lambda pt_gev, eta, xp: xp.abs(eta),
}
"""All jet inputs known, as functions of (pt_gev, eta, module of these arrays)."""

_BY_NAME = {track_input.name: track_input for track_input in TRACK_INPUTS}


@dataclass(frozen=True)
class TaggerInputs:
    """The inputs of one model, in column order."""

    track: tuple[str, ...]
    jet: tuple[str, ...] = tuple(JET_INPUTS)

    @property
    def track_fields(self) -> tuple[str, ...]:
        """The fields that a file must have."""
        return tuple(dict.fromkeys(name for i in self.track for name in _BY_NAME[i].fields))


def common_inputs(samples: Sequence[Jets]) -> TaggerInputs:
    """All of :data:`TRACK_INPUTS` that every sample can provide.

    Raises
    ------
    DataError
        If there is none, or no sample.
    """
    shared = set.intersection(*(set(jets.track_fields) for jets in samples)) if samples else set()
    names = tuple(i.name for i in TRACK_INPUTS if set(i.fields) <= shared)
    if not names:
        raise DataError(
            "the training samples have no track field in common that the tagger knows",
            where=", ".join(jets.dataset for jets in samples) or "no sample at all",
            expected="some of " + ", ".join(sorted({f for i in TRACK_INPUTS for f in i.fields})),
            fix="read the files with tracks, or map the field names in the data card",
        )
    return TaggerInputs(names)


def known_inputs(track: Sequence[str], jet: Sequence[str]) -> TaggerInputs:
    """The inputs with these names; ValueError if one is not known."""
    unknown = [name for name in track if name not in _BY_NAME] + [
        name for name in jet if name not in JET_INPUTS
    ]
    if unknown:
        raise ValueError(f"unknown inputs {unknown}")
    return TaggerInputs(tuple(track), tuple(jet))


@dataclass(frozen=True)
class Features:
    """Inputs before normalisation: ``track`` (T, F) and ``jet`` (N, J), float32."""

    track: Floats
    jet: Floats


def compute_features(jets: Jets, inputs: TaggerInputs) -> Features:
    """The inputs of every track and every jet.

    Raises
    ------
    DataError
        If a field is absent (nearest names are given), if a value is NaN or
        infinite, or if an uncertainty is negative; bad values are counted by field.
    """
    _refuse_missing(jets, inputs)
    columns = {
        name: jets.tracks[:, jets.track_fields.index(name)].astype(np.float32, copy=False)
        for name in inputs.track_fields
    }
    _refuse_bad_values(jets, columns)
    jet_eta = np.repeat(jets.eta.astype(np.float32), jets.n_tracks)
    track = np.empty((len(jet_eta), len(inputs.track)), dtype=np.float32)
    for column, values in enumerate(track_columns(columns, jet_eta, inputs, np)):
        track[:, column] = values
    jet = np.stack(jet_columns(jets.pt_gev, jets.eta, inputs, np), axis=1).astype(np.float32)
    return Features(track, jet)


def track_columns(columns: dict[str, Any], jet_eta: Any, inputs: TaggerInputs, xp: Any) -> list[Any]:
    """Every track input from the file's fields, before normalisation, as arrays of the module ``xp``."""
    return [_BY_NAME[name].compute(columns, jet_eta, xp) for name in inputs.track]


def jet_columns(pt_gev: Any, eta: Any, inputs: TaggerInputs, xp: Any) -> list[Any]:
    """Every jet input, before normalisation, as arrays of the module ``xp``."""
    return [JET_INPUTS[name](pt_gev, eta, xp) for name in inputs.jet]


def _refuse_missing(jets: Jets, inputs: TaggerInputs) -> None:
    missing = [name for name in inputs.track_fields if name not in jets.track_fields]
    if not missing:
        return
    described = []
    for name in missing:
        near = difflib.get_close_matches(name, jets.track_fields, n=3, cutoff=0.5)
        described.append(f"{name} (nearest: {', '.join(near)})" if near else name)
    raise DataError(
        f"the tagger was trained with track fields that are absent here: {'; '.join(described)}",
        where=jets.dataset,
        expected=", ".join(inputs.track_fields),
        fix="provide the fields, or train a tagger on samples that lack them",
    )


def _refuse_bad_values(jets: Jets, columns: dict[str, Floats]) -> None:
    bad = {
        name: count
        for name, values in (*columns.items(), ("pt", jets.pt_gev), ("eta", jets.eta))
        if (count := int(np.count_nonzero(~np.isfinite(values))))
    }
    if bad:
        counts = ", ".join(f"{name}: {count}" for name, count in bad.items())
        raise DataError(
            f"NaN or infinite inputs ({counts})",
            where=jets.dataset,
            expected="finite numbers: the tagger never replaces missing values",
            fix="find out where they come from, or drop these jets with a selection in the data card",
        )
    for name, values in (*columns.items(), ("pt", jets.pt_gev)):
        count = int(np.count_nonzero(values < 0)) if name.endswith("Uncertainty") else 0
        count = int(np.count_nonzero(values <= 0)) if name == "pt" else count
        if count:
            raise DataError(
                f"{count} value(s) of '{name}' are negative", where=jets.dataset, expected="positive numbers"
            )


@dataclass(frozen=True)
class Normalisation:
    """x -> (x - mean) / width of every track input (F,) and jet input (J,), float32."""

    track_mean: Floats
    track_width: Floats
    jet_mean: Floats
    jet_width: Floats

    @classmethod
    def measure(cls, features: Sequence[Features]) -> Normalisation:
        """Mean and standard deviation over all tracks and all jets; constant inputs get width 1."""
        track = _mean_and_width([part.track for part in features])
        jet = _mean_and_width([part.jet for part in features])
        return cls(*track, *jet)

    def apply(self, features: Features) -> Features:
        """The normalised inputs."""
        return Features(
            (features.track - self.track_mean) / self.track_width,
            (features.jet - self.jet_mean) / self.jet_width,
        )


def _mean_and_width(parts: Sequence[Floats]) -> tuple[Floats, Floats]:
    count = sum(len(part) for part in parts)
    columns = parts[0].shape[1]
    if count == 0:
        return np.zeros(columns, np.float32), np.ones(columns, np.float32)
    mean = sum((part.sum(axis=0, dtype=np.float64) for part in parts), np.zeros(columns)) / count
    squares = (((part - mean) ** 2).sum(axis=0, dtype=np.float64) for part in parts)
    width = np.sqrt(sum(squares, np.zeros(columns)) / count)
    # A constant input has a width of rounding errors only; dividing by those would amplify them.
    width = np.where(width > 1e-6 * np.maximum(np.abs(mean), 1.0), width, 1.0)
    return mean.astype(np.float32), width.astype(np.float32)
