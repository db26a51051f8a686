"""What the report reads: the files of a run directory, checked against the formats they promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from selfcal.config.report import ReportConfig, StyleName
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, read_json
from selfcal.run.metrics import read_metrics

SCALE_FACTORS = "results/scale_factors.json"
AGAINST_TRUTH = "results/scale_factors_against_truth.json"
TWO_ROADS = "results/two_roads.json"
CLOSURE = "results/closure.json"
FIT = "results/fit.json"
IMPACTS = "results/impacts.json"
SCANS = "results/scans.json"
TWO_JETS = "results/two_jets.json"
GENERATORS = "results/generators.json"
HIGH_PT = "results/high_pt.json"
IDENTIFIABILITY = "results/identifiability.json"
SUPPORT = "results/support.json"
REGION_DEPENDENCE = "results/region_dependence.json"
COVERAGE = "results/coverage.json"
DETECTOR_TREATMENTS = "results/detector_treatments.json"
COMPOSITION = "results/composition.json"
TAGGER_METRICS = "results/tagger_metrics.json"
DISCRIMINANTS = "results/discriminants.safetensors"
ROC_BEFORE_AFTER = "results/roc_before_after.safetensors"
ROC = "results/roc.safetensors"
JOINT = "results/joint.json"
POSTERIOR = "results/posterior.json"
EVALUATION = "results/evaluation.json"
EFFICIENCY_CLOSURE = "results/efficiency_closure.json"
PROFILE_LIKELIHOOD = "results/profile_likelihood.json"
METRICS = "metrics.jsonl"
CONFIGURATION = "config.resolved.yaml"
PROVENANCE = "provenance.json"

WRITTEN_BY: dict[str, str] = {
    SCALE_FACTORS: "'selfcal fit' writes",
    AGAINST_TRUTH: "a run writes where the truth is known",
    TWO_ROADS: "'selfcal fit' writes",
    CLOSURE: "a run writes where the truth is known",
    FIT: "'selfcal fit' writes",
    IMPACTS: "'selfcal fit' writes",
    SCANS: "'selfcal fit' writes where fit.scanned_working_points names any",
    TWO_JETS: "'selfcal fit' writes where fit.two_jet_region is set",
    GENERATORS: "'selfcal fit' writes where a data card has 'use: alternative'",
    HIGH_PT: "'selfcal fit' writes where fit.high_pt_gev_edges is set",
    IDENTIFIABILITY: "'selfcal calibrate' writes",
    SUPPORT: "'selfcal calibrate' writes",
    REGION_DEPENDENCE: "'selfcal calibrate' writes",
    COVERAGE: "'selfcal study run coverage' writes",
    DETECTOR_TREATMENTS: "'selfcal study run sbi' writes",
    COMPOSITION: "'selfcal fit' writes",
    TAGGER_METRICS: "'selfcal train' writes",
    DISCRIMINANTS: "'selfcal fit' writes unless the run is blinded",
    ROC_BEFORE_AFTER: "'selfcal calibrate' writes when the joint stage is enabled",
    ROC: "'selfcal train' writes",
    JOINT: "'selfcal calibrate' writes when the joint stage is enabled",
    POSTERIOR: "'selfcal infer' writes where inference.enabled is true",
    EVALUATION: "'selfcal calibrate --evaluate' writes",
    EFFICIENCY_CLOSURE: "'selfcal efficiencies' writes where efficiency_map.enabled is true",
    PROFILE_LIKELIHOOD: "'selfcal profile' writes where neural_profile.enabled is true",
    METRICS: "'selfcal train' writes",
    CONFIGURATION: "'selfcal run' writes",
    PROVENANCE: "'selfcal run' writes",
}
"""What writes each file, as the end of the sentence about a missing one."""


class Content(BaseModel):
    """Part of a result file; keys the report does not show are ignored, NaN is refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class Truth(Content):
    value: float
    error: float | None = None


