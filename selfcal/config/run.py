"""The configuration of one run, in the order of the pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured
from selfcal.config.card import FlavourName
from selfcal.config.external import ExternalPrior
from selfcal.generate.theta import DetectorParameters
from selfcal.sbi.parameters import PRIORS

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class World(Configured):
    """A detector and a generator setting: what nature (or the simulation) does."""

    detector: DetectorParameters = DetectorParameters()
    pythia: tuple[str, ...] = ()


class DataConfig(Configured):
    """Which datasets, and where. Card paths are relative to the configuration file;
    ``root`` is the folder to which relative file names in the cards refer.

    The folds (train, derive, measure) are shared out separately: simulation needs jets to
    train on, data are most precious where they measure.
    """

    cards: tuple[str, ...]
    root: str | None = None
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
    for generated collisions that several runs share (default: inside the run)."""

    workers: Annotated[int, Field(ge=0)] = 0
    cache: str | None = None
    worlds: dict[str, World] = {"nominal": World()}


TAGGER_SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "width": 64,
        "layers": 3,
        "heads": 4,
        "feedforward_width": 128,
        "origin_widths": (64,),
        "vertex_widths": (32,),
    },
    "medium": {
        "width": 128,
        "layers": 3,
        "heads": 8,
        "feedforward_width": 256,
        "origin_widths": (128, 64, 32),
        "vertex_widths": (128, 64, 32),
    },
    "gn2": {
        "width": 256,
        "layers": 4,
        "heads": 8,
        "feedforward_width": 512,
        "origin_widths": (128, 64, 32),
        "vertex_widths": (128, 64, 32),
    },
}
"""What ``tagger.size`` stands for: about 0.1, 0.5 and 2.3 million parameters as a transformer."""


class CharmDiscriminant(Configured):
    """Background of D_c = ln[p_c / (f_b p_b + f_tau p_tau + (1 - f_b - f_tau) p_light)]; c efficiencies."""

    b_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3
    tau_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    working_points: tuple[Probability, ...] = (0.25, 0.40, 0.50)


class TauDiscriminant(Configured):
    """Background of D_tau = ln[p_tau / (f_b p_b + f_c p_c + (1 - f_b - f_c) p_light)]; tau efficiencies."""

    b_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    charm_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    working_points: tuple[Probability, ...] = (0.50, 0.70, 0.85)


