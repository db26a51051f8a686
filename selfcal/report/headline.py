"""The top of the page: what was measured, how it compares with the truth, what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfcal.report.figures.closure import significance
from selfcal.report.fit_inputs import Fit, GoodnessOfFit
from selfcal.report.html import Headline, Tile
from selfcal.report.inputs import (
    AGAINST_TRUTH,
    CLOSURE,
    FIT,
    SCALE_FACTORS,
    AgainstTruth,
    Closure,
    Composition,
    ScaleFactorRow,
    ScaleFactors,
)
from selfcal.report.style import interval, percent
from selfcal.report.tables import Cell, Table, number

KEY_WORKING_POINT = 0.77
P_VALUE_SUSPICIOUS = 0.005
"""Marked below it, and above one minus it: a fit can also be too good."""
PRIOR_WIDTHS_MAX = 3.0
"""A fraction further from its prior is pointed out: the fit may describe the data all the same."""


def headline(
    scale_factors: ScaleFactors,
    against_truth: AgainstTruth | None,
    fit: Fit | None,
    closure: Closure | None,
    composition: Composition | None,
    omitted: Sequence[str],
) -> Headline:
    """Collect the headline; comparisons whose file is absent are left to ``omitted``."""
    points = [row for row in scale_factors.rows if row.kind == "working_point"]
    measured = sum(row.status == "measured" for row in scale_factors.rows)
    counts = Counter(row.flavour for row in points if row.status == "measured")
    by_flavour = ", ".join(
        f"{counts[flavour]} for {flavour}" for flavour in scale_factors.flavours if counts[flavour]
    )
    tiles = [
        Tile(
            "Measured scale factors",
            f"{measured} of {len(scale_factors.rows)}",
            f"working-point rows: {by_flavour or 'none'}",
            SCALE_FACTORS,
            "good" if measured == len(scale_factors.rows) else "bad",
        )
    ]
    if against_truth:
        tiles += _truth_tiles(against_truth)
    if fit and fit.goodness_of_fit:
        tiles.append(_goodness_tile(fit.goodness_of_fit, blinded=scale_factors.blinded))
    if closure and any(row.held_out for row in closure.rows):
        tiles.append(_closure_tile(closure))
    return Headline(
        title=f"Calibration of {scale_factors.tagger}",
        measured=(
            "Scale factors (efficiency in data over efficiency in simulation) of "
            f"{', '.join(scale_factors.flavours)} "
            "jets in bins of pT, at the "
            f"{', '.join(percent(point) for point in sorted(scale_factors.working_points))} "
            "working points and in pseudo-continuous bins of the discriminant."
        ),
        tiles=tuple(tiles),
        warnings=(
            *_warnings(scale_factors),
            *_closure_warnings(closure),
            *_composition_warnings(composition),
        ),
        key_table=key_table(scale_factors),
        omitted=tuple(omitted),
    )


def _truth_tiles(against_truth: AgainstTruth) -> list[Tile]:
    rows = f"{len(against_truth.rows_used)} rows compared"
    note = rows
    if against_truth.uncalibrated:
        before = against_truth.uncalibrated
        note += f"; uncalibrated: {before.chi2:.1f} / {before.ndf}"
        if before.p_value is not None:
            note += f", p = {before.p_value:.2g}"
    p_value = against_truth.p_value
    tiles = [
        Tile(
            "χ² against truth",
            f"{against_truth.chi2:.1f} / {against_truth.ndf}",
            (f"p = {p_value:.3g}; " if p_value is not None else "") + note,
            AGAINST_TRUTH,
            "" if p_value is None else _style_of_p(p_value),
        )
    ]
    if against_truth.max_pull is not None:
        worst = against_truth.max_pull
        note = "largest |value − truth| in units of σ"
        if against_truth.uncalibrated and against_truth.uncalibrated.max_pull is not None:
            note += f"; uncalibrated {against_truth.uncalibrated.max_pull:.1f} σ"
        tiles.append(
            Tile("Largest pull", f"{worst:.1f} σ", note, AGAINST_TRUTH, "good" if abs(worst) < 4 else "bad")
        )
    return tiles


def _goodness_tile(quality: GoodnessOfFit, *, blinded: bool) -> Tile:
    p_value = quality.p_value
    if blinded:  # expected data are described without fault: no verdict
        return Tile("Goodness of fit", "–", "none while blinded: expected data fit by construction", FIT, "")
    return Tile(
        "Goodness of fit",
        f"p = {p_value:.3g}" if p_value is not None else f"{quality.statistic:.1f} / {quality.ndf:g}",
        f"statistic {quality.statistic:.1f} for {quality.ndf:g} degrees of freedom",
        FIT,
        "" if p_value is None else _style_of_p(p_value),
    )


def _style_of_p(p_value: float) -> str:
    return "good" if P_VALUE_SUSPICIOUS <= p_value <= 1 - P_VALUE_SUSPICIOUS else "bad"


def _closure_tile(closure: Closure) -> Tile:
    held_out = [row for row in closure.rows if row.held_out]
    after = [value for row in held_out if (value := significance(row, calibrated=True)) is not None]
    before = [value for row in held_out if (value := significance(row, calibrated=False)) is not None]
    return Tile(
        "Held-out closure within 2σ",
        f"{sum(value < 2 for value in after)} of {len(after)}",
        f"rows; uncalibrated {sum(value < 2 for value in before)} of {len(before)}",
        CLOSURE,
    )


def _warnings(scale_factors: ScaleFactors) -> list[str]:
    """One sentence per status that is not ``measured``, naming the rows."""
    texts = {
        "extrapolated": "extrapolated, not measured: an assumption with a widened uncertainty",
        "external": "external, not measured: constrained by values that the configuration gives",
        "unmeasured": "unmeasured: no region determines them, and no number is given",
    }
    sentences = []
    if scale_factors.blinded:
        sentences.append(
            "Blinded: all values are those expected when data are the simulation, with the uncertainty to be "
            "expected; fit.unblind: true shows the results of the data."
        )
    if scale_factors.forced:
        sentences.append(
            "Forced: the fit did not converge, and its numbers are given because of fit.force; "
            "they are no measurement."
        )
    for status, meaning in texts.items():
        rows = [row for row in scale_factors.rows if row.status == status]
        if rows:
            sentences.append(f"{len(rows)} scale factors are {meaning} ({_where(rows)}).")
    return sentences


def _closure_warnings(closure: Closure | None) -> list[str]:
    """One sentence if the calibration's own uncertainty does not explain every row of the closure."""
    if closure is None or not closure.failures:
        return []
    worst = max(closure.failures, key=lambda row: abs(row.pull))
    place = f"{worst.flavour} jets of {worst.region} at the {percent(worst.working_point)} working point"
    rows = f"{len(closure.failures)} of {len(closure.rows)} rows"
    return [f"The closure fails in {rows}, most in {place} ({worst.pull:+.1f} σ)."]


