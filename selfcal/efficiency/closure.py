"""Closure: as many jets pass as the efficiencies say, wherever one looks, and where the grid fails.

In a bin of pT, |η| or the distance ΔR to the nearest jet, with passing jets n = Σ_i w_i [i passes],

    χ² = Σ_bins (n − Σ_i w_i ε_i)² / (Σ_i w_i² ε_i (1 − ε_i) + σ²),

where σ is the uncertainty of the prediction: over bags for the network, over cells (each shared by its jets)
for the two-dimensional map. The events judged taught neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from selfcal.config.efficiency_map import EfficiencyMapConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.efficiency.event_jets import EventJets, nearest_delta_r
from selfcal.efficiency.grid import GridMap, passing
from selfcal.efficiency.prediction import LearntEfficiencies
from selfcal.efficiency.samples import EfficiencySamples

PASSING_MIN = 10.0
"""Bins with fewer expected passing or failing jets are not compared: their errors are not Gaussian."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """N jets with what is expected of them; ``bins`` per variable: bin of each jet, and its edges."""

    jets: EventJets
    passed: Floats
    by_bag: NDArray[np.float32]
    cell: NDArray[np.int64]
    bins: Mapping[str, tuple[NDArray[np.int64], tuple[float, ...]]]


def closure_content(
    samples: EfficiencySamples, learnt: LearntEfficiencies, grid_map: GridMap, config: EfficiencyMapConfig
) -> dict[str, Any]:
    """Rows per region, flavour, working point, variable and bin, and χ² of each variable."""
    rows: list[dict[str, Any]] = []
    for region, jets in samples.closure.items():
        if not len(jets):
            continue
        judged = judge(jets, learnt, grid_map, config)
        found = closure_rows(judged, learnt.working_points, grid_map)
        rows += [{"region": region, "held_out": samples.held_out[region], **row} for row in found]
    return {"rows": rows, "chi2": chi2_rows(rows)}


def judge(
    jets: EventJets, learnt: LearntEfficiencies, grid_map: GridMap, config: EfficiencyMapConfig
) -> Judged:
    """Predictions for jets, and the bins that they belong to."""
    delta_r_edges = (*config.delta_r_edges, np.inf)
    bins = {
        "pt_gev": (np.digitize(jets.pt_gev, config.pt_gev_edges[1:-1]), config.pt_gev_edges),
        "abs_eta": (np.digitize(np.abs(jets.eta), config.abs_eta_edges[1:-1]), config.abs_eta_edges),
        "delta_r": (np.digitize(nearest_delta_r(jets), delta_r_edges) - 1, delta_r_edges),
    }
    # A jet alone in its event is infinitely far from the next, which is the last bin.
    last = len(delta_r_edges) - 2
    bins["delta_r"] = (bins["delta_r"][0].clip(0, last), delta_r_edges)
    points = len(learnt.working_points)
    return Judged(jets, passing(jets, points), learnt.of_bags(jets), grid_map.grid.cell(jets), bins)


def closure_rows(judged: Judged, working_points: Sequence[float], grid_map: GridMap) -> list[dict[str, Any]]:
    """What passed, what network and grid expect, and the errors of these."""
    rows = []
    jets = judged.jets
    mean = judged.by_bag.mean(axis=0, dtype=np.float64)
    for flavour, name in enumerate(FLAVOURS):
        for variable, (places, edges) in judged.bins.items():
            for place in range(len(edges) - 1):
                own = np.flatnonzero((jets.flavour == flavour) & (places == place))
                if not len(own):
                    continue
                weight = jets.weight[own]
                per_cell = np.bincount(judged.cell[own], weight, len(grid_map.efficiency))
                for k, point in enumerate(working_points):
                    expected = mean[own, k]
                    sums = (judged.by_bag[:, own, k].astype(np.float64) * weight).sum(axis=1)
                    rows.append(
                        {
                            "flavour": name,
                            "working_point": point,
                            "variable": variable,
                            "low": float(edges[place]),
                            "high": float(edges[place + 1]) if np.isfinite(edges[place + 1]) else None,
                            "jets": float(weight.sum()),
                            "passing": float((weight * judged.passed[own, k]).sum()),
                            "network": float((weight * expected).sum()),
                            "network_uncertainty": float(sums.std(ddof=1)),
                            "network_error": _counting(weight, expected),
                            "grid": float(per_cell @ grid_map.efficiency[:, k]),
                            "grid_uncertainty": float(np.sqrt(per_cell**2 @ grid_map.variance[:, k])),
                            "grid_error": _counting(weight, grid_map.efficiency[judged.cell[own], k]),
                        }
                    )
    return rows


def _counting(weight: Floats, efficiency: Floats) -> float:
    """√(Σ w² ε (1 − ε))."""
    return float(np.sqrt((weight**2 * efficiency * (1 - efficiency)).sum()))


def compared(row: Mapping[str, Any]) -> bool:
    """Whether a row has enough jets that pass, and that fail."""
    return bool(min(row["network"], row["jets"] - row["network"]) >= PASSING_MIN)


def chi2_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """χ² of network and grid per region, flavour, working point and variable, over the bins compared."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if compared(row):
            key = tuple(row[name] for name in ("region", "held_out", "flavour", "working_point", "variable"))
            groups.setdefault(key, []).append(row)
    found = []
    for (region, held_out, flavour, point, variable), members in groups.items():
        entry: dict[str, Any] = {
            "region": region,
            "held_out": held_out,
            "flavour": flavour,
            "working_point": point,
            "variable": variable,
            "ndf": len(members),
        }
        for what in ("network", "grid"):
            chi2 = sum(_pull(row, what) ** 2 for row in members)
            entry[f"{what}_chi2"] = chi2
            entry[f"{what}_p_value"] = float(stats.chi2.sf(chi2, len(members)))
        found.append(entry)
    return found


def _pull(row: Mapping[str, Any], what: str) -> float:
    error = np.hypot(row[f"{what}_error"], row[f"{what}_uncertainty"])
    return float((row["passing"] - row[what]) / error)
