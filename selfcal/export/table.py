"""The scale factors as a flat table, one line per row, for spreadsheets and quick looks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

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
    "value",
    "total",
    "stat",
)


def scale_factor_table(content: Mapping[str, Any]) -> str:
    """CSV of ``scale_factors.json``, one column per systematic group; unmeasured rows have empty cells."""
    groups = sorted({group for row in content["rows"] for group in row["syst"]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEAD, *groups])
    for row in content["rows"]:
        place = [
            row["flavour"],
            row["kind"],
            row["working_point"],
            row["bin"],
            *row["pt_gev"],
            *row["abs_eta"],
        ]
        numbers = [row["value"], row["total"], row["stat"], *(row["syst"].get(group) for group in groups)]
        writer.writerow(["" if cell is None else cell for cell in [*place, row["status"], *numbers]])
    return text.getvalue()
