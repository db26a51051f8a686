"""How every figure looks: a style of mplhep, one colour per flavour, ink that follows the page.

Ink and paper are two colours found nowhere else in a figure; :mod:`selfcal.report.svg`
exchanges them for the page's own, so that one drawing serves the light and the dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import mplhep
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcal.config.report import StyleName

INK = "#0a0b0c"
PAPER = "#fdfefd"
BEFORE_COLOUR = "#8b93a0"
AFTER_COLOUR = "#2f86d6"
GOOD_COLOUR = "#3aa676"
WARNING_COLOUR = "#d9534f"

FLAVOUR_COLOURS: dict[str, str] = {"b": "#3f90da", "c": "#ffa90e", "light": "#c8553d", "tau": "#7f73b8"}
FLAVOUR_LABELS: dict[str, str] = {"b": "b jets", "c": "c jets", "light": "light jets", "tau": "τ jets"}
PT_LABEL = r"Jet $p_\mathrm{T}$ [GeV]"
NAME_LENGTH_MAX = 44

_OVERRIDES: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "selfcal",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 1.0,
    "axes.autolimit_mode": "data",
    "axes.formatter.use_mathtext": False,
    "axes.labelpad": 4,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "hatch.color": INK,
    "hatch.linewidth": 0.6,
    "font.size": 11,
    "axes.labelsize": 12,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.borderpad": 0.3,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "ytick.major.size": 6,
    "ytick.minor.size": 3,
    "xtick.major.size": 6,
    "xtick.minor.size": 3,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.subplot.wspace": 0.06,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Look:
    """One style: the name above every figure, parameters of matplotlib, slants of name and text after it."""

    name: str
    parameters: Mapping[str, Any]
    slants: tuple[str, str]


LOOKS: dict[StyleName, Look] = {
    "neutral": Look("selfcal", mplhep.style.ATLAS, ("normal", "italic")),
    "atlas": Look("ATLAS", mplhep.style.ATLAS, ("italic", "normal")),
    "cms": Look("CMS", mplhep.style.CMS, ("normal", "italic")),
}


@dataclass(frozen=True)
class _Label:
    look: Look
    simulated: bool


_label: ContextVar[_Label] = ContextVar("_label")


@dataclass(frozen=True)
class ReportFigure:
    """One drawn figure with what the reader needs to trust it.

    ``name`` is the file name without suffix, ``sources`` the files of the run directory
    from which every number in it comes, ``description`` the text for those who cannot see it.
    """

    name: str
    figure: Figure
    caption: str
    sources: tuple[str, ...]
    description: str


@contextmanager
def report_style(style: StyleName = "neutral", *, simulated: bool = True) -> Iterator[None]:
    """Draw in a style inside the block; the caller's style is left as it was.

    ``simulated``: no data of an experiment are shown, and every label says "Simulation".
    """
    look = LOOKS[style]
    parameters: Any = {**look.parameters, **_OVERRIDES}
    before = _label.set(_Label(look, simulated))
    try:
        with mpl.rc_context(parameters):
            yield
    finally:
        _label.reset(before)


def experiment_label(axes: Axes, right: str = "") -> None:
    """Write name and "Simulation" above the axes on the left, ``right`` above them on the right.

    The word is left out where :func:`report_style` was told that there are data of an experiment.
    """
    label = _label.get(_Label(LOOKS["neutral"], simulated=True))
    slants = (*label.look.slants, "normal", "normal")
    # else mplhep draws the whole figure, once to be up to date and once for the offset text
    axes.figure.stale = False
    mplhep.label.exp_label(
        exp=label.look.name,
        data=not label.simulated,
        rlabel=right,
        ax=axes,
        fontsize=(13, 12, 10.5, 8),
        fontstyle=slants,
        scilocator_adjust=False,
    )


def plain_text(name: str) -> str:
    """``name`` so that matplotlib draws it letter by letter.

    Dollar signs are kept from starting a formula, control characters (which XML forbids)
    become U+FFFD, and a long name is shortened.
    """
    letters = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if len(letters) > NAME_LENGTH_MAX:
        letters = letters[: NAME_LENGTH_MAX - 1] + "…"
    return letters.replace("$", r"\$")


def flavour_label(flavour: str) -> str:
    """``b`` to ``b jets``; an unknown flavour keeps its name."""
    return FLAVOUR_LABELS.get(flavour, plain_text(flavour))


def flavour_colour(flavour: str) -> str:
    return FLAVOUR_COLOURS.get(flavour, BEFORE_COLOUR)


def percent(fraction: float) -> str:
    """0.77 to "77 %" (with a space that does not break), decimals only where needed."""
    return f"{100 * fraction:.4g}\u00a0%"


def interval(bounds: Sequence[float]) -> str:
    """(20, 40) to "20–40"."""
    return f"{bounds[0]:g}–{bounds[1]:g}"


def limits_around(values: Sequence[float], centre: float, *, margin: float = 0.15) -> tuple[float, float]:
    """Axis limits that hold all ``values`` and ``centre`` with a margin on both sides."""
    low, high = min([*values, centre]), max([*values, centre])
    room = margin * (high - low) or 0.1
    return low - room, high + room
