"""What alternative simulations say: factors between simulations, and scale factors beyond the last pT bin."""

from __future__ import annotations

from selfcal.report.inputs import GENERATORS, HIGH_PT, Content
from selfcal.report.style import interval, percent
from selfcal.report.tables import Cell, Table, number, significance_style


class GeneratorRow(Content):
    variation: str
    flavour: str
    working_point: float
    pt_gev: tuple[float, float]
    abs_eta: tuple[float, float]
    value: float
    stat: float


class Generators(Content):
    rows: list[GeneratorRow]


class HighPtRow(Content):
    flavour: str
    working_point: float
    pt_gev: tuple[float, float]
    abs_eta: tuple[float, float]
    value: float | None
    syst: dict[str, float] = {}
    total: float | None
    status: str


class HighPt(Content):
    blinded: bool = False
    rows: list[HighPtRow]


def generator_table(generators: Generators) -> Table:
    """Every factor with its distance from one in statistical standard deviations."""
    columns = (
        "simulation",
        "flavour",
        "WP",
        "pT [GeV]",
        "|η|",
        "other / nominal",
        "± stat",
        "(factor − 1)/σ",
    )
    rows = []
    for row in generators.rows:
        pull = (row.value - 1) / row.stat if row.stat > 0 else None
        rows.append(
            (
                Cell(row.variation),
                *_place(row),
                number(row.value, style="strong"),
                number(row.stat),
                number(pull, 1, significance_style(abs(pull)) if pull is not None else ""),
            )
        )
    caption = (
        "Factors between simulations: efficiency in another simulation over that in the nominal one, in the "
        "reference region of each flavour, without calibration. Who uses the other simulation divides the "
        "scale factor of data by its factor."
    )
    return Table("table_generators", columns, tuple(rows), caption, (GENERATORS,))


def high_pt_table(beyond: HighPt) -> Table:
    """Every scale factor beyond the last bin with every part of its uncertainty."""
    parts = list(dict.fromkeys(name for row in beyond.rows for name in row.syst))
    shown = (f"± {name.replace('_', ' ')}" for name in parts)
    columns = ("flavour", "WP", "pT [GeV]", "|η|", "status", "value", *shown, "± total")
    rows = tuple(
        (
            *_place(row),
            Cell(row.status, style=f"status-{row.status}"),
            number(row.value, style="strong"),
            *(number(row.syst.get(name)) for name in parts),
            number(row.total),
        )
        for row in beyond.rows
    )
    caption = (
        "Scale factors beyond the last measured pT bin: the value of that bin, whose uncertainty is 'last "
        "bin', and what each variation does to the dependence on pT. Nothing is measured there."
    )
    if beyond.blinded:
        caption = f"Blinded: expected values. {caption}"
    return Table("table_high_pt", columns, rows, caption, (HIGH_PT,))


def _place(row: GeneratorRow | HighPtRow) -> tuple[Cell, ...]:
    return (
        Cell(row.flavour),
        Cell(percent(row.working_point), row.working_point),
        Cell(interval(row.pt_gev), row.pt_gev[0]),
        Cell(interval(row.abs_eta), row.abs_eta[0]),
    )
