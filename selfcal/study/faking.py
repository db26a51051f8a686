"""The devil's advocate: which hidden systematic, of what size, would be needed to fake a measured shift.

After the question of arXiv 2303.15956, asked of scale factors. Pseudo-data with one hidden systematic of
known size each give its response s, the change of the scale factors per unit of size. Of a measured shift m
with covariance C it explains most at the size

    a = mᵀC⁻¹s / sᵀC⁻¹s,    σ_a = (sᵀC⁻¹s)^(-1/2),

and leaves χ² = (m − a s)ᵀ C⁻¹ (m − a s). It could fake the shift if χ² is as small as chance allows and a is
no larger than it plausibly is. The response is measured on finite samples: its error is not part of σ_a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.config.study import CASE, SEED, Case, FakingConfig
from selfcal.errors import DataError
from selfcal.run.atomic import read_json

Vector = NDArray[np.float64]

PLAUSIBLE = 3.0
"""Sizes beyond this many units (prior widths, say) are not plausible."""
P_VALUE_MIN = 0.05
"""Shifts explained worse than this are not faked."""
VARIANCE_MIN = 1e-9
"""Directions with less than this part of the largest variance carry no information."""
PASSING_MIN = 25
"""Rows with fewer expected passing jets are left out: their errors are not Gaussian."""


@dataclass(frozen=True)
class Needed:
    """What one hidden systematic would have to be: its size, and how much of the shift it leaves."""

    size: float
    size_error: float
    chi2: float
    chi2_unexplained: float
    ndf: int
    p_value: float

    @property
    def fakes(self) -> bool:
        """Whether it explains the shift, at a plausible size."""
        return self.p_value >= P_VALUE_MIN and abs(self.size) <= PLAUSIBLE


def needed_size(shift: Vector, response: Vector, covariance: NDArray[np.float64]) -> Needed:
    """The size at which ``response`` (S,) per unit explains most of ``shift`` (S,) with its covariance (S,
    S).

    Raises
    ------
    DataError
        If the response vanishes: no size explains anything.
    """
    variances, directions = np.linalg.eigh(covariance)
    free = variances > VARIANCE_MIN * variances.max()
    m, s = ((vector @ directions[:, free]) / np.sqrt(variances[free]) for vector in (shift, response))
    information = float(s @ s)
    if information == 0.0:
        raise DataError("the hidden systematic changes no scale factor")
    size = float(m @ s) / information
    rest = m - size * s
    chi2, ndf = float(rest @ rest), int(free.sum()) - 1
    return Needed(
        size, information**-0.5, chi2, float(m @ m), ndf, float(stats.chi2.sf(chi2, ndf)) if ndf > 0 else 1.0
    )


def hidden_systematics(
    config: FakingConfig, cases: Sequence[Case], rows: Sequence[Mapping[str, Any]], store: Path
) -> list[dict[str, Any]]:
    """For each case beside ``config.measured`` and ``config.nothing`` what it would need to fake the shift.

    One entry per seed and case, with ``error`` where a run has failed or has no common scale factors.
    """
    found = []
    for seed in dict.fromkeys(row["point"][SEED] for row in rows):
        runs = {row["point"][CASE]: row for row in rows if row["point"][SEED] == seed}
        for case in cases:
            if case.name in (config.measured, config.nothing):
                continue
            entry: dict[str, Any] = {"case": case.name, "seed": seed, "error": None}
            try:
                entry |= _of_case(config, case, runs, store)
            except DataError as error:
                entry["error"] = str(error)
            found.append(entry)
    return found


def _of_case(
    config: FakingConfig, case: Case, runs: Mapping[str, Mapping[str, Any]], store: Path
) -> dict[str, Any]:
    chosen = [runs.get(name) for name in (config.measured, config.nothing, case.name)]
    factors = []
    for row in chosen:
        if row is None or row["error"] is not None:
            raise DataError("a run that it needs has failed or is missing")
        factors.append(read_json(store / row["key"] / "results" / "scale_factors.json"))
    values, covariance = _common(factors)
    measured, nothing, hidden = values
    assert case.at is not None
    needed = needed_size(measured - nothing, (hidden - nothing) / case.at, covariance)
    return {**asdict(needed), "fakes": needed.fakes, "scale_factors": len(measured)}


def _common(factors: Sequence[Mapping[str, Any]]) -> tuple[list[Vector], NDArray[np.float64]]:
    """Working-point scale factors that all runs have measured, and their covariance in the first run."""
    tables = [
        {
            (row["flavour"], row["working_point"], *row["pt_gev"], *row["abs_eta"]): row["value"]
            for row in run["rows"]
            if row["kind"] == "working_point"
            and row["status"] == "measured"
            and (row.get("expected_passing") or 0.0) >= PASSING_MIN
        }
        for run in factors
    ]
    first = factors[0]
    place = {row: slot for slot, row in enumerate(first["covariance"]["rows"])}
    keys, slots = [], []
    for index, row in enumerate(first["rows"]):
        if row["kind"] != "working_point" or index not in place:
            continue
        key = (row["flavour"], row["working_point"], *row["pt_gev"], *row["abs_eta"])
        if all(key in table for table in tables):
            keys.append(key)
            slots.append(place[index])
    if len(keys) < 2:
        raise DataError("fewer than two scale factors were measured in all runs")
    matrix = np.array(first["covariance"]["matrix"], dtype=np.float64)
    return [np.array([table[key] for key in keys]) for table in tables], matrix[np.ix_(slots, slots)]
