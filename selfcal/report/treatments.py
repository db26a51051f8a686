"""Scale factors whose detector is guessed, inferred and profiled, side by side."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from selfcal.report.inputs import DETECTOR_TREATMENTS, Content, ScaleFactorRow
from selfcal.report.style import interval, percent
from selfcal.report.tables import Cell, Table, number

NAMES = ("guessed", "inferred", "profiled")


class Part(Content):
    value: float
    detector: float
    total: float


class TreatedRow(ScaleFactorRow):
    value: float | None = None
    guessed: Part
    inferred: Part | None = None
    profiled: Part

    @model_validator(mode="before")
    @classmethod
    def _of_guessed(cls, content: Any) -> Any:
        guessed = content.get("guessed", {}) if isinstance(content, dict) else {}
        return (
            {**content, "value": guessed.get("value"), "total": guessed.get("total")} if guessed else content
        )


class DetectorTreatments(Content):
    treatments: list[str]
    rows: list[TreatedRow]
    summary: dict[str, Any] = {}
    toys: dict[str, Any] = {}
    against_truth: dict[str, Any] = {}


def treatments_table(found: DetectorTreatments) -> Table:
    """Value, detector part and total of every scale factor under each treatment."""
    names = [name for name in NAMES if name in found.treatments]
    heads = [f"{name}: {what}" for name in names for what in ("value", "detector", "total")]
    rows = []
    for row in found.rows:
        where = (
            Cell(f"bin {row.bin}", row.bin)
            if row.working_point is None
            else Cell(percent(row.working_point), row.working_point)
        )
        cells = [
            Cell(row.flavour),
            where,
            Cell(interval(row.pt_gev), row.pt_gev[0]),
            Cell(interval(row.abs_eta), row.abs_eta[0]),
        ]
        for name in names:
            part: Part = getattr(row, name)
            cells += [number(part.value), number(part.detector, 4, "strong"), number(part.total, 4)]
        rows.append(tuple(cells))
    caption = (
        "Uncertainty of every scale factor with a detector that is guessed (one prior width per parameter, "
        "held in the fit), inferred from tracks, and profiled in the likelihood with its prior width. The "
        "detector part is what the uncertainty would be less by, in quadrature, if the detector were known."
    )
    columns = ("flavour", "WP", "pT [GeV]", "|η|", *heads)
    return Table("table_treatments", columns, tuple(rows), caption, (DETECTOR_TREATMENTS,), folded=True)