class TaggerConfig(Configured):
    """The network from tracks to flavours (see ``selfcal.tagger``): a transformer, or one of the simpler
    ones to compare it with: Deep Sets (DIPS) or a recurrent network (RNNIP-like). Or ``kind: scores``:
    an existing tagger, whose scores are in the files under the name that each data card gives; then
    nothing is trained.

    ``size`` sets every width and depth that is not given; see :data:`TAGGER_SIZES`.
    ``origin_widths`` and ``vertex_widths`` are the hidden layers of the two heads on tracks.
    ``heads``, ``feedforward_width`` and ``attention_bias`` concern the transformer only; the last lets
    tracks attend to each other by their distance, k_T, momentum share and mass.
    With ``vertex_fit``, ``fitted_vertices`` secondary vertices are fitted to the tracks of every jet, with
    weights from the two heads on tracks, and what the fits find helps to tell the flavour. The tracks are
    helices in a solenoid of ``field_tesla`` (ATLAS 2, CMS 3.8), or straight lines if that is zero.
    With ``regress_pt`` the tagger also learns ln(true pT / pT) of the jet, where files give the true one.
    ``charm_fraction`` and ``tau_fraction`` are the background of D_b; ``charm`` and ``tau`` describe D_c
    and D_tau, with working points of their own.
    """

    kind: Literal["transformer", "deep_sets", "recurrent", "scores"] = "transformer"
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")] = "SelfCal"
    size: Literal["small", "medium", "gn2"] = "small"
    width: PositiveInt = 64
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    feedforward_width: PositiveInt = 128
    origin_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    vertex_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32,)
    attention_bias: bool = False
    regress_pt: bool = False
    vertex_fit: bool = False
    fitted_vertices: PositiveInt = 2
    field_tesla: Annotated[float, Field(ge=0)] = 2.0
    latent: PositiveInt = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    charm_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    tau_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    charm: CharmDiscriminant = CharmDiscriminant()
    tau: TauDiscriminant = TauDiscriminant()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**TAGGER_SIZES.get(str(given.get("size", "small")), {}), **given}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_bias and self.kind != "transformer":
            raise ValueError(f"'attention_bias' is for 'kind: transformer', found 'kind: {self.kind}'")
        if self.width % self.heads:
            raise ValueError(f"'width' ({self.width}) must be a multiple of 'heads' ({self.heads})")
        if self.charm_fraction + self.tau_fraction >= 1:
            raise ValueError("'charm_fraction' and 'tau_fraction' must add up to less than 1")
        return self


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
    """

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 256
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gradient_clip: Positive = 1.0
    origin_loss_weight: Annotated[float, Field(ge=0)] = 0.5
    vertex_loss_weight: Annotated[float, Field(ge=0)] = 1.5
    response_loss_weight: Annotated[float, Field(ge=0)] = 1.0
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
    """Stage 2: the tagger sees the data-versus-simulation penalty, for a few epochs.

    ``penalty_weight`` times the penalty of every region above its noise floor is added to the tagger's loss
    (``constraint: fixed``), or that times a multiplier which grows, by ``multiplier_rate`` for each unit of
    excess, until the region is at its floor (``multiplier``: the modified differential multiplier method,
    with ``multiplier_damping``). An ``adversary`` acts in regions where one flavour has a prior fraction of
    ``purity_min`` or more. An epoch that costs more than the part ``auc_loss_max`` of the AUC of b
    against light, or most of what tells any other two flavours apart, is undone.

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
    penalty_weight: Annotated[float, Field(ge=0)] = 1.0
    constraint: Literal["fixed", "multiplier"] = "fixed"
    multiplier_rate: Positive = 1.0
    multiplier_damping: Annotated[float, Field(ge=0)] = 10.0
    critic_learning_rate: Positive = 3e-3
    purity_min: Annotated[float, Field(gt=0, le=1)] = 0.6
    auc_loss_max: Annotated[float, Field(gt=0, lt=1)] = 0.01
    vary_detector: bool = False
    consistency_weight: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.consistency_weight and not self.vary_detector:
            raise ValueError("'consistency_weight' compares two detectors: set 'vary_detector: true' with it")
        return self


class MapConfig(Configured):
    """The calibration map T(z | pT, |eta|) of each flavour.

    ``family``: ``flow`` (affine, then splines), ``residual`` (z + g(z, c), no inverse), ``brenier`` (gradient
    of a convex function: optimal transport by construction), ``switch`` (one flow for both samples; not a map
    of small displacement) or ``identity``. ``structure`` and ``library`` concern the splines of ``flow`` and
    ``switch``. ``fit_by: auto`` is the mixture likelihood where the family has an inverse, else the distance
    that also fits the composition (``divergence``).
    ``displacement_scale`` is how far a detector plausibly moves a jet, in standard deviations
    of the scores; moving all jets of a flavour that far costs the log-likelihood half of
    ``displacement_weight``.
    """

    family: Literal["flow", "residual", "brenier", "switch", "identity"] = "flow"
    library: Literal["zuko", "nflows"] = "zuko"
    structure: Literal["coupling", "autoregressive"] = "coupling"
    fit_by: Literal["auto", "likelihood", "divergence"] = "auto"
    transforms: PositiveInt = 1
    hidden_width: PositiveInt = 32
    spline_bins: PositiveInt = 8
    displacement_scale: Positive = 0.15
    displacement_weight: Positive = 150.0
    steps: PositiveInt = 300
    batch_size: PositiveInt = 1024
    learning_rate: Positive = 3e-3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.structure == "autoregressive" and self.library != "zuko":
            raise ValueError(f"'structure: autoregressive' is by zuko only, found 'library: {self.library}'")
        if self.family == "residual" and self.fit_by == "likelihood":
            raise ValueError("'family: residual' has no inverse, which 'fit_by: likelihood' needs")
        return self

    @property
    def by_likelihood(self) -> bool:
        """Whether the map is fitted by the mixture likelihood, not by a distance between samples."""
        return self.fit_by == "likelihood" or (self.fit_by == "auto" and self.family != "residual")


