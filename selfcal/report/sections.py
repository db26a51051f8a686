"""The chapters of the report, each from its own files; a missing file leaves its part out, and says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfcal.errors import DataError
from selfcal.report.evaluation import Evaluation, evaluation_table
from selfcal.report.figures.closure import closure_figure
from selfcal.report.figures.composition import composition_figure
from selfcal.report.figures.correlation import correlation_figure
from selfcal.report.figures.discriminants import discriminant_figure, region_histograms, regions_of
from selfcal.report.figures.evaluation import evaluation_figure
from selfcal.report.figures.performance import roc_figure, trained_roc_figure, training_figure
from selfcal.report.figures.posterior import corner_figure
from selfcal.report.figures.pulls import nuisance_figure, truth_pull_figure
from selfcal.report.figures.scale_factors import continuous_figures, working_point_figures
from selfcal.report.fit_inputs import Fit
from selfcal.report.fit_tables import failure_table, residual_scale_table, rule_table
from selfcal.report.html import PageFigure, PageText, Section
from selfcal.report.inputs import (
    AGAINST_TRUTH,
    CLOSURE,
    COMPOSITION,
    CONFIGURATION,
    DISCRIMINANTS,
    EVALUATION,
    FIT,
    JOINT,
    METRICS,
    POSTERIOR,
    PROVENANCE,
    ROC,
    ROC_BEFORE_AFTER,
    TAGGER_METRICS,
    TWO_ROADS,
    WRITTEN_BY,
    AgainstTruth,
    Closure,
    Composition,
    Posterior,
    RunFiles,
    ScaleFactors,
    TaggerMetrics,
    TwoRoads,
)
from selfcal.report.style import ReportFigure
from selfcal.report.tables import (
    Table,
    closure_table,
    composition_table,
    content_table,
    detector_checks_table,
    detector_table,
    generator_table,
    predictive_table,
    rejection_table,
    response_table,
    scale_factor_tables,
    two_roads_table,
)
from selfcal.run.atomic import read_json

Draw = Callable[[ReportFigure], PageFigure]
Content = PageFigure | Table | PageText


@dataclass
class Chapter:
    """A section being written: content as far as the files give it, sentences where they do not."""

    files: RunFiles
    content: list[Content] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)

    def add(self, what: str, needs: Sequence[str], make: Callable[[], Iterable[Content]]) -> None:
        """Add what ``make`` gives; where a file is missing or has another form, say that instead."""
        missing = [name for name in needs if not self.files.has(name)]
        if missing:
            self.omitted.append(missing_sentence(what, missing[0]))
            return
        try:
            self.content.extend(make())
        except DataError as error:
            where = f" ({error.where})" if error.where else ""
            self.omitted.append(f"{what} left out: {error.problem}{where}.")

    def close(self, name: str, title: str, introduction: str = "") -> Section:
        return Section(name, title, introduction, tuple(self.content), tuple(self.omitted))


def missing_sentence(what: str, name: str) -> str:
    return f"{what} left out: {name}, which {WRITTEN_BY[name]}, is not in the run directory."


def slug(name: str) -> str:
    """Letters, digits and underscores of ``name``, fit for a file name and an HTML id."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40] or "unnamed"


def scale_factor_section(
    files: RunFiles, scale_factors: ScaleFactors, against_truth: AgainstTruth | None, draw: Draw
) -> Section:
    chapter = Chapter(files)
    chapter.content += [draw(figure) for figure in working_point_figures(scale_factors)]
    chapter.content += [draw(figure) for figure in continuous_figures(scale_factors)]
    chapter.content += scale_factor_tables(scale_factors, against_truth)
    chapter.add(
        "Scale factors of the map beside those of the fit",
        [TWO_ROADS],
        lambda: [two_roads_table(files.read(TWO_ROADS, TwoRoads), scale_factors)],
    )
    return chapter.close(
        "scale_factors",
        "Scale factors",
        "A scale factor is the efficiency in data over the efficiency in the uncalibrated simulation, "
        "for one flavour in one bin of jet pT and |η|.",
    )


def pull_section(files: RunFiles, scale_factors: ScaleFactors, draw: Draw) -> Section:
    chapter = Chapter(files)
    chapter.add(
        "Pulls against the truth",
        [AGAINST_TRUTH],
        lambda: [draw(truth_pull_figure(files.read(AGAINST_TRUTH, AgainstTruth), scale_factors))],
    )
    chapter.add(
        "Pulls of the nuisance parameters", [FIT], lambda: [draw(nuisance_figure(files.read(FIT, Fit)))]
    )
    chapter.add("Certificate of the fit", [FIT], lambda: _fit_tables(files.read(FIT, Fit)))
    return chapter.close("pulls", "Pulls and quality of the fit")


def _fit_tables(fit: Fit) -> Iterable[Table]:
    for name, content, caption in (
        ("table_certificate", fit.certificate, "Certificate of the minimum"),
        (
            "table_identifiability",
            fit.identifiability,
            "Identifiability: what the data determine, without priors",
        ),
    ):
        if content:
            yield content_table(name, content, f"{caption}.", FIT)
    if any(determined > 0 for determined in fit.residual_scale.determined.values()):
        yield residual_scale_table(fit.residual_scale)


