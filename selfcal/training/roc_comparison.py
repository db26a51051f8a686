"""What joint training costs: rejections before and after it, on jets that trained neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import LIGHT, B, C
from selfcal.data.jets import Jets
from selfcal.tagger.bundle import TaggerBundle
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.scoring import score_jets
from selfcal.tagger.working_points import roc_curve

POINTS = 100
EFFICIENCY_MIN = 0.4
"""Below it a rejection rests on a handful of jets."""


def compare_rejections(
    before: TaggerBundle, after: TaggerBundle, samples: Sequence[Jets], tagger: TaggerConfig
) -> dict[str, NDArray[np.float64]]:
    """``efficiency_b`` (P,) and ``<before|after>/<light|c>`` rejections (P,) of D_b on labelled jets.

    A rejection is at most the number of background jets: where none passes, that bound is given.
    """
    flavour = np.concatenate([jets.flavour for jets in samples])
    weight = np.concatenate([jets.weight for jets in samples])
    arrays: dict[str, NDArray[np.float64]] = {}
    for when, bundle in (("before", before), ("after", after)):
        log_probability = np.concatenate([score_jets(bundle, jets).log_probability for jets in samples])
        d_b = discriminant_b(log_probability, tagger.charm_fraction, tagger.tau_fraction)
        for name, index in (("light", LIGHT), ("c", C)):
            b, other = flavour == B, flavour == index
            if not b.any() or not other.any():
                continue
            curve = roc_curve(d_b[b], d_b[other], weight[b], weight[other], points=POINTS)
            wanted = np.arange(1, POINTS + 1) / POINTS
            kept = wanted >= EFFICIENCY_MIN
            arrays["efficiency_b"] = wanted[kept]
            arrays[f"{when}/{name}"] = 1.0 / np.maximum(curve.background[kept], 1.0 / other.sum())
    return arrays
