"""The scale factors as a flat table, one line per row, for spreadsheets and quick looks.

Rows without measurement have empty cells. What alternative simulations say, where there are any, stands in
``generators.csv`` and ``high_pt.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from selfcal.export.contract import Exported, Results
from selfcal.export.rows import ScaleFactorRows
from selfcal.export.simulations import SimulationRows
from selfcal.run.atomic import write_text

PLACE = ("pt_gev_low", "pt_gev_high", "abs_eta_low", "abs_eta_high")
HEAD = (
    "flavour",
    "kind",
    "working_point",
    "bin",
    *PLACE,
    "status",
    "blinded",
    "forced",
    "value",
    "total",
    "stat",
)


def export_table(results: Results) -> Exported:
    """Write ``scale_factors.csv``, and ``generators.csv`` and ``high_pt.csv`` where they have rows."""
    factors, simulations = results.factors, results.simulations
    texts = {"scale_factors.csv": scale_factor_table(factors)}
    if simulations.generators:
        texts["generators.csv"] = generator_table(simulations)
    if simulations.high_pt:
        texts["high_pt.csv"] = high_pt_table(simulations, blinded=factors.blinded, forced=factors.forced)
    for name in ("generators.csv", "high_pt.csv"):
        if name not in texts:
            (results.folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(results.folder / name, text)
    return Exported("csv", tuple(results.folder / name for name in texts))


def scale_factor_table(factors: ScaleFactorRows) -> str:
    """CSV of all rows, one column per systematic group."""
    lines = []
    for row in factors.rows:
        place = [
            row["flavour"],
            row["kind"],
            row["working_point"],
            row["bin"],
            *row["pt_gev"],
            *row["abs_eta"],
        ]
        systematics = [row["syst"].get(group) for group in factors.groups]
        marks = [row["status"], factors.blinded, factors.forced]
        lines.append([*place, *marks, row["value"], row["total"], row["stat"], *systematics])
    return _csv((*HEAD, *factors.groups), lines)


def generator_table(simulations: SimulationRows) -> str:
    """CSV of the factors between simulations."""
    head = ("variation", "flavour", "working_point", *PLACE, "value", "stat")
    names = ("variation", "flavour", "working_point")
    return _csv(
        head,
        (
            [*(row[name] for name in names), *row["pt_gev"], *row["abs_eta"], row["value"], row["stat"]]
            for row in simulations.generators
        ),
    )


def high_pt_table(simulations: SimulationRows, *, blinded: bool, forced: bool) -> str:
    """CSV of the scale factors beyond the last pT bin, one column per part of the uncertainty."""
    head = ("flavour", "working_point", *PLACE, "status", "blinded", "forced", "value", "total")
    return _csv(
        (*head, *simulations.parts),
        (
            [
                *(row["flavour"], row["working_point"], *row["pt_gev"], *row["abs_eta"]),
                *(row["status"], blinded, forced, row["value"], row["total"]),
                *(row["syst"].get(part) for part in simulations.parts),
            ]
            for row in simulations.high_pt
        ),
    )


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return text.getvalue()