class CompositionConfig(Configured):
    """The flavour fractions of every region, from the bulk of the scores.

    ``map_scale`` is the prior width of the stiff maps fitted with them, in standard deviations.
    ``relative_floor`` is added in quadrature to the bootstrap spread of each fraction
    before it constrains the map: what the bulk distance itself may be wrong by.
    """

    relative_floor: Annotated[float, Field(ge=0, lt=1)] = 0.05
    map_scale: Positive = 0.1
    steps: PositiveInt = 250
    batch_size: PositiveInt = 512
    learning_rate: Positive = 2e-2


class BaseDensityConfig(Configured):
    """The simulation's density p(z | pT, |eta|) of each flavour."""

    transforms: PositiveInt = 3
    hidden_width: PositiveInt = 48
    spline_bins: PositiveInt = 8
    steps: PositiveInt = 600
    batch_size: PositiveInt = 512
    learning_rate: Positive = 2e-3


class CalibrationConfig(Configured):
    """Stages 1 and 3: composition, then map, then bootstrap replicas."""

    base_density: BaseDensityConfig = BaseDensityConfig()
    composition: CompositionConfig = CompositionConfig()
    map: MapConfig = MapConfig()
    joint: JointConfig = JointConfig()
    bootstraps: Annotated[int, Field(ge=2)] = 10
    bootstrap_steps: PositiveInt = 60
    workers: Annotated[int, Field(ge=0)] = 0


class InferenceConfig(Configured):
    """What the detector does differently in data, inferred before the map from tracks that carry
    little lifetime (train fold), and taken over into the simulation.

    ``prior_width`` changes prior widths of single parameters. ``modelling_error`` is the relative error
    of every bin, ``multiplicity_error`` that of the number of tracks per jet: what the generator may be
    wrong by. ``points`` is the number of detectors simulated for the emulator, ``jets_per_region`` the
    largest number of simulated jets of a region used for it. ``chain_check`` compares the posterior with a
    Markov chain where emcee is installed. ``map_prior_scale`` multiplies the prior widths of the maps
    (``calibration.map.displacement_scale``, ``calibration.composition.map_scale``): once the detector is
    corrected, the map has only the remainder to explain.
    """

    enabled: bool = False
    model: Literal["smearing"] = "smearing"
    points: PositiveInt = 160
    jets_per_region: PositiveInt = 40_000
    prior_width: dict[str, Positive] = {}
    modelling_error: Annotated[float, Field(ge=0)] = 0.02
    multiplicity_error: Annotated[float, Field(ge=0)] = 0.03
    chain_check: bool = True
    map_prior_scale: Annotated[float, Field(gt=0, le=1)] = 1 / 3

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := sorted(set(self.prior_width) - set(PRIORS)):
            raise ValueError(f"'prior_width' names {unknown}, known are {list(PRIORS)}")
        return self


