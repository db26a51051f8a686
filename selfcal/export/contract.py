"""What an exporter gets and gives back.

An exporter is a function of :class:`Results` that writes one format and returns :class:`Exported`. Nothing
is dropped silently: a format that cannot be written says why in ``skipped``, and what a format cannot
express is listed in ``not_expressed``; both go into the manifest.

No format has a number that means "not measured": each exporter documents what it writes for a row without
value, and it is never 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcal.config.fit import ExportConfig
from selfcal.export.rows import ScaleFactorRows
from selfcal.export.simulations import SimulationRows


@dataclass(frozen=True)
class Results:
    """The results of a run as an exporter sees them.

    Attributes
    ----------
    folder : the results folder, into which the exporter writes
    factors : the scale factors
    workspace : the likelihood, as pyhf opens it
    simulations : what alternative simulations say, where there are any
    """

    folder: Path
    factors: ScaleFactorRows
    workspace: Mapping[str, Any]
    config: ExportConfig
    simulations: SimulationRows = field(default_factory=SimulationRows)


@dataclass(frozen=True)
class Exported:
    """One format after its exporter: the files it wrote, why it wrote none, and what is missing in them."""

    format: str
    files: tuple[Path, ...]
    skipped: str | None = None
    not_expressed: tuple[str, ...] = ()
