"""Tables of the report: every cell shows a rounded number and carries the exact one of its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfcal.report.figures.closure import held_out_first, significance
from selfcal.report.figures.scale_factors import continuous_bin_labels
from selfcal.report.inputs import (
    AGAINST_TRUTH,
    CLOSURE,
    COMPOSITION,
    POSTERIOR,
    SCALE_FACTORS,
    TAGGER_METRICS,
    TWO_ROADS,
    AgainstTruth,
    Closure,
    Composition,
    GeneratorComparison,
    Posterior,
    ScaleFactorRow,
    ScaleFactors,
    TaggerMetrics,
    TwoRoads,
)
from selfcal.report.style import interval, percent

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """``text`` is shown; ``value`` is the number or word in the file, by which the column sorts."""

    text: str
    value: float | int | str | None = None
    style: str = ""

    @property
    def sort_value(self) -> str:
        value = self.text if self.value is None else self.value
        return "" if self.text == NOTHING else str(value)

    @property
    def numeric(self) -> bool:
        return isinstance(self.value, int | float) or self.text == NOTHING


@dataclass(frozen=True)
class Table:
    """Rows under the heads of ``columns``, one cell each."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    sources: tuple[str, ...]
    folded: bool = False

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.name}: a row has not one cell for each of {len(self.columns)} columns")


def number(value: float | None, decimals: int = 3, style: str = "") -> Cell:
    """A number with fixed decimals; None shows a dash."""
    return Cell(NOTHING, None, style) if value is None else Cell(f"{value:.{decimals}f}", value, style)


def significance_style(value: float | None) -> str:
    """CSS class by distance from one in standard deviations: below 1, 2, 3 and beyond."""
    return "" if value is None else f"sigma{min(int(value), 3)}"


def scale_factor_tables(scale_factors: ScaleFactors, against_truth: AgainstTruth | None) -> list[Table]:
    """One table of the working points and one of the continuous bins."""
    pulls = {pull.row: pull.pull for pull in against_truth.pulls} if against_truth else {}
    sources = (SCALE_FACTORS, AGAINST_TRUTH) if pulls else (SCALE_FACTORS,)
    tables = []
    for kind, title, folded in (
        ("working_point", "Scale factors at the working points", False),
        ("continuous", "Continuous scale factors in pseudo-continuous bins", True),
    ):
        chosen = [(index, row) for index, row in enumerate(scale_factors.rows) if row.kind == kind]
        if not chosen:
            continue
        groups = list(dict.fromkeys(name for _, row in chosen for name in row.syst))
        labels = continuous_bin_labels(scale_factors.working_points)
        first = "WP" if kind == "working_point" else "b eff. [%]"
        columns = (
            "row", "flavour", first, "pT [GeV]", "|η|", "status", "value", "stat", *groups, "total", "truth",
            "± truth", "pull", "expected",
        )  # fmt: skip
        rows = tuple(
            _scale_factor_cells(index, row, groups, labels, pulls.get(index)) for index, row in chosen
        )
        caption = (
            f"{title}. stat: statistical, then one column per systematic group, total: all together; "
            "expected: jets of "
            "this flavour expected to pass; row: place in the file; pull: (value − truth)/σ where compared."
        )
        tables.append(Table(f"table_{kind}", columns, rows, caption, sources, folded))
    return tables


def row_place(index: int, row: ScaleFactorRow, labels: Sequence[str] = ()) -> tuple[Cell, ...]:
    """Number, flavour, working point or bin, pT and |η| of a row; ``labels`` name the bins."""
    if row.working_point is not None:
        where = Cell(percent(row.working_point), row.working_point)
    else:
        place = row.bin or 0
        where = Cell(labels[place] if place < len(labels) else f"bin {place}", place)
    return (
        Cell(str(index), index),
        Cell(row.flavour),
        where,
        Cell(interval(row.pt_gev), row.pt_gev[0]),
        Cell(interval(row.abs_eta), row.abs_eta[0]),
    )


def _scale_factor_cells(
    index: int, row: ScaleFactorRow, groups: Iterable[str], labels: Sequence[str], pull: float | None
) -> tuple[Cell, ...]:
    return (
        *row_place(index, row, labels),
        Cell(row.status, style=f"status-{row.status}"),
        number(row.value, style="strong"),
        number(row.stat),
        *(number(row.syst.get(group)) for group in groups),
        number(row.total),
        number(row.truth.value if row.truth else None),
        number(row.truth.error if row.truth else None),
        number(pull, 2, significance_style(abs(pull)) if pull is not None else ""),
        number(row.expected_passing, 0),
    )


