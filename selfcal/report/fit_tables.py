"""Tables of what a fit and a calibration can tell, and what they cannot."""

from __future__ import annotations

from selfcal.report.fit_inputs import Coverage, ResidualScale, Scans, TwoJets
from selfcal.report.inputs import (
    CLOSURE,
    COVERAGE,
    FIT,
    SCALE_FACTORS,
    SCANS,
    TWO_JETS,
    Closure,
    ScaleFactors,
)
from selfcal.report.style import interval, percent
from selfcal.report.tables import NOTHING, Cell, Table, number, row_place, significance_style


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
                *row_place(one.row, row),
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


def residual_scale_table(scale: ResidualScale) -> Table:
    """What data made of the widths that the configuration gives to residuals of single bins."""
    rows = tuple(
        (Cell(flavour), number(factor, style="strong"), number(scale.determined.get(flavour)))
        for flavour, factor in scale.factor.items()
    )
    caption = (
        "Widths of the residuals of single bins over those configured ('fit.residual_width'), as the data "
        "say, and how many residuals they determine. Where they determine none the factor is one."
    )
    if not scale.settled:
        caption = f"Not settled: the factors still changed from fit to fit. {caption}"
    columns = ("flavour", "width / configured", "residuals determined")
    return Table("table_residual_scale", columns, rows, caption, (FIT,))


def rule_table(closure: Closure) -> Table:
    """The held-out rows that the rule of the configuration judges."""
    columns = (
        "region",
        "flavour",
        "WP",
        "calibrated ratio",
        "deviation [σ]",
        "closes",
        "small enough",
        "verdict",
    )
    rows = tuple(
        (
            Cell(row.region),
            Cell(row.flavour),
            Cell(percent(row.working_point), row.working_point),
            number(row.ratio_calibrated),
            number(row.deviation_in_sigma, 1),
            Cell("yes" if row.closes else "no", style="" if row.closes else "sigma3"),
            Cell("yes" if row.uncertainty_small_enough else "no"),
            Cell("passed" if row.passed else "not passed", style="" if row.passed else "sigma3"),
        )
        for row in closure.summary.rule.rows
    )
    verdict = "passed" if closure.summary.rule.passed else "not passed"
    caption = (
        f"Closure where nothing was fitted, by the rule of the configuration ('closure'): {verdict}. A row "
        "closes within a tolerance or so many σ, and the quoted uncertainty must be small enough."
    )
    return Table("table_closure_rule", columns, rows, caption, (CLOSURE,))


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
            *row_place(one.row, scale_factors.rows[one.row]),
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
