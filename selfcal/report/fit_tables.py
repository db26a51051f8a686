"""Tables of what a fit and a calibration can tell, and what they cannot."""

from __future__ import annotations

from selfcal.report.inputs import (
    CLOSURE,
    COVERAGE,
    IDENTIFIABILITY,
    SCALE_FACTORS,
    SCANS,
    SUPPORT,
    TWO_JETS,
    Closure,
    Coverage,
    MapIdentifiability,
    ScaleFactorRow,
    ScaleFactors,
    Scans,
    Support,
    TwoJets,
)
from selfcal.report.style import interval, percent
from selfcal.report.tables import NOTHING, Cell, Table, number, significance_style

PARAMETERS_NAMED = 8
BEYOND_SIGMA = 3.0
"""A number of jets beyond the support is marked if it exceeds the expected one by this many √(1 + n)."""


def scan_table(scans: Scans, scale_factors: ScaleFactors) -> Table:
    """Intervals of the profile likelihood, which need not be symmetric, beside the quoted σ."""
    columns = ("row", "flavour", "WP", "pT [GeV]", "|η|", "value", "−", "+", "σ of the data", "remark")
    rows = []
    for one in scans.scans:
        row = scale_factors.rows[one.row]
        low, high = one.interval
        best = one.best
        rows.append(
            (
                *_place(one.row, row),
                number(best, style="strong"),
                number(best - low if best is not None and low is not None else None),
                number(high - best if best is not None and high is not None else None),
                number(one.sigma),
                Cell(one.error or NOTHING),
            )
        )
    caption = (
        "Profile likelihood of scale factors: where −2 Δ ln L is one, below and above the best fit. σ of the "
        "data: to first order, without the statistical error of the simulation's own efficiency."
    )
    return Table("table_scans", columns, tuple(rows), caption, (SCANS, SCALE_FACTORS), folded=True)


def two_jets_table(two_jets: TwoJets, scale_factors: ScaleFactors) -> Table:
    """b scale factors of pairs of jets, of the same jets one by one, and of the fit of all regions."""
    columns = ("flavour", "WP", "pT [GeV]", "|η|", "pairs", "± pairs", "single jets", "± single jets",
               "all regions", "± all regions")  # fmt: skip
    singles = {(row.working_point, row.pt_gev, row.abs_eta): row for row in two_jets.single_jets}
    of_fit = {(row.flavour, row.working_point, row.pt_gev, row.abs_eta): row for row in scale_factors.rows}
    rows = []
    for row in two_jets.rows:
        place = (row.working_point, row.pt_gev, row.abs_eta)
        single, fitted = singles.get(place), of_fit.get((row.flavour, *place))
        rows.append(
            (
                Cell(row.flavour),
                Cell(percent(row.working_point), row.working_point),
                Cell(interval(row.pt_gev), row.pt_gev[0]),
                Cell(interval(row.abs_eta), row.abs_eta[0]),
                number(row.value, style="strong"),
                number(row.total),
                number(single.value if single else None),
                number(single.total if single else None),
                number(fitted.value if fitted else None),
                number(fitted.total if fitted else None),
            )
        )
    quality = two_jets.goodness_of_fit
    caption = (
        f"b scale factors from {two_jets.pairs:.0f} pairs of jets of one event, whose flavours are bb, bl, "
        "lb or ll; from the same jets taken one by one; and from the fit of all regions. Goodness of fit "
        f"of the pairs: {quality.statistic:.1f} for {quality.ndf:g} degrees of freedom."
    )
    if two_jets.blinded:
        caption = f"Blinded: expected values. {caption}"
    return Table("table_two_jets", columns, tuple(rows), caption, (TWO_JETS, SCALE_FACTORS))


