"""The scale factors as a flat table, one line per row, for spreadsheets and quick looks.

Rows without measurement have empty cells.
"""

from __future__ import annotations

import csv
import io

from selfcal.export.contract import Exported, Results
from selfcal.export.rows import ScaleFactorRows
from selfcal.run.atomic import write_text

HEAD = (
    "flavour",
    "kind",
    "working_point",
    "bin",
    "pt_gev_low",
    "pt_gev_high",
    "abs_eta_low",
    "abs_eta_high",
    "status",
    "blinded",
    "forced",
    "value",
    "total",
    "stat",
)


def export_table(results: Results) -> Exported:
    """Write ``scale_factors.csv``."""
    path = results.folder / "scale_factors.csv"
    write_text(path, scale_factor_table(results.factors))
    return Exported("csv", (path,))


def scale_factor_table(factors: ScaleFactorRows) -> str:
    """CSV of all rows, one column per systematic group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *factors.groups])
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
        cells = [*place, *marks, row["value"], row["total"], row["stat"], *systematics]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
