"""How the tagger is trained: alone, and jointly with its calibration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative, Positive, PositiveInt, Probability
from selfcal.config.card import FlavourName

BestBy = Literal[
    "validation_flavour_loss",
    "validation_total_loss",
    "auc_b_light",
    "charm_rejection_70",
    "light_rejection_70",
]


class TrainingConfig(Configured):
    """Stage 0: the tagger alone, on the train fold of the simulation.

    The weights of the epoch that is best by ``best_by`` are kept; after ``patience`` epochs without a better
    one the training stops early (never, if not given). A jet's weight is multiplied by what brings the
    (pT, |eta|) spectrum of its flavour to that of ``match_kinematics_to``, in ``kinematic_bins`` quantiles
    of each and by at most ``kinematic_weight_max``; then by what gives all flavours the same total, if
    ``balance_flavours``; then by its flavour's entry of ``flavour_weights``.

    With ``vary_detector`` the losses see every jet in a detector that is drawn anew from its prior in every
    epoch, and ``consistency_weight`` adds the mean squared distance between the log-probabilities of the jet
    in that detector and in its own. In ``contrastive_epochs`` before all others, without labels, the latent
    of a jet is to be told from those of the others in its batch by that of the same jet in another detector
    (``contrastive_temperature``); several processes compare within their own shares of it.

    ``seed`` draws other initial weights, batches and detectors with the same jets; that of the run, if not
    given.
    """

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 256
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gradient_clip: Positive = 1.0
    origin_loss_weight: NotNegative = 0.5
    vertex_loss_weight: NotNegative = 1.5
    response_loss_weight: NotNegative = 1.0
    balance_flavours: bool = False
    flavour_weights: dict[FlavourName, Positive] = {}
    match_kinematics_to: FlavourName | None = None
    kinematic_bins: PositiveInt = 10
    kinematic_weight_max: Positive = 10.0
    validation_fraction: Probability = 0.1
    best_by: BestBy = "validation_flavour_loss"
    patience: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    vary_detector: bool = False
    consistency_weight: NotNegative = 0.0
    contrastive_epochs: Annotated[int, Field(ge=0)] = 0
    contrastive_temperature: Positive = 0.1
    seed: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _two_detectors(self) -> Self:
        if self.consistency_weight and not self.vary_detector:
            raise ValueError("'consistency_weight' compares two detectors: set 'vary_detector: true' with it")
        return self

    @property
    def sees_other_detectors(self) -> bool:
        """Whether any epoch needs the jets of the simulation in a second detector."""
        return self.vary_detector or self.contrastive_epochs > 0


PenaltyName = Literal[
    "energy",
    "sliced_wasserstein",
    "sinkhorn",
    "mmd",
    "histogram",
    "flow_likelihood",
    "adversary",
    "expected_variance",
]


class JointConfig(Configured):
    """Stage 2: the tagger sees the data-versus-simulation penalty, for a few epochs; its learning rate rises
    to ``learning_rate`` and falls to zero.

    ``penalty_weight`` times the penalty of every region above its noise floor is added to the tagger's loss
    (``constraint: fixed``), or that times a multiplier which grows, by ``multiplier_rate`` for each unit of
    excess, until the region is at its floor (``multiplier``: the modified differential multiplier method,
    with ``multiplier_damping``). An ``adversary`` acts in regions where one flavour has a prior fraction of
    ``purity_min`` or more. With ``before_map`` it compares data with the simulation as it is, fractions
    fitted: what is to be corrected is penalised, not what the map leaves. An epoch that costs more than the
    part ``auc_loss_max`` of the AUC of b against light, or most of what tells any other two flavours apart,
    is undone.

    With ``vary_detector``, the supervised loss sees simulation whose detector is drawn anew from its
    prior in every epoch; ``consistency_weight`` adds the mean squared distance between the scores of the
    same jet in both detectors.
    """

    enabled: bool = True
    epochs: PositiveInt = 2
    batch_size: PositiveInt = 512
    learning_rate: Positive = 1e-4
    map_learning_rate: Positive = 5e-3
    penalty: PenaltyName = "energy"
    penalty_weight: NotNegative = 1.0
    before_map: bool = False
    constraint: Literal["fixed", "multiplier"] = "fixed"
    multiplier_rate: Positive = 1.0
    multiplier_damping: NotNegative = 10.0
    critic_learning_rate: Positive = 3e-3
    purity_min: Annotated[float, Field(gt=0, le=1)] = 0.6
    auc_loss_max: Annotated[float, Field(gt=0, lt=1)] = 0.01
    vary_detector: bool = False
    consistency_weight: NotNegative = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.consistency_weight and not self.vary_detector:
            raise ValueError("'consistency_weight' compares two detectors: set 'vary_detector: true' with it")
        return self
