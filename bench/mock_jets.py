"""A file of synthetic jets that salt reads: the 19 track inputs of GN2, origin and vertex labels."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import yaml

MAX_TRACKS = 40
REAL_COLUMNS = (
    "d0",
    "z0SinTheta",
    "dphi",
    "deta",
    "qOverP",
    "IP3D_signed_d0_significance",
    "IP3D_signed_z0_significance",
    "phiUncertainty",
    "thetaUncertainty",
    "qOverPUncertainty",
)
COUNT_COLUMNS = (
    "numberOfPixelHits",
    "numberOfSCTHits",
    "numberOfInnermostPixelLayerHits",
    "numberOfNextToInnermostPixelLayerHits",
    "numberOfInnermostPixelLayerSharedHits",
    "numberOfInnermostPixelLayerSplitHits",
    "numberOfPixelSharedHits",
    "numberOfPixelSplitHits",
    "numberOfSCTSharedHits",
)
TRACK_COLUMNS = REAL_COLUMNS + COUNT_COLUMNS
JET_COLUMNS = ("pt_btagJes", "eta_btagJes")
ORIGIN, VERTEX, FLAVOUR = "ftagTruthOriginLabel", "ftagTruthVertexIndex", "flavour_label"
DISPLACED_SHARE = np.array([0.35, 0.2, 0.03, 0.1])
"""Share of displaced tracks in b, c, light and τ jets."""


def write_mock_jets(path: Path, n_jets: int, mean_tracks: float, seed: int) -> Path:
    """Write ``path`` and, beside it, ``norm_dict.yaml`` and ``class_dict.yaml`` in salt's format.

    Numbers of tracks follow a gamma law of shape 4, cut to 1 to 40; displaced tracks have larger
    impact parameters, so that there is something to learn.
    """
    generator = np.random.default_rng(seed)
    shape = (n_jets, MAX_TRACKS)
    jets = np.zeros(n_jets, [*((name, "f4") for name in JET_COLUMNS), (FLAVOUR, "i4")])
    tracks = np.zeros(
        shape,
        [
            *((name, "f4") for name in REAL_COLUMNS),
            *((name, "u1") for name in COUNT_COLUMNS),
            (ORIGIN, "i4"),
            (VERTEX, "i4"),
            ("valid", "?"),
        ],
    )
    jets[FLAVOUR] = generator.integers(0, 4, n_jets)
    jets["pt_btagJes"] = 20e3 + generator.exponential(60e3, n_jets)
    jets["eta_btagJes"] = generator.uniform(-2.5, 2.5, n_jets)
    counts = np.clip(np.rint(generator.gamma(4.0, mean_tracks / 4.0, n_jets)), 1, MAX_TRACKS)
    valid = np.arange(MAX_TRACKS) < counts[:, None]
    displaced = generator.random(shape) < DISPLACED_SHARE[jets[FLAVOUR]][:, None]
    for name in REAL_COLUMNS:
        tracks[name] = generator.normal(size=shape)
    for name in COUNT_COLUMNS:
        tracks[name] = generator.integers(0, 4, shape)
    tracks["IP3D_signed_d0_significance"] += 4 * displaced * generator.exponential(1, shape)
    heavy = np.array([3, 5, 6, 7])[jets[FLAVOUR]][:, None]
    prompt = np.where(generator.random(shape) < 0.1, 0, 2)
    tracks[ORIGIN] = np.where(valid, np.where(displaced, heavy, prompt), -1)
    tracks[VERTEX] = np.where(valid, displaced, -2)
    tracks["valid"] = valid
    for name in REAL_COLUMNS:
        tracks[name][~valid] = np.nan
    with h5py.File(path, "w") as handle:
        handle.attrs["unique_jets"], handle.attrs["config"] = n_jets, "{}"
        handle.create_dataset("jets", data=jets).attrs[FLAVOUR] = ["bjets", "cjets", "ujets", "taujets"]
        handle.create_dataset("tracks", data=tracks)
    norm = {
        "jets": {name: _mean_and_width(jets[name]) for name in JET_COLUMNS},
        "tracks": {name: _mean_and_width(tracks[name][valid]) for name in TRACK_COLUMNS},
    }
    path.with_name("norm_dict.yaml").write_text(yaml.safe_dump(norm))
    weights = {"jets": {FLAVOUR: [1.0] * 4}, "tracks": {ORIGIN: [1.0] * 8}}
    path.with_name("class_dict.yaml").write_text(yaml.safe_dump(weights))
    return path


def _mean_and_width(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std())}
