"""The page of a study: what was expected, what was found, every point with its numbers.

Made from ``summary.json`` of the study's directory alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfcal.errors import DataError
from selfcal.report.figures.study import study_figures
from selfcal.report.html import Headline, PageFigure, Section, Tile, render
from selfcal.report.inputs import RunFiles
from selfcal.report.stage import save_figure
from selfcal.report.study_inputs import SUMMARY, Numbers, StudyRow, StudySummary, numbers_of
from selfcal.report.style import report_style
from selfcal.report.tables import NOTHING, Cell, Table, number
from selfcal.report.traces import files_section
from selfcal.run.atomic import write_text

VERDICT = {True: "as expected", False: "not as expected", None: "undecided"}
STYLE_OF_VERDICT = {True: "good", False: "bad", None: ""}
LISTED_NUMBERS = 8
"""A cell with more numbers shows their range."""


def build_study_report(folder: Path) -> list[Path]:
    """Write ``report.html`` and ``figures/`` (PNG, PDF) of the study in ``folder``.

    Figures have the style of its runs, or are neutral where those differ.

    Returns
    -------
    list of Path
        The figures and, last, ``report.html``.

    Raises
    ------
    DataError
        If ``summary.json`` is missing or not in its format.
    """
    files = RunFiles(folder)
    if not files.has(SUMMARY):
        raise DataError(
            "no study to report",
            where=str(folder / SUMMARY),
            expected="the directory of a study that has begun",
            fix="run 'selfcal study run' first",
        )
    summary = files.read(SUMMARY, StudySummary)
    written: list[Path] = []
    runs = [RunFiles(folder / row.run) for row in summary.rows if row.error is None]
    styles = {run.style() for run in runs}
    with report_style(
        styles.pop() if len(styles) == 1 else "neutral",
        simulated=not any(run.shows_data() for run in runs),
    ):
        figures = [save_figure(figure, folder, written) for figure in study_figures(summary)]
    sections = [
        _outcome_section(summary),
        _points_section(summary, figures),
        *([_faking_section(summary)] if summary.faking else []),
    ]
    top = _headline(summary)
    sections.append(files_section(top, sections, {"": folder}))
    write_text(folder / "report.html", render(top, sections))
    return [*written, folder / "report.html"]


def _headline(summary: StudySummary) -> Headline:
    passed = sum(check.passed is True for check in summary.checks)
    tiles = [
        Tile(
            "Outcome",
            VERDICT[summary.as_expected] if summary.checks else "no checks",
            f"{passed} of {len(summary.checks)} checks passed",
            SUMMARY,
            STYLE_OF_VERDICT[summary.as_expected],
        ),
        Tile(
            "Points",
            f"{summary.done - summary.failed} of {summary.points}",
            f"finished; {summary.failed} failed",
            SUMMARY,
            "bad" if summary.failed else "good" if summary.done == summary.points else "",
        ),
    ]
    failed = [row.run for row in summary.rows if row.error is not None]
    points = "1 point" if len(failed) == 1 else f"{len(failed)} points"
    warnings = [f"{points} failed: {', '.join(failed)}."] if failed else []
    if summary.done < summary.points:
        left = summary.points - summary.done
        warnings.append(f"{left} points are not done yet: 'selfcal study resume {summary.study}'.")
    return Headline(f"Study {summary.study}", summary.description, tuple(tiles), tuple(warnings))


def _outcome_section(summary: StudySummary) -> Section:
    content = (_check_table(summary),) if summary.checks else ()
    omitted = () if summary.checks else ("The study has no checks: its numbers are to be read.",)
    return Section("outcome", "Expected and found", summary.expected.strip(), content, omitted)


def _check_table(summary: StudySummary) -> Table:
    rows = tuple(
        (
            Cell(check.rule, style="wide"),
            *_numbers_cells(check.found),
            Cell(VERDICT[check.passed], style="sigma3" if check.passed is False else ""),
            Cell(check.because or check.why or NOTHING, style="wide"),
        )
        for check in summary.checks
    )
    caption = "Checks: the expected outcome as rules, and the numbers that were held against them."
    columns = ("rule", "smallest found", "largest found", "verdict", "because")
    return Table("table_checks", columns, rows, caption, (SUMMARY,))


def _numbers_cells(found: list[float]) -> tuple[Cell, Cell]:
    if not found:
        return number(None), number(None)
    low, high = min(found), max(found)
    return Cell(f"{low:.4g}", low), Cell(f"{high:.4g}", high)


def _points_section(summary: StudySummary, figures: list[PageFigure]) -> Section:
    omitted = () if summary.rows else ("No point is done yet.",)
    content: tuple[PageFigure | Table, ...] = ()
    if summary.rows:
        content = (*figures, _point_table(summary), _column_table(summary))
    introduction = "One line per point; 'run' is the folder of its run beside this page."
    return Section("points", "Points", introduction, content, omitted)


def _point_table(summary: StudySummary) -> Table:
    axes = list(dict.fromkeys(key for row in summary.rows for key in row.point))
    names = summary.shown_columns()
    with_error = {name for name in names if f"{name}_error" in summary.column_names()}
    columns = ["run", *axes]
    for name in names:
        columns += [name, "±"] if name in with_error else [name]
    rows = []
    for row in summary.rows:
        cells = [Cell(row.run), *(_value_cell(row.point.get(axis)) for axis in axes)]
        if row.error is not None:
            cells.append(Cell(f"failed: {row.error.splitlines()[0]}", style="wide sigma3"))
            cells += [Cell(NOTHING)] * (len(columns) - len(cells))
        else:
            for name in names:
                cells += [_value_cell(value) for value in _with_error(row, name, name in with_error)]
        rows.append(tuple(cells))
    caption = "All points with their numbers; where a column is a list, its numbers or their range."
    return Table("table_points", tuple(columns), tuple(rows), caption, (SUMMARY,))


def _with_error(row: StudyRow, name: str, both: bool) -> list[Any]:
    values = row.values or {}
    return [values.get(name), values.get(f"{name}_error")] if both else [values.get(name)]


def _value_cell(value: Any) -> Cell:
    if value is None:
        return Cell(NOTHING)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(f"{value:.5g}", value)
    if isinstance(value, list):
        found: Numbers = numbers_of(value)
        if not found:
            return Cell(NOTHING)
        if len(found) <= LISTED_NUMBERS:
            return Cell(", ".join(f"{one:.4g}" for one in found), found[0])
        return Cell(f"{min(found):.4g} … {max(found):.4g} ({len(found)})", min(found))
    return Cell(str(value))


def _column_table(summary: StudySummary) -> Table:
    rows = tuple((Cell(name), Cell(path)) for name, path in summary.columns.items())
    caption = (
        "Where the numbers are from: what stands before the first dot is a file in the folder 'results' of "
        "every run, the rest the keys in it."
    )
    return Table("table_columns", ("column", "file and keys"), rows, caption, (SUMMARY,), folded=True)


def _faking_section(summary: StudySummary) -> Section:
    rows = tuple(
        (
            Cell(entry.case),
            number(entry.seed, 0),
            number(entry.size, 2, "strong"),
            number(entry.size_error, 2),
            number(entry.chi2, 1),
            number(entry.chi2_unexplained, 1),
            number(entry.ndf, 0),
            Cell(NOTHING) if entry.p_value is None else Cell(f"{entry.p_value:.2g}", entry.p_value),
            Cell(entry.error or {True: "could fake it", False: "cannot", None: NOTHING}[entry.fakes]),
        )
        for entry in summary.faking
    )
    columns = (
        "hidden systematic",
        "seed",
        "needed size",
        "±",
        "χ² left",
        "χ² of the shift",
        "ndf",
        "p-value",
        "verdict",
    )
    caption = "Which single hidden systematic, of what size, would be needed to fake the measured shift."
    table = Table("table_faking", columns, rows, caption, (SUMMARY,))
    return Section("faking", "Hidden systematics", content=(table,))