def two_roads_table(roads: TwoRoads, scale_factors: ScaleFactors) -> Table:
    """Scale factors of the map beside those of the fit at the working points."""
    columns = (
        "row",
        "flavour",
        "WP",
        "pT [GeV]",
        "map",
        "± map",
        "fit",
        "± fit",
        "fit − map",
        "± both",
        "pull",
    )
    rows = []
    for entry in roads.rows:
        row = scale_factors.rows[entry.row]
        if row.working_point is None:
            continue
        sigma = entry.difference_uncertainty
        pull = entry.difference / sigma if entry.compared and sigma > 0 else None
        rows.append(
            (
                Cell(str(entry.row), entry.row),
                Cell(row.flavour),
                Cell(percent(row.working_point), row.working_point),
                Cell(interval(row.pt_gev), row.pt_gev[0]),
                number(entry.map.value),
                number(entry.map.total),
                number(entry.fit.value, style="strong"),
                number(entry.fit.total),
                number(entry.difference),
                number(sigma),
                number(pull, 2, significance_style(abs(pull)) if pull is not None else ""),
            )
        )
    verdict = f"χ² {roads.chi2:.1f} / {roads.ndf}"
    if roads.p_value is not None:
        verdict += f", p = {roads.p_value:.3g}"
    caption = (
        "One truth, two roads: scale factors read off the calibration map, and those of the template fit; "
        f"± both: of the difference, with their correlation. {verdict}."
    )
    return Table("table_two_roads", columns, tuple(rows), caption, (TWO_ROADS, SCALE_FACTORS), folded=True)


def closure_table(closure: Closure) -> Table:
    """Uncalibrated and calibrated ratio side by side, coloured by their distance from one."""
    columns = (
        "region", "held out", "flavour", "WP", "ε data", "ε simulation", "ε calibrated", "uncalibrated ratio",
        "calibrated ratio", "± stat", "± map", "σ before", "σ after",
        "corrected ratio",
    )  # fmt: skip
    rows = []
    for row in held_out_first(closure.rows):
        before, after = significance(row, calibrated=False), significance(row, calibrated=True)
        rows.append(
            (
                Cell(row.region),
                Cell("held out" if row.held_out else "in the fit", style="held-out" if row.held_out else ""),
                Cell(row.flavour),
                Cell(percent(row.working_point), row.working_point),
                number(row.efficiency_data, 4),
                number(row.efficiency_simulation, 4),
                number(row.efficiency_calibrated, 4),
                number(row.ratio_uncalibrated, style=significance_style(before)),
                number(row.ratio_calibrated, style=f"strong {significance_style(after)}"),
                number(row.error),
                number(row.map_uncertainty),
                number(before, 1),
                number(after, 1),
                number(row.ratio_corrected),
            )
        )
    caption = (
        "Closure: efficiency in data over efficiency in simulation. Colour: distance from one, in "
        "standard deviations "
        "(statistical; for the calibrated ratio with the map's uncertainty). σ before, σ after: computed "
        "from "
        "this row. Corrected: with the inferred detector and without map."
    )
    return Table("table_closure", columns, tuple(rows), caption, (CLOSURE,))


def composition_table(composition: Composition) -> Table:
    columns = (
        "region",
        "flavour",
        "prior",
        "± prior",
        "bulk fit",
        "fitted",
        "± fitted",
        "truth",
        "(fitted − truth)/σ",
    )
    rows = []
    for row in composition.rows:
        pull = (
            (row.fitted - row.truth) / row.uncertainty
            if row.truth is not None and row.uncertainty > 0
            else None
        )
        rows.append(
            (
                Cell(row.region),
                Cell(row.flavour),
                number(row.prior, 4),
                number(row.prior_uncertainty, 4),
                number(row.bulk, 4),
                number(row.fitted, 4, "strong"),
                number(row.uncertainty, 4),
                number(row.truth, 4),
                number(pull, 2, significance_style(abs(pull)) if pull is not None else ""),
            )
        )
    return Table(
        "table_composition",
        columns,
        tuple(rows),
        "Flavour fractions of every region.",
        (COMPOSITION,),
        folded=True,
    )


METHODS = {
    "binned": "the likelihood of histograms of tracks",
    "neural": "the neural likelihood of single jets",
}


def detector_table(posterior: Posterior) -> Table:
    """Prior and posterior of every detector parameter."""
    columns = (
        "parameter", "unit", "simulation", "± prior", "posterior", "± posterior", "contraction", "shift / σ",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(row.name),
            Cell(row.unit),
            number(row.nominal, 4),
            number(row.prior_width, 4),
            number(row.mean, 4, "strong"),
            number(row.uncertainty, 4),
            number(row.contraction, 2),
            number((row.mean - row.nominal) / row.uncertainty, 1),
        )
        for row in posterior.parameters
    )
    caption = (
        f"Detector parameters from {METHODS[posterior.method]}. Contraction: 1 − σ²/σ²(prior), one where the "
        "data decide, zero where the prior does."
    )
    return Table("table_detector", columns, rows, caption, (POSTERIOR,))


