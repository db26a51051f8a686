"""Two runs side by side in one page: scale factors, closure, composition, and what was configured
differently."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import hypot, sqrt
from pathlib import Path
from typing import Any, TypeVar

import yaml

from selfcal.errors import ConfigError, DataError
from selfcal.report.figures.comparison import Pair, comparison_figures
from selfcal.report.figures.scale_factors import continuous_bin_labels
from selfcal.report.html import Headline, PageFigure, Section, Tile, render
from selfcal.report.inputs import (
    CLOSURE,
    COMPOSITION,
    CONFIGURATION,
    SCALE_FACTORS,
    Closure,
    Composition,
    Content,
    RunFiles,
    ScaleFactorRow,
    ScaleFactors,
)
from selfcal.report.stage import save_figure
from selfcal.report.style import interval, percent, plain_text, report_style
from selfcal.report.tables import NOTHING, Cell, Table, flatten, number, significance_style
from selfcal.report.traces import files_section
from selfcal.run.atomic import write_text

Model = TypeVar("Model", bound=Content)
Row = TypeVar("Row")
Key = tuple[Any, ...]

INDEPENDENT = (
    "In units of σ: the difference over √(σ_A² + σ_B²), as for independent runs. Runs on the same jets share "
    "their fluctuations; between them differences are smaller than that."
)


def compare_runs(first: Path, second: Path, folder: Path) -> list[Path]:
    """Write ``report.html`` and ``figures/`` (PNG, PDF) of the comparison of two runs into ``folder``.

    Scale factors are compared where both runs have the same flavour, working point or bin, pT and
    pseudorapidity; closure and composition where both have the file. Figures have the style of both runs, or
    are neutral where they differ.

    Returns
    -------
    list of Path
        The PNG and PDF files and, last, ``report.html``.

    Raises
    ------
    ConfigError
        If ``folder`` holds something that is no comparison.
    DataError
        If a run has no scale factors, or the two have none in common.
    """
    target = folder / "report.html"
    if folder.exists() and any(folder.iterdir()) and not target.exists():
        raise ConfigError("the directory holds something else", where=str(folder), fix="choose another --out")
    runs = (RunFiles(first), RunFiles(second))
    factors = tuple(_scale_factors(files) for files in runs)
    pairs = _pairs(factors[0].rows, factors[1].rows, _scale_factor_key)
    if not pairs:
        raise DataError(
            "the two runs have no scale factor in common",
            where=f"{first} and {second}",
            expected="the same flavours, working points, and bins of pT and |eta| at least in part",
        )
    names = _names(first, second)
    written: list[Path] = []
    styles = {files.style() for files in runs}
    with report_style(
        styles.pop() if len(styles) == 1 else "neutral",
        simulated=not any(files.shows_data() for files in runs),
    ):
        figures = [save_figure(figure, folder, written) for figure in comparison_figures(pairs, names)]
    sections = [
        Section(
            "scale_factors",
            "Scale factors",
            f"A is {first}, B is {second}. {INDEPENDENT}",
            (*figures, *_scale_factor_tables(pairs, factors[0].working_points)),
        ),
        _closure_section(runs),
        _composition_section(runs),
        _configuration_section(runs),
    ]
    top = _headline(pairs, factors, first, second)
    sections.append(files_section(top, sections, {"A/": first, "B/": second}))
    write_text(target, render(top, sections))
    return [*written, target]


def _scale_factors(files: RunFiles) -> ScaleFactors:
    if not files.has(SCALE_FACTORS):
        raise DataError(
            "no scale factors to compare",
            where=str(files.path / SCALE_FACTORS),
            expected="a run whose fit is done",
            fix="run 'selfcal fit' first",
        )
    return files.read(SCALE_FACTORS, ScaleFactors)


def _names(first: Path, second: Path) -> tuple[str, str]:
    return f"A: {plain_text(first.absolute().name)}", f"B: {plain_text(second.absolute().name)}"


def _scale_factor_key(row: ScaleFactorRow) -> Key:
    return row.flavour, row.kind, row.working_point, row.bin, row.pt_gev, row.abs_eta


def _pairs(first: Sequence[Row], second: Sequence[Row], key: Callable[[Row], Key]) -> list[tuple[Row, Row]]:
    """Rows of both runs with the same key, in the order of the first."""
    others = {key(row): row for row in second}
    return [(row, others[key(row)]) for row in first if key(row) in others]


def in_sigma(pair: Pair) -> float | None:
    """(B - A) / √(σ_A² + σ_B²) of one scale factor; None where a run has not measured it."""
    one, other = pair
    if one.value is None or other.value is None or one.total is None or other.total is None:
        return None
    sigma = hypot(one.total, other.total)
    return (other.value - one.value) / sigma if sigma > 0 else None


def _headline(pairs: Sequence[Pair], factors: Sequence[ScaleFactors], first: Path, second: Path) -> Headline:
    points = [pair for pair in pairs if pair[0].kind == "working_point"]
    distances = [distance for pair in points if (distance := in_sigma(pair)) is not None]
    both = sum(row.kind == "working_point" for run in factors for row in run.rows)
    sources = f"A/{SCALE_FACTORS}, B/{SCALE_FACTORS}"
    tiles = [
        Tile("Compared scale factors", str(len(distances)), "working-point rows in both runs", sources),
    ]
    if distances:
        largest = max(distances, key=abs)
        spread = sqrt(sum(value**2 for value in distances) / len(distances))
        tiles += [
            Tile("Largest difference", f"{largest:+.2f} σ", "B − A, as for independent runs", sources),
            Tile("Root mean square", f"{spread:.2f} σ", "one for independent runs that agree", sources),
        ]
    lost = both - 2 * len(points)
    warnings = [f"{lost} working-point rows are in one of the runs alone and not compared."] if lost else []
    warnings += [
        f"{name} is blinded: its values are those expected from simulation."
        for name, run in zip(("A", "B"), factors, strict=True)
        if run.blinded
    ]
    title = f"{first.absolute().name} and {second.absolute().name}"
    measured = f"Two runs side by side: A ({first}) and B ({second})."
    return Headline(title=title, measured=measured, tiles=tuple(tiles), warnings=tuple(warnings))


def _scale_factor_tables(pairs: Sequence[Pair], working_points: Sequence[float]) -> list[Table]:
    labels = continuous_bin_labels(working_points)
    tables = []
    for kind, title, folded in (
        ("working_point", "Scale factors at the working points", False),
        ("continuous", "Continuous scale factors", True),
    ):
        chosen = [pair for pair in pairs if pair[0].kind == kind]
        if not chosen:
            continue
        columns = (
            "flavour", "WP" if kind == "working_point" else "b eff. [%]", "pT [GeV]", "|η|", "A", "± A", "B",
            "± B", "B − A", "B / A", "(B − A) / σ", "σ_B / σ_A", "truth A", "truth B",
        )  # fmt: skip
        rows = tuple(_scale_factor_cells(pair, labels) for pair in chosen)
        sources = (f"A/{SCALE_FACTORS}", f"B/{SCALE_FACTORS}")
        tables.append(Table(f"table_{kind}", columns, rows, f"{title}. {INDEPENDENT}", sources, folded))
    return tables


def _scale_factor_cells(pair: Pair, labels: Sequence[str]) -> tuple[Cell, ...]:
    one, other = pair
    if one.working_point is not None:
        where = Cell(percent(one.working_point), one.working_point)
    else:
        place = one.bin or 0
        where = Cell(labels[place] if place < len(labels) else f"bin {place}", place)
    distance = in_sigma(pair)
    return (
        Cell(one.flavour),
        where,
        Cell(interval(one.pt_gev), one.pt_gev[0]),
        Cell(interval(one.abs_eta), one.abs_eta[0]),
        number(one.value),
        number(one.total),
        number(other.value),
        number(other.total),
        number(_difference(one.value, other.value)),
        number(_ratio(one.value, other.value)),
        number(distance, 2, significance_style(abs(distance)) if distance is not None else ""),
        number(_ratio(one.total, other.total), 2),
        number(one.truth.value if one.truth else None),
        number(other.truth.value if other.truth else None),
    )


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else other - one


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None or one == 0 else other / one


def _read_both(runs: Sequence[RunFiles], name: str, model: type[Model]) -> tuple[Model, Model] | str:
    """The same file of both runs, or why it cannot be compared."""
    for letter, files in zip("AB", runs, strict=True):
        if not files.has(name):
            return f"Left out: {letter} has no {name}."
    try:
        return runs[0].read(name, model), runs[1].read(name, model)
    except DataError as error:
        return f"Left out: {error.problem} ({error.where})."


def _closure_section(runs: Sequence[RunFiles]) -> Section:
    both = _read_both(runs, CLOSURE, Closure)
    if isinstance(both, str):
        return Section("closure", "Closure", omitted=(both,))
    pairs = _pairs(both[0].rows, both[1].rows, lambda row: (row.region, row.flavour, row.working_point))
    columns = (
        "region", "part", "flavour", "WP", "uncalibrated A", "uncalibrated B", "calibrated A", "± stat A",
        "± map A", "calibrated B", "± stat B", "± map B", "|B − 1| − |A − 1|",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(one.region),
            Cell("held out" if one.held_out else "in the fit", style="held-out" if one.held_out else ""),
            Cell(one.flavour),
            Cell(percent(one.working_point), one.working_point),
            number(one.ratio_uncalibrated),
            number(other.ratio_uncalibrated),
            number(one.ratio_calibrated, style="strong"),
            number(one.error),
            number(one.map_uncertainty),
            number(other.ratio_calibrated, style="strong"),
            number(other.error),
            number(other.map_uncertainty),
            number(_farther(one.ratio_calibrated, other.ratio_calibrated)),
        )
        for one, other in pairs
    )
    caption = (
        "Closure: efficiency in data over that in simulation, one where the calibration is right. "
        "Last column: negative where B closes better than A."
    )
    sources = (f"A/{CLOSURE}", f"B/{CLOSURE}")
    return Section("closure", "Closure", content=(Table("table_closure", columns, rows, caption, sources),))


def _farther(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else abs(other - 1) - abs(one - 1)


def _composition_section(runs: Sequence[RunFiles]) -> Section:
    both = _read_both(runs, COMPOSITION, Composition)
    if isinstance(both, str):
        return Section("composition", "Flavour composition", omitted=(both,))
    pairs = _pairs(both[0].rows, both[1].rows, lambda row: (row.region, row.flavour))
    columns = (
        "region", "flavour", "prior A", "prior B", "fitted A", "± A", "fitted B", "± B", "(B − A) / σ",
        "truth A", "truth B",
    )  # fmt: skip
    rows = []
    for one, other in pairs:
        sigma = hypot(one.uncertainty, other.uncertainty)
        distance = (other.fitted - one.fitted) / sigma if sigma > 0 else None
        rows.append(
            (
                Cell(one.region),
                Cell(one.flavour),
                number(one.prior, 4),
                number(other.prior, 4),
                number(one.fitted, 4, "strong"),
                number(one.uncertainty, 4),
                number(other.fitted, 4, "strong"),
                number(other.uncertainty, 4),
                number(distance, 2, significance_style(abs(distance)) if distance is not None else ""),
                number(one.truth, 4),
                number(other.truth, 4),
            )
        )
    sources = (f"A/{COMPOSITION}", f"B/{COMPOSITION}")
    table = Table("table_composition", columns, tuple(rows), "Fitted flavour fractions.", sources)
    return Section("composition", "Flavour composition", content=(table,))


def _configuration_section(runs: Sequence[RunFiles]) -> Section:
    """Every key of the resolved configurations whose value differs."""
    missing = [letter for letter, files in zip("AB", runs, strict=True) if not files.has(CONFIGURATION)]
    title = "What was configured differently"
    if missing:
        return Section("configuration", title, omitted=(f"Left out: {missing[0]} has no {CONFIGURATION}.",))
    try:
        one, other = (dict(_settings(files)) for files in runs)
    except DataError as error:
        return Section("configuration", title, omitted=(f"Left out: {error.problem} ({error.where}).",))
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
    rows = tuple((Cell(key), Cell(_shown(one, key)), Cell(_shown(other, key))) for key in keys)
    caption = "Keys whose values differ; paths of files are relative to each run."
    sources = (f"A/{CONFIGURATION}", f"B/{CONFIGURATION}")
    content: tuple[PageFigure | Table, ...] = ()
    if rows:
        content = (Table("table_configuration", ("key", "A", "B"), rows, caption, sources),)
    omitted = () if rows else ("The two configurations are the same.",)
    return Section("configuration", title, content=content, omitted=omitted)


def _settings(files: RunFiles) -> Iterable[tuple[str, Any]]:
    try:
        return flatten(yaml.safe_load(files.text(CONFIGURATION)))
    except yaml.YAMLError as error:
        raise DataError("not valid YAML", where=str(files.path / CONFIGURATION)) from error


def _shown(settings: dict[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else NOTHING
