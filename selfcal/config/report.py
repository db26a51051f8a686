"""How the report looks."""

from __future__ import annotations

from typing import Literal, TypeAlias

from selfcal.config.base import Configured

StyleName: TypeAlias = Literal["neutral", "atlas", "cms"]


class ReportConfig(Configured):
    """``style`` of the figures: neutral, or lettering and ticks of an experiment, whose name then stands
    above every figure. Where no data of an experiment are shown, the word "Simulation" follows the name."""

    style: StyleName = "neutral"