class ScaleFactorRow(Content):
    flavour: str
    kind: Literal["working_point", "continuous"]
    working_point: float | None = None
    bin: int | None = None
    pt_gev: tuple[float, float]
    abs_eta: tuple[float, float]
    value: float | None
    stat: float | None = None
    syst: dict[str, float | None] = {}
    total: float | None = None
    status: Literal["measured", "unmeasured", "extrapolated", "external"]
    truth: Truth | None = None
    expected_passing: float | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.status != "unmeasured" and (self.value is None or self.total is None):
            raise ValueError(f"a row with status '{self.status}' needs 'value' and 'total'")
        if self.kind == "working_point" and self.working_point is None:
            raise ValueError("a row of kind 'working_point' needs 'working_point'")
        if self.kind == "continuous" and self.bin is None:
            raise ValueError("a row of kind 'continuous' needs 'bin'")
        return self


class ScaleFactors(Content):
    tagger: str
    blinded: bool = False
    forced: bool = False
    flavours: list[str]
    working_points: list[float]
    rows: list[ScaleFactorRow]
    covariance: dict[str, Any] = {}


class Estimate(Content):
    value: float
    total: float


class RoadsRow(Content):
    row: int
    map: Estimate
    fit: Estimate
    difference: float
    difference_uncertainty: float
    compared: bool


class TwoRoads(Content):
    chi2: float
    ndf: int
    p_value: float | None = None
    rows: list[RoadsRow]


class RowPull(Content):
    row: int
    pull: float


class TruthComparison(Content):
    chi2: float
    ndf: int
    p_value: float | None = None
    max_pull: float | None = None
    rows_used: list[int] = []
    pulls: list[RowPull] = []


class AgainstTruth(TruthComparison):
    uncalibrated: TruthComparison | None = None


class ClosureRow(Content):
    region: str
    held_out: bool
    flavour: str
    working_point: float
    efficiency_data: float | None
    efficiency_simulation: float | None
    efficiency_calibrated: float | None
    ratio_uncalibrated: float | None
    ratio_corrected: float | None = None
    ratio_calibrated: float | None
    error: float | None
    map_uncertainty: float | None = None


class ClosureFailure(Content):
    region: str
    flavour: str
    working_point: float
    ratio_calibrated: float
    pull: float


class ClosureJudgement(Content):
    """A held-out row under the rule of the configuration."""

    region: str
    flavour: str
    working_point: float
    ratio_calibrated: float
    deviation_in_sigma: float | None
    closes: bool
    uncertainty_small_enough: bool
    passed: bool


class ClosureRule(Content):
    passed: bool | None = None
    rows: list[ClosureJudgement] = []


class ClosureSummary(Content):
    model_config = ConfigDict(extra="allow")

    rule: ClosureRule = ClosureRule()


class Closure(Content):
    rows: list[ClosureRow]
    summary: ClosureSummary = ClosureSummary()
    failures: list[ClosureFailure] = []


class DetectorParameter(Content):
    name: str
    unit: str = ""
    nominal: float
    prior_width: float
    mean: float
    uncertainty: float
    contraction: float


class PredictiveRow(Content):
    region: str
    histogram: str
    category: str
    chi2: float
    ndf: int
    p_value: float
    pull: float


class GeneratorRow(Content):
    region: str
    quantity: str
    chi2: float
    ndf: int
    p_value: float


class GeneratorComparison(Content):
    rows: list[GeneratorRow]
    noticed: bool
    error: float
    flagged: list[str] = []


class EnsembleSpread(Content):
    networks: int
    spread: list[float]


class AmortisedPosterior(Content):
    samples: int
    jets: int
    mean_shift: list[float]
    width_ratio: list[float]
    calibration: dict[str, Any] = {}


class Posterior(Content):
    method: Literal["binned", "neural"] = "binned"
    parameters: list[DetectorParameter]
    covariance: list[list[float]]
    predictive: list[PredictiveRow] = []
    flagged: list[str] = []
    inflation: float = 1.0
    chain: dict[str, Any] | None = None
    generator: GeneratorComparison | None = None
    ensemble: EnsembleSpread | None = None
    set_posterior: AmortisedPosterior | None = None