def closure_section(files: RunFiles, draw: Draw) -> Section:
    def make() -> Iterable[Content]:
        closure = files.read(CLOSURE, Closure)
        yield draw(closure_figure(closure))
        if closure.failures:
            yield failure_table(closure)
        yield closure_table(closure)
        if closure.summary.rule.rows:
            yield rule_table(closure)
        if summary := closure.summary.model_extra:
            yield content_table("table_closure_summary", summary, "Summary of the closure.", CLOSURE)

    chapter = Chapter(files)
    chapter.add("Closure", [CLOSURE], make)
    return chapter.close(
        "closure",
        "Closure",
        "Where the flavour of every jet of the pseudo-data is known, the calibrated simulation must give "
        "its efficiencies "
        "back, per flavour; a held-out region took no part in any fit.",
    )


def evaluation_section(files: RunFiles, draw: Draw) -> Section:
    def make() -> Iterable[Content]:
        evaluation = files.read(EVALUATION, Evaluation)
        yield draw(evaluation_figure(evaluation))
        yield evaluation_table(evaluation)

    chapter = Chapter(files)
    chapter.add("Maps side by side", [EVALUATION], make)
    return chapter.close(
        "evaluation",
        "Calibration maps side by side",
        "Families of maps from the same scores, fractions and seed, and classic references that were told "
        "the true flavours of the control regions' data, which no measurement has.",
    )


def detector_section(files: RunFiles, draw: Draw) -> Section:
    def make() -> Iterable[Content]:
        posterior = files.read(POSTERIOR, Posterior)
        yield draw(corner_figure(posterior))
        yield detector_table(posterior)
        yield predictive_table(posterior)
        if posterior.generator is not None:
            yield generator_table(posterior.generator)
        if posterior.chain or posterior.ensemble or posterior.set_posterior:
            yield detector_checks_table(posterior)
        if posterior.chain:
            caption = "The Markov chain of the same likelihood, in σ of the posterior."
            yield content_table("table_chain", posterior.chain, caption, POSTERIOR)

    chapter = Chapter(files)
    chapter.add("Detector", [POSTERIOR], make)
    return chapter.close(
        "detector",
        "Detector",
        "What the detector does differently in data than in simulation, inferred from tracks on the negative "
        "side of the signed impact-parameter significance, which carry little lifetime. The simulation is "
        "corrected by the mean of the posterior before the map is fitted.",
    )


def discriminant_section(files: RunFiles, draw: Draw) -> Section:
    def make() -> Iterable[Content]:
        arrays = files.arrays(DISCRIMINANTS)
        regions = regions_of(arrays)
        if not regions:
            raise DataError("no array 'data/<region>'", where=DISCRIMINANTS)
        for number, region in enumerate(regions):
            histograms = region_histograms(arrays, region)
            yield draw(discriminant_figure(histograms, name=f"discriminant_{number}_{slug(region)}"))

    chapter = Chapter(files)
    chapter.add("Discriminants", [DISCRIMINANTS], make)
    return chapter.close("discriminants", "Discriminant in every region, before and after")


def composition_section(files: RunFiles, draw: Draw) -> Section:
    def make() -> Iterable[Content]:
        composition = files.read(COMPOSITION, Composition)
        yield draw(composition_figure(composition))
        yield composition_table(composition)
        if composition.directions:
            yield content_table(
                "table_directions",
                composition.directions,
                "Directions that the data hardly determine.",
                COMPOSITION,
            )

    chapter = Chapter(files)
    chapter.add("Composition", [COMPOSITION], make)
    return chapter.close("composition", "Flavour composition")


def tagger_section(files: RunFiles, tagger: str, draw: Draw) -> Section:
    def rejections() -> Iterable[Content]:
        metrics = files.read(TAGGER_METRICS, TaggerMetrics)
        yield rejection_table(metrics)
        if metrics.response:
            yield response_table(metrics)
        if metrics.summary:
            yield content_table("table_tagger", metrics.summary, "Summary of the tagger.", TAGGER_METRICS)

    chapter = Chapter(files)
    chapter.add(
        "Rejection before and after the joint stage",
        [ROC_BEFORE_AFTER],
        lambda: [draw(roc_figure(files.arrays(ROC_BEFORE_AFTER), tagger=tagger))],
    )
    chapter.add(
        "ROC of the tagger before the joint stage",
        [ROC],
        lambda: [draw(trained_roc_figure(files.arrays(ROC), tagger=tagger))],
    )
    chapter.add("Rejections", [TAGGER_METRICS], rejections)
    chapter.add("Training curve", [METRICS], lambda: [draw(training_figure(files.metrics()))])
    chapter.add(
        "Course of the joint stage",
        [JOINT],
        lambda: [
            content_table("table_joint", read_json(files.path / JOINT), "Course of the joint stage.", JOINT)
        ],
    )
    return chapter.close("tagger", "Tagger")


def correlation_section(files: RunFiles, scale_factors: ScaleFactors, draw: Draw) -> Section:
    chapter = Chapter(files)
    chapter.add("Correlation matrix", [], lambda: [draw(correlation_figure(scale_factors))])
    return chapter.close("correlation", "Correlation of the scale factors")


def provenance_section(files: RunFiles) -> Section:
    def provenance() -> Iterable[Content]:
        content: Any = read_json(files.path / PROVENANCE)
        if not isinstance(content, Mapping):
            raise DataError("not a JSON object", where=PROVENANCE)
        yield content_table("table_provenance", content, "Provenance.", PROVENANCE, folded=False)

    chapter = Chapter(files)
    chapter.add(
        "Configuration",
        [CONFIGURATION],
        lambda: [PageText("Resolved configuration", files.text(CONFIGURATION), CONFIGURATION)],
    )
    chapter.add("Provenance", [PROVENANCE], provenance)
    return chapter.close("provenance", "Configuration and provenance")