def detector_checks_table(posterior: Posterior) -> Table:
    """The posterior beside a Markov chain, between networks, and beside the one of whole samples."""
    chain, sets = posterior.chain or {}, posterior.set_posterior
    columns: list[tuple[str, list[float]]] = []
    if {"mean_shift", "width_ratio"} <= set(chain):
        columns += [
            ("chain: shift / σ", chain["mean_shift"]),
            ("chain: width ratio", chain["width_ratio"]),
        ]
    if posterior.ensemble is not None:
        columns.append(("networks: spread / σ", posterior.ensemble.spread))
    if sets is not None:
        columns += [
            ("whole samples: shift / σ", sets.mean_shift),
            ("whole samples: width ratio", sets.width_ratio),
        ]
    rows = tuple(
        (Cell(row.name), *(number(values[i], 2) for _, values in columns))
        for i, row in enumerate(posterior.parameters)
    )
    caption = (
        "Checks of the posterior: a Markov chain of the same likelihood, and for the neural likelihood what "
        "its networks differ by and a posterior learnt from whole samples (of few jets)."
    )
    names = tuple(name for name, _ in columns)
    return Table("table_detector_checks", ("parameter", *names), rows, caption, (POSTERIOR,), folded=True)


def predictive_table(posterior: Posterior) -> Table:
    """How well the smeared simulation describes every histogram."""
    columns = ("region", "histogram", "tracks", "χ²", "ndf", "p-value", "largest pull")
    rows = tuple(
        (
            Cell(row.region),
            Cell(row.histogram),
            Cell(row.category.replace("_", " ")),
            number(row.chi2, 1),
            number(row.ndf, 0),
            number(row.p_value, 3),
            number(row.pull, 1),
        )
        for row in posterior.predictive
    )
    caption = "Posterior predictive check of the histograms from which the detector is inferred."
    if posterior.inflation > 1:
        caption += (
            f" The model does not describe them: the covariance is multiplied by {posterior.inflation:.2f}."
        )
    return Table("table_predictive", columns, rows, caption, (POSTERIOR,), folded=True)


def generator_table(checked: GeneratorComparison) -> Table:
    """How well the generator describes what the detector was not inferred from."""
    columns = ("region", "quantity", "χ²", "ndf", "p-value")
    rows = tuple(
        (
            Cell(row.region),
            Cell(row.quantity.replace("_", " ")),
            number(row.chi2, 1),
            number(row.ndf, 0),
            number(row.p_value, 3),
        )
        for row in checked.rows
    )
    caption = (
        "The generator, checked where the detector was not inferred from: positive impact parameters, "
        "multiplicities and shares of the jet's momentum under the inferred detector."
    )
    if checked.noticed:
        caption += (
            f" It does not describe the data: a relative error of {checked.error:.3f} of every bin of the "
            "histograms is taken where less was configured."
        )
    return Table("table_generator", columns, rows, caption, (POSTERIOR,), folded=not checked.noticed)


def rejection_table(metrics: TaggerMetrics) -> Table:
    columns = ("working point", "flavour", "rejection", "± stat")
    rows = tuple(
        (
            Cell(percent(row.working_point), row.working_point),
            Cell(row.flavour),
            number(row.rejection, 1, "strong"),
            number(row.error, 1),
        )
        for row in metrics.rejections
    )
    return Table(
        "table_rejection",
        columns,
        rows,
        "Rejection 1/ε of the trained tagger on simulation.",
        (TAGGER_METRICS,),
    )


def response_table(metrics: TaggerMetrics) -> Table:
    columns = (
        "flavour", "jets", "scale before", "scale after", "resolution before", "resolution after",
        "ratio", "± stat",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(row.flavour),
            number(row.jets, 0),
            number(row.before.scale),
            number(row.after.scale),
            number(row.before.resolution),
            number(row.after.resolution),
            number(row.resolution_ratio, 3, "strong"),
            number(row.resolution_ratio_error),
        )
        for row in metrics.response
    )
    return Table(
        "table_response",
        columns,
        rows,
        "Response pT / true pT of the jets on simulation, before and after the tagger's regression: its "
        "median (scale), half the width of its central 68 % over the median (resolution), and the ratio of "
        "the two resolutions.",
        (TAGGER_METRICS,),
    )


def content_table(name: str, content: object, caption: str, source: str, *, folded: bool = True) -> Table:
    """Any JSON content as two columns, nested keys joined by dots."""
    rows = tuple((Cell(key), _content_cell(value)) for key, value in flatten(content))
    return Table(name, ("key", "value"), rows, caption, (source,), folded)


def flatten(content: object, prefix: str = "") -> list[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` to ``[("a.b", 1)]``; lists of plain values stay whole."""
    if isinstance(content, dict) and content:
        return [
            pair
            for key, value in content.items()
            for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(content, list) and any(isinstance(item, dict) for item in content):
        return [pair for index, item in enumerate(content) for pair in flatten(item, f"{prefix}[{index}]")]
    return [(prefix, content)]


def _content_cell(value: Any) -> Cell:
    if value is None or value in ([], {}):
        return Cell(NOTHING)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int | float):
        return Cell(f"{value:.6g}" if isinstance(value, float) else str(value), value)
    if isinstance(value, list):
        return Cell(", ".join(f"{item:.6g}" if isinstance(item, float) else _plain(item) for item in value))
    return Cell(str(value))


def _plain(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)