class CompositionRow(Content):
    region: str
    flavour: str
    prior: float
    prior_uncertainty: float
    bulk: float | None = None
    fitted: float
    uncertainty: float
    truth: float | None = None


class Composition(Content):
    regions: list[str]
    rows: list[CompositionRow]
    condition_number: float | None = None
    directions: list[Any] = []


class Rejection(Content):
    working_point: float
    flavour: str
    rejection: float | None
    error: float | None = None


class Resolution(Content):
    scale: float
    scale_error: float
    resolution: float
    resolution_error: float


class ResponseRow(Content):
    flavour: str
    jets: int
    before: Resolution
    after: Resolution
    resolution_ratio: float | None
    resolution_ratio_error: float | None


class TaggerMetrics(Content):
    """Rejections as a list of rows, or as one row per working point with a key per flavour."""

    rejections: list[Rejection]
    summary: dict[str, Any] = {}
    response: list[ResponseRow] = []

    @model_validator(mode="before")
    @classmethod
    def _from_working_points(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "rejections" in content or "working_points" not in content:
            return content
        rows = [
            {
                "working_point": row.get("working_point"),
                "flavour": flavour,
                "rejection": passing.get("rejection"),
                "error": passing.get("rejection_error"),
            }
            for row in content["working_points"]
            for flavour, passing in row.items()
            if isinstance(passing, dict)
        ]
        return {**content, "rejections": rows}


Model = TypeVar("Model", bound=Content)


@dataclass(frozen=True)
class RunFiles:
    """The run directory, read only."""

    path: Path

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read(self, name: str, model: type[Model]) -> Model:
        """Read a JSON file as ``model``; what does not fit is a :class:`DataError` naming the field."""
        try:
            return model.model_validate(read_json(self.path / name))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"not in the promised format: {first['msg']}",
                where=f"{name}, field '{field}'",
                fix="make the file again with this version of selfcal",
            ) from error

    def arrays(self, name: str) -> dict[str, NDArray[np.float64]]:
        return {
            key: np.asarray(value, dtype=np.float64) for key, value in read_arrays(self.path / name).items()
        }

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8", errors="replace")

    def style(self) -> StyleName:
        """The style of figures that the run's configuration asks for; neutral where none can be read."""
        try:
            return ReportConfig.model_validate(yaml.safe_load(self.text(CONFIGURATION))["report"]).style
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError):
            return "neutral"

    def shows_data(self) -> bool:
        """Whether scale factors are of data of an experiment: not blinded, and no truth is known."""
        if not self.has(SCALE_FACTORS) or self.has(CLOSURE):
            return False
        return not self.read(SCALE_FACTORS, ScaleFactors).blinded

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of the training and calibration log."""
        return read_metrics(self.path / METRICS)


def covariance_of_rows(scale_factors: ScaleFactors) -> tuple[list[int], NDArray[np.float64]] | None:
    """The row that each line belongs to, and the total covariance (S, S) of the scale factors.

    Reads ``{"rows": [...], "total": [[...]]}`` (or ``"matrix"`` for ``"total"``; without
    ``rows`` the matrix covers all rows in order). None where there is no matrix.

    Raises
    ------
    DataError
        If the matrix is not square or does not belong to the rows it names.
    """
    content = scale_factors.covariance
    matrix_content = content.get("total", content.get("matrix"))
    if matrix_content is None:
        return None
    rows = [int(row) for row in content.get("rows", range(len(scale_factors.rows)))]
    matrix = np.asarray(matrix_content, dtype=np.float64)
    if matrix.shape != (len(rows), len(rows)) or any(not 0 <= row < len(scale_factors.rows) for row in rows):
        raise DataError(
            f"covariance of shape {matrix.shape} for {len(rows)} of {len(scale_factors.rows)} rows",
            where=f"{SCALE_FACTORS}, field 'covariance'",
            expected="one line and one column per row",
        )
    return rows, matrix
