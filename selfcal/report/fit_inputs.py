"""What the report reads of a fit: pulls, impacts, scans, pairs of jets, coverage in toys."""

from __future__ import annotations

from typing import Any

from selfcal.report.inputs import Content


class NuisancePull(Content):
    name: str
    value: float
    uncertainty: float


class GoodnessOfFit(Content):
    statistic: float
    ndf: float
    p_value: float | None = None


class ResidualScale(Content):
    """By flavour; both are one and zero where the widths are the configured ones."""

    factor: dict[str, float] = {}
    determined: dict[str, float] = {}
    settled: bool = True


class Fit(Content):
    pulls: list[NuisancePull] = []
    goodness_of_fit: GoodnessOfFit | None = None
    residual_scale: ResidualScale = ResidualScale()
    certificate: dict[str, Any] = {}
    identifiability: dict[str, Any] = {}
    variations: dict[str, Any] = {}


class Refit(Content):
    up: float
    down: float


class Impact(Content):
    parameter: str
    group: str
    impact: float
    pull: float
    constraint: float
    refit: Refit | None = None


class ImpactsOfRow(Content):
    row: int
    total: float
    impacts: list[Impact]


class ImpactTable(Content):
    scale_factors: list[ImpactsOfRow]


class ProfileScan(Content):
    """Twice the rise of −ln L of one scale factor, or the reason why there is none."""

    row: int
    points: list[float] = []
    rise: list[float] = []
    best: float | None = None
    sigma: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    error: str | None = None


class Scans(Content):
    scans: list[ProfileScan]


class PairRow(Content):
    flavour: str
    working_point: float
    pt_gev: tuple[float, float]
    abs_eta: tuple[float, float]
    value: float
    total: float


class TwoJets(Content):
    blinded: bool = False
    pairs: float
    goodness_of_fit: GoodnessOfFit
    rows: list[PairRow]
    single_jets: list[PairRow]


class CoverageRow(Content):
    row: int
    judged: bool
    pull_mean: float
    pull_width: float
    coverage_68: float
    coverage_95: float
    exceeded: list[str] = []


class Coverage(Content):
    rows: list[CoverageRow]
    summary: dict[str, Any] = {}