class FitConfig(Configured):
    """Templates, likelihood and scale factors on the measure fold.

    Flavours of ``free_flavours`` have a free shape in each bin of pT and |eta|; the shape of the others
    may move by the relative ``residual_width`` in each bin, beside the uncertainties of the map.
    ``extrapolation_fraction`` of the calibration's shift is the uncertainty of carrying it from
    the reference region of a flavour to another region. ``fix_reference_yield`` fixes the yield
    of the channels where a free flavour is measured; with a free yield the fit is degenerate.

    Runs on real data are blinded until ``unblind`` is true: their results are those expected from simulation
    (Asimov data), and every file of the fit says so. Pseudo-data, whose truth is known, are not blinded.
    ``force`` writes the results of a fit that did not converge; its certificate in ``fit.json`` says so.
    ``impacts_listed`` nuisance parameters are ranked for each scale factor in ``impacts.json``; the impacts
    of the ``impacts_refitted`` strongest ones are confirmed by two fits each. The goodness of fit is also
    given as the part of ``goodness_toys`` toy experiments that fit worse (0: without toys).

    Scale factors are given per bin of ``pt_gev_edges`` × ``abs_eta_edges``. With ``target_uncertainty``
    neighbouring bins of both are merged until the scale factor of each flavour named there, at its tightest
    working point, is expected to reach that relative statistical error. The likelihood of the scale factors
    at ``scanned_working_points`` is profiled (``scans.json``).

    ``external`` are scale factors of flavours that no region determines. ``same_sign`` names for a region the
    control sample of the same sign whose jets are subtracted from it (see ``selfcal.likelihood.same_sign``).

    In ``two_jet_region`` the pairs of jets of one event are fitted as well (``two_jets.json``), with a
    relative uncertainty ``two_jet_mixed_width`` of the simulated pairs with one b jet, and
    ``two_jet_neither_width`` of those without.

    A systematic variation whose relative shift stays below ``prune_below`` in all bins of a channel is left
    out there; ``smoothing_degree`` replaces the shifts of map models and extrapolation by polynomials of
    that degree along the discriminant. What both changed is in ``fit.json`` (``variations``).
    """

    working_points: tuple[Probability, ...] = (0.60, 0.70, 0.77, 0.85)
    working_point_region: str = "ttbar_emu"
    pt_gev_edges: tuple[Positive, ...] = (20.0, 40.0, 70.0, 250.0)
    scanned_working_points: tuple[Probability, ...] = ()
    target_uncertainty: dict[FlavourName, Probability] = {}
    abs_eta_edges: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2)] = (0.0, 2.5)
    reference_regions: dict[FlavourName, str] = {
        "b": "ttbar_emu",
        "c": "w_charm",
        "light": "dijet",
        "tau": "z_tautau",
    }
    free_flavours: tuple[FlavourName, ...] = ()
    external: tuple[ExternalPrior, ...] = ()
    same_sign: dict[str, str] = {}
    two_jet_region: str | None = None
    two_jet_mixed_width: Positive = 0.5
    two_jet_neither_width: Positive = 0.3
    map_variance_kept: Probability = 0.99
    residual_width: dict[FlavourName, Positive] = {"b": 0.10, "c": 0.10, "light": 0.3, "tau": 0.2}
    pt_shape_width: Positive = 0.10
    extrapolation_fraction: Annotated[float, Field(ge=0)] = 0.5
    split_map_model_by_pt: bool = False
    fix_reference_yield: bool = True
    unblind: bool = False
    force: bool = False
    impacts_listed: PositiveInt = 10
    impacts_refitted: Annotated[int, Field(ge=0)] = 5
    goodness_toys: Annotated[int, Field(ge=0)] = 50
    prune_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    smoothing_degree: Annotated[int, Field(ge=0, le=4)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("working_points", "pt_gev_edges", "abs_eta_edges"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise ValueError(f"'{name}' must increase strictly, found {list(values)}")
        unknown = sorted(set(self.scanned_working_points) - set(self.working_points))
        if unknown:
            raise ValueError(f"'scanned_working_points' {unknown} are not among 'working_points'")
        for prior in self.external:
            prior.numbers(len(self.working_points))
            if prior.flavour in self.free_flavours:
                raise ValueError(f"'{prior.flavour}' cannot be in 'free_flavours' and in 'external'")
        used = {*self.same_sign, *self.reference_regions.values()} & set(self.same_sign.values())
        if used or len(set(self.same_sign.values())) < len(self.same_sign):
            raise ValueError("a control sample in 'same_sign' can serve one region and nothing else")
        return self


class ExportConfig(Configured):
    """What other programs are told beside the numbers.

    ``uncorrelated_groups`` are the groups of uncertainty that are independent from one data-taking period
    to the next: those that come from counting the jets of one period, of data or of its simulation. All
    others are taken as fully correlated. ``jet_collection`` names the jets in the ATLAS-like layout.
    """

    uncorrelated_groups: tuple[str, ...] = ("statistics", "simulation_statistics", "map")
    jet_collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "AntiKt4"


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
