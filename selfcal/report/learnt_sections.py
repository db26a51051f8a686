"""The chapters about what networks learnt beside the calibration: efficiencies, and the profile
likelihood."""

from __future__ import annotations

from collections.abc import Iterable

from selfcal.report.figures.learnt import efficiency_figure, profile_figure
from selfcal.report.html import Section
from selfcal.report.inputs import EFFICIENCY_CLOSURE, PROFILE_LIKELIHOOD, RunFiles, ScaleFactors
from selfcal.report.learnt import EfficiencyClosure, ProfileLikelihood, efficiency_chi2_table, profile_tables
from selfcal.report.sections import Chapter, Content, Draw


def efficiency_section(files: RunFiles, draw: Draw) -> Section:
    """Closure of the efficiencies of single jets, beside the two-dimensional map."""

    def make() -> Iterable[Content]:
        closure = files.read(EFFICIENCY_CLOSURE, EfficiencyClosure)
        yield draw(efficiency_figure(closure))
        yield efficiency_chi2_table(closure)

    chapter = Chapter(files)
    chapter.add("Efficiencies of single jets", [EFFICIENCY_CLOSURE], make)
    return chapter.close(
        "efficiencies",
        "Efficiencies of single jets",
        "The probability of a simulated jet to pass a working point, given pT, η, φ, flavour and the jets "
        "around it: weights for events of which no jet need pass. A map in pT and |η| knows none.",
    )


def profile_section(files: RunFiles, scale_factors: ScaleFactors, draw: Draw) -> Section:
    """The exported profile likelihood, and how exact it is."""

    def make() -> Iterable[Content]:
        profile = files.read(PROFILE_LIKELIHOOD, ProfileLikelihood)
        yield draw(profile_figure(profile))
        yield from profile_tables(profile, scale_factors)

    chapter = Chapter(files)
    chapter.add("Profile likelihood as a network", [PROFILE_LIKELIHOOD], make)
    return chapter.close("profile_likelihood", "Profile likelihood as a network")
