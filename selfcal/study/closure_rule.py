"""The rule by which closure on held-out regions passes or fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfcal.config.closure import ClosureConfig


def judged(rows: Sequence[dict[str, Any]], config: ClosureConfig) -> dict[str, Any]:
    """The held-out rows of ``closure.json`` at the rule's working points, and whether they pass.

    A row passes if |ratio - 1| <= tolerance of its flavour, or <= ``sigma`` times its statistical error in
    quadrature with the map's uncertainty, and if the latter is not larger than ``largest_uncertainty``:
    a calibration that quotes enough to cover anything has not closed.
    """
    judgements = []
    for row in rows:
        limits = config.flavours.get(row["flavour"])
        if limits is None or not row["held_out"] or row["working_point"] not in config.working_points:
            continue
        quoted = row["map_uncertainty"]
        deviation = abs(row["ratio_calibrated"] - 1.0)
        total = None if quoted is None else float(np.hypot(row["error"], quoted))
        near = deviation <= limits.tolerance or (total is not None and deviation <= config.sigma * total)
        small = quoted is not None and quoted <= limits.largest_uncertainty
        judgements.append(
            {
                **{name: row[name] for name in ("region", "flavour", "working_point", "ratio_calibrated")},
                "deviation_in_sigma": None if not total else deviation / total,
                "closes": bool(near),
                "uncertainty_small_enough": bool(small),
                "passed": bool(near and small),
            }
        )
    passed = all(judgement["passed"] for judgement in judgements) if judgements else None
    return {"passed": passed, "rows": judgements}
