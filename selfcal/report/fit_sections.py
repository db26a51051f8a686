"""Chapters on where uncertainties come from, how well intervals cover, and what is left open."""

from __future__ import annotations

from collections.abc import Iterable

from selfcal.report.figures.breakdown import breakdown_figure
from selfcal.report.figures.impacts import impact_figures
from selfcal.report.figures.scans import scan_figures
from selfcal.report.fit_inputs import Coverage, Fit, ImpactTable, Scans, TwoJets
from selfcal.report.fit_tables import (
    coverage_table,
    scan_table,
    two_jets_table,
)
from selfcal.report.html import Section
from selfcal.report.inputs import (
    COVERAGE,
    DETECTOR_TREATMENTS,
    FIT,
    GENERATORS,
    HIGH_PT,
    IDENTIFIABILITY,
    IMPACTS,
    REGION_DEPENDENCE,
    SCANS,
    SUPPORT,
    TWO_JETS,
    RunFiles,
    ScaleFactors,
)
from selfcal.report.limits import (
    MapIdentifiability,
    RegionDependence,
    Support,
    direction_table,
    region_table,
    support_table,
)
from selfcal.report.sections import Chapter, Content, Draw
from selfcal.report.simulations import Generators, HighPt, generator_table, high_pt_table
from selfcal.report.tables import content_table
from selfcal.report.treatments import DetectorTreatments, treatments_table


def uncertainty_section(files: RunFiles, scale_factors: ScaleFactors, draw: Draw) -> Section:
    """Breakdown by group, ranked impacts, likelihood scans, coverage in toys."""

    def scanned() -> Iterable[Content]:
        scans = files.read(SCANS, Scans)
        yield from (draw(figure) for figure in scan_figures(scans, scale_factors))
        yield scan_table(scans, scale_factors)

    def covered() -> Iterable[Content]:
        coverage = files.read(COVERAGE, Coverage)
        caption = "Coverage of likelihood toys: verdict."
        yield content_table("table_coverage_summary", coverage.summary, caption, COVERAGE, folded=False)
        yield coverage_table(coverage, scale_factors)

    def detectors() -> Iterable[Content]:
        found = files.read(DETECTOR_TREATMENTS, DetectorTreatments)
        summary = {"smaller": found.summary, "toys": found.toys, "truth": found.against_truth}
        caption = "A detector that is guessed, inferred and profiled: summary."
        yield content_table("table_treatments_summary", summary, caption, DETECTOR_TREATMENTS)
        yield treatments_table(found)

    def treated() -> Iterable[Content]:
        variations = files.read(FIT, Fit).variations
        if variations:
            caption = "Systematic variations: what smoothing and pruning changed."
            yield content_table("table_variations", variations, caption, FIT)

    chapter = Chapter(files)
    chapter.add("Breakdown by group", [], lambda: [draw(breakdown_figure(scale_factors))])
    chapter.add(
        "Impacts",
        [IMPACTS],
        lambda: [draw(figure) for figure in impact_figures(files.read(IMPACTS, ImpactTable), scale_factors)],
    )
    chapter.add("Likelihood scans", [SCANS], scanned)
    chapter.add("Coverage in toys", [COVERAGE], covered)
    chapter.add("The detector guessed, inferred and profiled", [DETECTOR_TREATMENTS], detectors)
    chapter.add("Smoothing and pruning", [FIT], treated)
    return chapter.close("uncertainties", "Where the uncertainties come from")


def two_jets_section(files: RunFiles, scale_factors: ScaleFactors) -> Section:
    chapter = Chapter(files)
    chapter.add(
        "Two-jet likelihood",
        [TWO_JETS],
        lambda: [two_jets_table(files.read(TWO_JETS, TwoJets), scale_factors)],
    )
    return chapter.close("two_jets", "Pairs of jets")


def simulations_section(files: RunFiles) -> Section:
    """Factors between simulations, and what they say beyond the last pT bin."""
    chapter = Chapter(files)
    chapter.add(
        "Factors between simulations",
        [GENERATORS],
        lambda: [generator_table(files.read(GENERATORS, Generators))],
    )
    chapter.add("High pT", [HIGH_PT], lambda: [high_pt_table(files.read(HIGH_PT, HighPt))])
    return chapter.close("simulations", "Other simulations")


def limits_section(files: RunFiles) -> Section:
    """What the control regions do not determine, and jets where they have none."""
    chapter = Chapter(files)
    chapter.add(
        "Identifiability of fractions and maps",
        [IDENTIFIABILITY],
        lambda: [direction_table(files.read(IDENTIFIABILITY, MapIdentifiability))],
    )
    chapter.add("Support", [SUPPORT], lambda: [support_table(files.read(SUPPORT, Support))])
    chapter.add(
        "Region dependence",
        [REGION_DEPENDENCE],
        lambda: [region_table(files.read(REGION_DEPENDENCE, RegionDependence))],
    )
    return chapter.close("limits", "What the control regions do not tell")
