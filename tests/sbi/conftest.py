"""Jets whose tracks obey known laws."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.data.jets import ORIGINS, Jets

FIELDS = (
    "d0",
    "z0SinTheta",
    "deta",
    "dphi",
    "qOverP",
    "lifetimeSignedD0Significance",
    "lifetimeSignedZ0SinThetaSignificance",
    "numberOfPixelHits",
    "numberOfInnermostPixelLayerHits",
)
INNERMOST_EFFICIENCY = 0.92
SIGMA_MM = {"d0": 0.02, "z0SinTheta": 0.06}
WITHOUT_INNERMOST = 1.6


def toy_jets(jets: int, seed: int, dataset: str = "toy", flavours: tuple[int, ...] = (0, 1, 2, 3)) -> Jets:
    """Tracks with Gaussian impact parameters of width sigma; b and c hadrons displace some of theirs.

    70 % primary, 12 % pile-up (z0 even within 3 mm), 4 % fakes (both even), the rest from b or c in
    such jets, otherwise primary.
    """
    generator = np.random.default_rng(seed)
    flavour = generator.choice(flavours, jets).astype(np.int8)
    counts = generator.poisson(6.0, jets)
    total = int(counts.sum())
    of_jet = np.repeat(flavour, counts)
    draw = generator.uniform(size=total)
    origin = np.full(total, ORIGINS.index("primary"), dtype=np.int8)
    origin[draw < 0.12] = ORIGINS.index("pileup")
    origin[(draw >= 0.12) & (draw < 0.16)] = ORIGINS.index("fake")
    heavy = (draw > 0.86) & (of_jet < 2)
    origin[heavy] = np.where(of_jet[heavy] == 0, ORIGINS.index("from_b"), ORIGINS.index("from_c"))
    innermost = generator.uniform(size=total) < INNERMOST_EFFICIENCY
    pt_gev = generator.exponential(4.0, total) + 0.6
    angles = {name: generator.normal(0.0, 0.1, total) for name in ("deta", "dphi")}
    columns: dict[str, np.ndarray] = {
        **angles,
        "numberOfPixelHits": 3.0 + innermost,
        "numberOfInnermostPixelLayerHits": innermost.astype(float),
    }
    eta = generator.uniform(-2.4, 2.4, jets)
    columns["qOverP"] = 1e-3 / pt_gev / np.cosh(np.repeat(eta, counts) + columns["deta"])
    for name, significance, angle in (
        ("d0", "lifetimeSignedD0Significance", "dphi"),
        ("z0SinTheta", "lifetimeSignedZ0SinThetaSignificance", "deta"),
    ):
        sigma = SIGMA_MM[name] * (1 + 2 / pt_gev) * np.where(innermost, 1.0, WITHOUT_INNERMOST)
        direction = -np.sign(columns[angle])
        value = generator.normal(0.0, sigma)
        value[heavy] += (direction * generator.exponential(0.3, total))[heavy]
        flat = generator.uniform(-3.0, 3.0, total)
        spread = origin == ORIGINS.index("fake")
        if name == "z0SinTheta":
            spread |= origin == ORIGINS.index("pileup")
        value = np.where(spread, flat, value)
        columns[name], columns[significance] = value, direction * value / sigma
    return Jets(
        dataset=dataset,
        pt_gev=generator.uniform(20, 200, jets).astype(np.float32),
        eta=eta.astype(np.float32),
        flavour=flavour,
        weight=np.ones(jets),
        run=np.zeros(jets, dtype=np.int64),
        event=np.arange(jets) // 2,
        jet_index=(np.arange(jets) % 2).astype(np.int32),
        track_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tracks=np.stack([columns[name] for name in FIELDS], axis=1).astype(np.float32),
        track_origin=origin,
        track_vertex=np.zeros(total, dtype=np.int16),
        track_fields=FIELDS,
    )


@pytest.fixture(scope="session")
def make_toy_jets():
    return toy_jets
