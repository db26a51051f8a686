"""The report stage: reads the run directory, writes ``figures/*.png``, ``*.pdf`` and ``report.html``."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal, TypeVar

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from selfcal.config.report import StyleName
from selfcal.errors import DataError
from selfcal.report import fit_sections, learnt_sections, sections
from selfcal.report.fit_inputs import Fit
from selfcal.report.headline import headline
from selfcal.report.html import Download, PageFigure, render
from selfcal.report.inputs import (
    AGAINST_TRUTH,
    CLOSURE,
    COMPOSITION,
    FIT,
    SCALE_FACTORS,
    AgainstTruth,
    Closure,
    Composition,
    Content,
    RunFiles,
    ScaleFactors,
)
from selfcal.report.style import ReportFigure, report_style
from selfcal.report.svg import inline_svg
from selfcal.report.traces import files_section
from selfcal.run.atomic import atomic_path, write_text
from selfcal.run.context import RunContext

PNG_DOTS_PER_INCH = 130
NO_DATE = {"CreationDate": None, "Creator": None, "Producer": None}
"""The same figure is the same file."""
Model = TypeVar("Model", bound=Content)


def run_report(context: RunContext) -> list[Path]:
    """Write the report of a run (see :func:`build_report`)."""
    return build_report(context.directory.path, context.config.report.style)


def build_report(run_path: Path, style: StyleName | None = None) -> list[Path]:
    """Write the figures and the self-contained page of the run in ``run_path``.

    ``style`` is by default that of the run's configuration. Labels say "Simulation" if the run is blinded or
    the truth of its data is known: then there are none of an experiment.

    Only ``results/scale_factors.json`` is required; each other file that is absent or not in
    its promised form leaves its part out, with a sentence in the page saying why.

    Returns
    -------
    list of Path
        The PNG and PDF files and, last, ``report.html``.

    Raises
    ------
    DataError
        If the scale factors are missing or not in their format, or a file cannot be written.
    """
    files = RunFiles(run_path)
    if not files.has(SCALE_FACTORS):
        raise DataError(
            "no scale factors to report",
            where=str(run_path / SCALE_FACTORS),
            expected="a run whose fit is done",
            fix="run 'selfcal fit' first",
        )
    scale_factors = files.read(SCALE_FACTORS, ScaleFactors)
    omitted: list[str] = []
    against_truth = _optional(files, AGAINST_TRUTH, AgainstTruth, "Comparison with the truth", omitted)
    fit = _optional(files, FIT, Fit, "Goodness of fit", omitted)
    closure = _optional(files, CLOSURE, Closure, "Held-out closure", omitted)
    composition = _optional(
        files, COMPOSITION, Composition, "Flavour fractions against their priors", omitted
    )
    written: list[Path] = []

    def draw(figure: ReportFigure) -> PageFigure:
        return save_figure(figure, run_path, written)

    with report_style(style or files.style(), simulated=not files.shows_data()):
        chapters = [
            sections.scale_factor_section(files, scale_factors, against_truth, draw),
            sections.closure_section(files, draw),
            sections.evaluation_section(files, draw),
            sections.detector_section(files, draw),
            sections.discriminant_section(files, draw),
            sections.composition_section(files, draw),
            sections.pull_section(files, scale_factors, draw),
            fit_sections.uncertainty_section(files, scale_factors, draw),
            fit_sections.two_jets_section(files, scale_factors),
            fit_sections.simulations_section(files),
            learnt_sections.efficiency_section(files, draw),
            learnt_sections.profile_section(files, scale_factors, draw),
            fit_sections.limits_section(files),
            sections.correlation_section(files, scale_factors, draw),
            sections.tagger_section(files, scale_factors.tagger, draw),
            sections.provenance_section(files),
        ]
    top = headline(scale_factors, against_truth, fit, closure, composition, omitted)
    chapters.append(files_section(top, chapters, {"": run_path}))
    write_text(run_path / "report.html", render(top, chapters))
    return [*written, run_path / "report.html"]


def _optional(files: RunFiles, name: str, model: type[Model], what: str, omitted: list[str]) -> Model | None:
    if not files.has(name):
        omitted.append(sections.missing_sentence(what, name))
        return None
    try:
        return files.read(name, model)
    except DataError as error:
        omitted.append(f"{what} left out: {error.problem} ({error.where}).")
        return None


def save_figure(drawn: ReportFigure, run_path: Path, written: list[Path]) -> PageFigure:
    """Write PNG and PDF (whole or not at all) and turn the figure into inline SVG.

    Raises
    ------
    DataError
        If another figure of the page has its name.
    """
    name = sections.slug(drawn.name)
    if run_path / "figures" / f"{name}.png" in written:
        raise DataError(f"two figures are called '{name}'", where=str(run_path / "figures"))
    FigureCanvasAgg(drawn.figure)
    with warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; the page itself still shows it
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        downloads = (
            Download("image/png", f"figures/{name}.png", _drawn(drawn.figure, "png", {"Software": None})),
            Download("application/pdf", f"figures/{name}.pdf", _drawn(drawn.figure, "pdf", NO_DATE)),
        )
        svg = inline_svg(drawn.figure, name, drawn.description)
    for file in downloads:
        final = run_path / file.file
        with atomic_path(final) as temporary:
            temporary.write_bytes(file.content)
        written.append(final)
    return PageFigure(name, svg, drawn.caption, drawn.sources, downloads)


def _drawn(figure: Figure, form: Literal["png", "pdf"], metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=PNG_DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()