def direction_table(found: MapIdentifiability) -> Table:
    """Directions of fractions and maps that the data leave open, by name."""
    columns = ("kind", "parameters that move", "eigenvalue", "posterior/prior width")
    rows = []
    for kind, directions in (
        ("null: no data determine it", found.null_directions),
        ("prior-dominated", found.prior_dominated_directions),
    ):
        for direction in directions:
            shown = ", ".join(direction.names[:PARAMETERS_NAMED])
            more = len(direction.names) - PARAMETERS_NAMED
            rows.append(
                (
                    Cell(kind),
                    Cell(shown + (f" and {more} more" if more > 0 else ""), style="wide"),
                    number(direction.eigenvalue, 12),
                    number(direction.posterior_over_prior_width, 2),
                )
            )
    rows += [
        (Cell("undetermined flavour"), Cell(flavour), number(None), number(None))
        for flavour in found.undetermined_flavours
    ]
    verdict = "none" if not rows else f"{len(rows)}"
    caption = (
        f"Directions of flavour fractions and maps that the control regions leave open: {verdict}. Condition "
        f"number of the information: {found.condition_number:.3g}."
    )
    return Table("table_identifiability_map", columns, tuple(rows), caption, (IDENTIFIABILITY,))


def support_table(support: Support) -> Table:
    """Jets whose scores lie where the control regions have none, per region and flavour."""
    columns = ("region", "role", "flavour", "jets", "beyond the support", "expected", "share [%]")
    rows = []
    for row in support.rows:
        if not row.jets:
            continue
        expected = support.expected_share * row.jets
        many = row.beyond - expected > BEYOND_SIGMA * (1 + expected) ** 0.5
        rows.append(
            (
                Cell(row.region),
                Cell("control" if row.control else "held out"),
                Cell(row.flavour),
                Cell(str(row.jets), row.jets),
                Cell(str(row.beyond), row.beyond, "sigma3" if many else ""),
                number(expected, 1),
                number(100 * row.beyond / row.jets, 2),
            )
        )
    caption = (
        "Jets beyond the support of the control regions: for them the map extrapolates. Marked where they "
        "are more than expected by three standard deviations."
    )
    return Table("table_support", columns, tuple(rows), caption, (SUPPORT,), folded=True)


def failure_table(closure: Closure) -> Table:
    """The rows of the closure that the calibration's own uncertainty does not explain."""
    columns = ("region", "flavour", "WP", "calibrated ratio", "pull")
    rows = tuple(
        (
            Cell(row.region),
            Cell(row.flavour),
            Cell(percent(row.working_point), row.working_point),
            number(row.ratio_calibrated),
            number(row.pull, 1, significance_style(abs(row.pull))),
        )
        for row in closure.failures
    )
    share = f"{len(rows)} of {len(closure.rows)} rows of the closure"
    caption = f"Failures: {share} that the uncertainty does not explain."
    return Table("table_failures", columns, rows, caption, (CLOSURE,))


def coverage_table(coverage: Coverage, scale_factors: ScaleFactors) -> Table:
    """Pulls and coverage of every scale factor in likelihood toys."""
    columns = ("row", "flavour", "WP", "pT [GeV]", "|η|", "judged", "pull mean", "pull width", "68 % covers",
               "95 % covers", "exceeded")  # fmt: skip
    rows = tuple(
        (
            *_place(one.row, scale_factors.rows[one.row]),
            Cell("yes" if one.judged else "no"),
            number(one.pull_mean),
            number(one.pull_width),
            number(one.coverage_68),
            number(one.coverage_95),
            Cell(
                ", ".join(one.exceeded) or NOTHING,
                style="status-extrapolated" if one.exceeded and one.judged else "",
            ),
        )
        for one in coverage.rows
        if 0 <= one.row < len(scale_factors.rows)
    )
    caption = (
        "Coverage in likelihood toys: pulls, and how often the intervals of 68 % and 95 % hold the truth."
    )
    return Table("table_coverage", columns, rows, caption, (COVERAGE, SCALE_FACTORS), folded=True)


def _place(index: int, row: ScaleFactorRow) -> tuple[Cell, ...]:
    where = (
        Cell(percent(row.working_point), row.working_point)
        if row.working_point is not None
        else Cell(f"bin {row.bin}", row.bin)
    )
    return (
        Cell(str(index), index),
        Cell(row.flavour),
        where,
        Cell(interval(row.pt_gev), row.pt_gev[0]),
        Cell(interval(row.abs_eta), row.abs_eta[0]),
    )
