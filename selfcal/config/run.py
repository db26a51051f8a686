"""The configuration of one run, in the order of the pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, Positive, Probability
from selfcal.config.calibration import CalibrationConfig
from selfcal.config.closure import ClosureConfig
from selfcal.config.detector_parameters import DetectorParameters
from selfcal.config.efficiency_map import EfficiencyMapConfig
from selfcal.config.evaluation import EvaluationConfig
from selfcal.config.fit import ExportConfig, FitConfig
from selfcal.config.inference import InferenceConfig
from selfcal.config.neural_profile import NeuralProfileConfig
from selfcal.config.report import ReportConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.config.training import TrainingConfig


class World(Configured):
    """A detector and a generator setting: what nature (or the simulation) does."""

    detector: DetectorParameters = DetectorParameters()
    pythia: tuple[str, ...] = ()


class DataConfig(Configured):
    """Which datasets, and where. Card paths are relative to the configuration file;
    ``root`` is the folder to which relative file names in the cards refer.

    The folds (train, derive, measure) are shared out separately: simulation needs jets to
    train on, data are most precious where they measure.

    ``bootstrap`` numbers a resampling of the data: each event counts as often as a Poisson law of mean one
    says (0: the data as they are; truth samples always are).

    ``changes`` are laid over the data cards whose name matches a pattern, such as
    ``{"data_*": {generate: {jets: 5000}}}``: key by key, later patterns over earlier ones.
    """

    cards: tuple[str, ...]
    root: str | None = None
    changes: dict[str, dict[str, Any]] = {}
    bootstrap: Annotated[int, Field(ge=0)] = 0
    simulation_folds: tuple[Probability, Probability, Probability] = (0.5, 0.2, 0.3)
    data_folds: tuple[Probability, Probability, Probability] = (0.2, 0.4, 0.4)
    pt_gev_min: Positive = 20.0
    pt_gev_max: Positive = 250.0
    abs_eta_max: Positive = 2.5

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.cards:
            raise ValueError("'cards' is empty: a run needs at least one data card")
        for name in ("simulation_folds", "data_folds"):
            if abs(sum(getattr(self, name)) - 1) > 1e-6:
                raise ValueError(f"'{name}' must add up to 1, found {sum(getattr(self, name)):g}")
        if self.pt_gev_min >= self.pt_gev_max:
            raise ValueError(
                f"'pt_gev_min' ({self.pt_gev_min:g}) must be below 'pt_gev_max' ({self.pt_gev_max:g})"
            )
        return self

    def folds_for(self, role: str) -> tuple[float, float, float]:
        """The shares of the folds in simulation or in data."""
        return self.simulation_folds if role == "simulation" else self.data_folds


class GenerateConfig(Configured):
    """Worlds to generate, how many worker processes do it (0: one per core), and a folder
    for generated collisions that several runs share (default: inside the run).

    ``scale`` multiplies the number of jets of the data cards whose name matches a pattern, such as
    ``{"data_*": 0.5}``; all patterns that match count.
    """

    workers: Annotated[int, Field(ge=0)] = 0
    cache: str | None = None
    scale: dict[str, Positive] = {}
    worlds: dict[str, World] = {"nominal": World()}


class RunConfig(Configured):
    """Everything that decides the numbers of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0)] = 1
    data: DataConfig
    generate: GenerateConfig = GenerateConfig()
    tagger: TaggerConfig = TaggerConfig()
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    fit: FitConfig = FitConfig()
    export: ExportConfig = ExportConfig()
    closure: ClosureConfig = ClosureConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    efficiency_map: EfficiencyMapConfig = EfficiencyMapConfig()
    neural_profile: NeuralProfileConfig = NeuralProfileConfig()

    @model_validator(mode="after")
    def _separators_need_tracks(self) -> Self:
        if self.calibration.composition.separators and self.tagger.kind == "scores":
            raise ValueError(
                "'calibration.composition.separators' are made from tracks, which 'tagger.kind: scores' "
                "does not read; leave them out"
            )
        return self

    @property
    def training_seed(self) -> int:
        """Of initial weights, batches and varied detectors of the training."""
        return self.seed if self.training.seed is None else self.training.seed

    @property
    def joint_training(self) -> bool:
        """Whether the tagger is trained together with its calibration: never where its scores are given."""
        return self.calibration.joint.enabled and self.tagger.kind != "scores"

    @property
    def calibration_in_use(self) -> CalibrationConfig:
        """``calibration``, with the narrower priors of the maps where the detector is inferred."""
        if not self.inference.enabled:
            return self.calibration
        scale, wide = self.inference.map_prior_scale, self.calibration
        maps = {"displacement_scale": scale * wide.map.displacement_scale}
        composition = {"map_scale": scale * wide.composition.map_scale}
        return wide.model_copy(
            update={
                "map": wide.map.model_copy(update=maps),
                "composition": wide.composition.model_copy(update=composition),
            }
        )

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        data, fit, joint = self.data, self.fit, self.calibration.joint
        if self.tagger.kind == "scores" and joint.enabled and "enabled" in joint.model_fields_set:
            raise ValueError(
                "'calibration.joint.enabled' cannot be true with 'tagger.kind: scores': "
                "given scores cannot be trained"
            )
        if self.tagger.kind == "scores" and self.inference.enabled:
            raise ValueError(
                "'inference.enabled' cannot be true with 'tagger.kind: scores': "
                "given scores cannot follow tracks that are changed"
            )
        if fit.pt_gev_edges[0] < data.pt_gev_min or fit.pt_gev_edges[-1] > data.pt_gev_max:
            raise ValueError(
                f"'fit.pt_gev_edges' {list(fit.pt_gev_edges)} must lie within 'data.pt_gev_min' "
                f"({data.pt_gev_min:g}) and 'data.pt_gev_max' ({data.pt_gev_max:g})"
            )
        if fit.abs_eta_edges[-1] > data.abs_eta_max:
            raise ValueError(
                f"'fit.abs_eta_edges' {list(fit.abs_eta_edges)} must not exceed 'data.abs_eta_max' "
                f"({data.abs_eta_max:g})"
            )
        return self