def _composition_warnings(composition: Composition | None) -> list[str]:
    """One sentence if fractions were fitted where their cards do not expect them."""
    if composition is None:
        return []
    widths = {
        f"{row.flavour} jets of {row.region}": (row.fitted - row.prior) / row.prior_uncertainty
        for row in composition.rows
        if row.prior_uncertainty > 0
    }
    far = {place: value for place, value in widths.items() if abs(value) > PRIOR_WIDTHS_MAX}
    if not far:
        return []
    worst = max(far, key=lambda place: abs(far[place]))
    beyond = f"more than {PRIOR_WIDTHS_MAX:g} prior widths away from its prior"
    most = f"most of all {worst} ({far[worst]:+.1f})"
    meaning = "the prior is too narrow, or the data hold what no card names"
    return [f"A fitted fraction {beyond}: {len(far)} of {len(widths)}, {most}; {meaning}."]


def _where(rows: Sequence[ScaleFactorRow]) -> str:
    """Flavours and pT ranges of ``rows``, such as "tau 20–40, 40–70 GeV"."""
    ranges: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.pt_gev):
        found = ranges.setdefault(row.flavour, [])
        if interval(row.pt_gev) not in found:
            found.append(interval(row.pt_gev))
    return "; ".join(f"{flavour}: {', '.join(found)} GeV" for flavour, found in ranges.items())


def key_table(scale_factors: ScaleFactors) -> Table | None:
    """The scale factors at the working point nearest 77 %, one line per flavour and pT bin."""
    if not scale_factors.working_points:
        return None
    point = min(scale_factors.working_points, key=lambda value: abs(value - KEY_WORKING_POINT))
    rows = [row for row in scale_factors.rows if row.kind == "working_point" and row.working_point == point]
    cells = tuple(
        (
            Cell(row.flavour),
            Cell(interval(row.pt_gev), row.pt_gev[0]),
            Cell(interval(row.abs_eta), row.abs_eta[0]),
            number(row.value, style="strong"),
            number(row.stat),
            number(row.total),
            number(row.truth.value if row.truth else None),
            Cell(row.status, style=f"status-{row.status}"),
        )
        for row in rows
    )
    columns = ("flavour", "pT [GeV]", "|η|", "scale factor", "± stat", "± total", "truth", "status")
    caption = f"Scale factors at the {percent(point)} working point."
    return Table("table_key", columns, cells, caption, (SCALE_FACTORS,))
