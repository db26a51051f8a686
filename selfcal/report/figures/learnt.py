"""Efficiencies by the distance to the nearest jet, and −2 ln λ of the network beside the exact one."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from selfcal.errors import DataError
from selfcal.report.inputs import EFFICIENCY_CLOSURE, PROFILE_LIKELIHOOD
from selfcal.report.learnt import EfficiencyClosure, ProfileLikelihood, by_distance
from selfcal.report.style import (
    AFTER_COLOUR,
    BEFORE_COLOUR,
    INK,
    ReportFigure,
    experiment_label,
    flavour_label,
    percent,
)


def efficiency_figure(closure: EfficiencyClosure) -> ReportFigure:
    """One panel per flavour: counted, network with its band, and two-dimensional map.

    Raises
    ------
    DataError
        If no jets were judged in the regions that taught.
    """
    panels = [(flavour, bins) for flavour in closure.flavours if (bins := by_distance(closure, flavour))]
    if not panels:
        raise DataError("no jets to judge efficiencies with", where=EFFICIENCY_CLOSURE)
    figure = Figure(figsize=(3.1 * len(panels), 3.4), layout="constrained")
    for column, (flavour, bins) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        place = np.arange(len(bins))
        counted, network, grid, band, error = (
            np.array([one[name] for one in bins]) for name in ("counted", "network", "grid", "band", "error")
        )
        axes.bar(place, 2 * band, bottom=network - band, width=0.8, color=AFTER_COLOUR, alpha=0.25, lw=0)
        axes.hlines(network, place - 0.4, place + 0.4, color=AFTER_COLOUR, label="network")
        axes.hlines(grid, place - 0.4, place + 0.4, color=BEFORE_COLOUR, ls="--", label="map in pT, |η|")
        axes.errorbar(place, counted, error, fmt="o", color=INK, ms=4, label="counted")
        edges = [f"{one['low']:g}" for one in bins]
        axes.set_xticks(place - 0.5, edges)
        low = float(min((counted - error).min(), (network - band).min(), grid.min()))
        high = float(max((counted + error).max(), (network + band).max(), grid.max()))
        axes.set_ylim(max(low - 0.2 * (high - low), 0.0), high + 0.5 * (high - low))
        axes.set_title(flavour_label(flavour), loc="right")
        axes.set_xlabel("ΔR to the nearest jet, from")
        if column == 0:
            axes.set_ylabel("Efficiency")
            axes.legend(loc="upper left")
            experiment_label(axes)
    return ReportFigure(
        name="efficiency_by_distance",
        figure=figure,
        caption=(
            f"Efficiency at the {percent(closure.shown)} working point in {closure.simulation} simulation by "
            "the distance to the nearest jet (the last bin holds jets that are alone), in events that taught "
            f"nothing; band: spread of {closure.bags} bags, error bars: counting."
        ),
        sources=(EFFICIENCY_CLOSURE,),
        description=f"Efficiencies by distance to the nearest jet for {len(panels)} flavours",
    )


def profile_figure(profile: ProfileLikelihood) -> ReportFigure:
    """Error of −2 ln λ against its exact value, of network and parabola.

    Raises
    ------
    DataError
        If there is no exact point.
    """
    exact, network, parabola = (
        np.array(getattr(profile.judged, name)) for name in ("exact", "network", "parabola")
    )
    if not len(exact):
        raise DataError("no exact points of the profile likelihood", where=PROFILE_LIKELIHOOD)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        exact, parabola - exact, "o", mfc="none", ms=4, color=BEFORE_COLOUR, label="best fit, covariance"
    )
    axes.plot(exact, network - exact, "o", ms=4, color=AFTER_COLOUR, label="network")
    axes.axhline(0, color=INK, lw=0.8)
    axes.axvline(profile.accuracy.rise_max, color=INK, lw=0.8, ls=":")
    reach = 1.1 * float(np.abs(np.concatenate([network - exact, parabola - exact])).max())
    axes.set_ylim(-reach, 1.3 * reach)
    axes.set_xlabel("−2 ln λ, exact")
    axes.set_ylabel("difference to exact")
    axes.legend(loc="upper right")
    experiment_label(axes)
    return ReportFigure(
        name="profile_likelihood",
        figure=figure,
        caption=(
            f"The profile likelihood of {len(profile.inputs)} scale factors at {len(exact)} points that the "
            "network has not seen, against the exact one; the dotted line ends the range that it is made for."
        ),
        sources=(PROFILE_LIKELIHOOD,),
        description="Differences of network and parabola to the exact profile likelihood",
    )
