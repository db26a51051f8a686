"""What the measures of all candidates say together: one table, and whether any beats the map in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHOWN_WORKING_POINT = 0.77
"""The table shows the working point nearest to this one."""

CLEARLY = 2.0
"""Standard deviations by which a family must be nearer to one in the control regions to be called better."""


def summarise(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per candidate: its numbers in every flavour's reference region and in held-out regions.

    ``against_in_use`` sums mean |ratio - 1| of the map in use minus that of the candidate over flavours;
    its error is that of the paired bootstraps and of both maps' replicas. Only control regions
    decide ``clearly_better``: choosing by a held-out region would make it one more control region.
    """
    null = {(row["region"], row["flavour"]): row for row in content["null"]}
    reference = content["reference_regions"]
    used = next(one for one in content["candidates"] if one["in_use"])
    entries = []
    for one in content["candidates"]:
        places = [
            _place(row, null[row["region"], row["flavour"]])
            for row in one["rows"]
            if row["points"] and (row["held_out"] or reference.get(row["flavour"]) == row["region"])
        ]
        against = {
            kind: _difference(used["rows"], one["rows"], reference, held_out=held_out)
            for kind, held_out in (("control", False), ("held_out", True))
        }
        control = against["control"]
        entries.append(
            {
                "name": one["name"],
                "kind": one["kind"],
                "in_use": one["in_use"],
                "places": places,
                "displacement": {
                    row["flavour"]: row["root_mean_square_displacement"] for row in one["displacement"] or ()
                },
                "excess_cost": {row["flavour"]: row["excess_cost"] for row in one["displacement"] or ()},
                "against_in_use": None if one["in_use"] else against,
                "clearly_better": bool(
                    not one["in_use"]
                    and one["kind"] == "family"
                    and control is not None
                    and control["difference"] > CLEARLY * control["error"]
                ),
            }
        )
    return entries


def _place(row: Mapping[str, Any], null: Mapping[str, Any]) -> dict[str, Any]:
    shown = min(row["points"], key=lambda one: abs(one["working_point"] - SHOWN_WORKING_POINT), default=None)
    kept = min(
        row["rejection"], key=lambda one: abs(one["working_point"] - SHOWN_WORKING_POINT), default=None
    )
    return {
        "region": row["region"],
        "held_out": row["held_out"],
        "flavour": row["flavour"],
        "shown": shown,
        "deviation": row["deviation"],
        "deviation_error": row["deviation_error"],
        "auc": row["auc"],
        "auc_spread": row["auc_spread"],
        "auc_null": null["auc"],
        "auc_null_spread": null["auc_spread"],
        "chi2_per_ndf": row["chi2"] / row["ndf"] if row["ndf"] else None,
        "w1": float(np.mean(row["w1"])),
        "w1_error": float(np.hypot.reduce(row["w1_error"]) / len(row["w1_error"])),
        "w1_null": float(np.mean(null["w1"])),
        "rejection": kept,
    }


def _difference(
    used: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    reference: Mapping[str, str],
    *,
    held_out: bool,
) -> dict[str, float] | None:
    """Σ_f (mean |ratio - 1| of ``used`` - that of ``other``) and its error; None without common rows."""
    found = {(row["region"], row["flavour"]): row for row in used}
    total, variance, count = 0.0, 0.0, 0
    for row in other:
        first = found.get((row["region"], row["flavour"]))
        if first is None or row["held_out"] != held_out or not (first["points"] and row["points"]):
            continue
        if not held_out and reference.get(row["flavour"]) != row["region"]:
            continue
        total += first["deviation"] - row["deviation"]
        pairs = np.subtract(first["deviation_bootstraps"], row["deviation_bootstraps"])
        variance += float(pairs.var(ddof=1))
        variance += sum((one["deviation_map_uncertainty"] or 0.0) ** 2 for one in (first, row))
        count += 1
    return {"difference": total, "error": float(np.sqrt(variance))} if count else None


def render_evaluation(content: Mapping[str, Any]) -> str:
    """Tables for people: closure of the efficiencies, shapes, and what they say of the map in use."""
    entries = content["summary"]
    every = ((p["flavour"], p["region"], p["held_out"]) for entry in entries for p in entry["places"])
    places = list(dict.fromkeys(every))
    width = max(len(entry["name"]) for entry in entries) + 3
    blocks = []
    for flavour, region, held_out in sorted(places, key=lambda place: place[2]):
        where = "held out" if held_out else "control"
        lines = [f"{flavour} jets, {region} ({where})", _header(width)]
        for entry in entries:
            place = next(
                (p for p in entry["places"] if (p["flavour"], p["region"]) == (flavour, region)), None
            )
            if place is not None:
                lines.append(_line(entry, place, width))
        blocks.append("\n".join(lines))
    blocks.append(_verdict(entries, width))
    return "\n\n".join(blocks)


COLUMNS = (
    "ε data/calibrated",
    "mean |ratio-1|",
    "AUC - null",
    "χ²/ndf",
    "W1 (null)",
    "moved",
    "rejection kept",
)


def _header(width: int) -> str:
    return "".ljust(width) + "".join(name.rjust(20) for name in COLUMNS)


def _line(entry: Mapping[str, Any], place: Mapping[str, Any], width: int) -> str:
    shown, kept, moved = place["shown"], place["rejection"], entry["displacement"].get(place["flavour"])
    cells = (
        f"{shown['ratio']:.3f} ± {_total(shown):.3f}",
        f"{place['deviation']:.3f} ± {place['deviation_error'] or 0.0:.3f}",
        f"{place['auc'] - place['auc_null']:+.4f} ± {place['auc_null_spread']:.4f}",
        "–" if place["chi2_per_ndf"] is None else f"{place['chi2_per_ndf']:.2f}",
        f"{place['w1']:.3f} ({place['w1_null']:.3f})",
        "–" if moved is None else f"{moved:.3f}",
        "–" if kept is None else f"{kept['kept']:.2f} ({kept['kept_in_data']:.2f})",
    )
    star = " *" if entry["in_use"] else ""
    return f"{entry['name']}{star}".ljust(width) + "".join(cell.rjust(20) for cell in cells)


def _total(point: Mapping[str, Any]) -> float:
    return float(np.hypot(point["error"] or 0.0, point["map_uncertainty"] or 0.0))


def _verdict(entries: Sequence[Mapping[str, Any]], width: int) -> str:
    lines = [
        f"* in use. Ratios and rejections at the working point nearest to {SHOWN_WORKING_POINT:.0%}.",
        "In brackets: between two halves of the simulation (W1), in data (rejection).",
        "Nearer to one than the map in use, Σ over flavours of mean |ratio-1|:",
    ]
    for entry in entries:
        against = entry["against_in_use"]
        if against is None:
            continue
        cells = [
            f"{kind.replace('_', ' ')} {found['difference']:+.3f} ± {found['error']:.3f}"
            for kind, found in against.items()
            if found is not None
        ]
        better = "  clearly better in the control regions" if entry["clearly_better"] else ""
        lines.append(f"  {entry['name']}".ljust(width + 2) + "   ".join(cells) + better)
    return "\n".join(lines)
