"""How composition and calibration maps are fitted."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, Positive, PositiveInt
from selfcal.config.evaluation import Family, MapFamily
from selfcal.config.training import JointConfig

WITHOUT_INVERSE: frozenset[MapFamily] = frozenset({"residual"})
"""Families that promise no inverse, and so are fitted by a distance."""


class MapConfig(Configured):
    """The calibration map T(z | pT, |eta|) of each flavour.

    ``family``: ``flow`` (affine, then splines), ``residual`` (z + g(z, c), no inverse), ``brenier`` (gradient
    of a convex function: optimal transport by construction), ``switch`` (one flow for both samples; not a map
    of small displacement) or ``identity``. ``structure`` and ``library`` concern the splines of ``flow`` and
    ``switch``. ``fit_by: auto`` is the mixture likelihood where the family has an inverse, else a distance
    between simulation and data (``fit_by: distance``); ``distance`` says which: the energy distance that also
    fits the composition, sliced Wasserstein, or the maximum mean discrepancy.
    ``displacement_scale`` is how far a detector plausibly moves a jet, in standard deviations
    of the scores; moving all jets of a flavour that far costs the log-likelihood half of
    ``displacement_weight``. With ``displacement_on: splines`` only what the splines of ``flow`` move has this
    price: its affine part has a prior of its own (of width ``displacement_scale``).
    """

    family: MapFamily = "flow"
    library: Literal["zuko", "nflows"] = "zuko"
    structure: Literal["coupling", "autoregressive"] = "coupling"
    fit_by: Literal["auto", "likelihood", "distance"] = "auto"
    distance: Literal["energy", "sliced_wasserstein", "mmd"] = "energy"
    transforms: PositiveInt = 1
    hidden_width: PositiveInt = 32
    spline_bins: PositiveInt = 8
    displacement_scale: Positive = 0.15
    displacement_weight: Positive = 150.0
    displacement_on: Literal["all", "splines"] = "all"
    steps: PositiveInt = 600
    batch_size: PositiveInt = 1024
    learning_rate: Positive = 1e-2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.structure == "autoregressive" and self.library != "zuko":
            raise ValueError(f"'structure: autoregressive' is by zuko only, found 'library: {self.library}'")
        if self.family in WITHOUT_INVERSE and self.fit_by == "likelihood":
            raise ValueError(f"'family: {self.family}' has no inverse, which 'fit_by: likelihood' needs")
        if self.displacement_on == "splines" and (self.family != "flow" or not self.by_likelihood):
            raise ValueError("'displacement_on: splines' is for 'family: flow', fitted by likelihood")
        return self

    @property
    def by_likelihood(self) -> bool:
        """Whether the map is fitted by the mixture likelihood, not by a distance between samples."""
        return self.fit_by == "likelihood" or (self.fit_by == "auto" and self.family not in WITHOUT_INVERSE)


Separator = Literal["displaced_tracks", "mirrored_tracks", "displaced_mass"]
"""A number from a jet's tracks that tells charm from mis-measured light (``training/separators.py``)."""


class CompositionConfig(Configured):
    """The flavour fractions of every region, from the bulk of the scores.

    ``map_scale`` is the prior width of the stiff maps fitted with them, in standard deviations.
    ``relative_floor`` is added in quadrature to the bootstrap spread of each fraction
    before it constrains the map: what the bulk distance itself may be wrong by.
    With two ``pt_knots`` or more, the ratio of every fraction to simulation is a linear spline in ln pT with
    as many knots, whose values at neighbours differ by ``pt_variation`` of the prior's ratio; with
    one it is a constant. ``separators`` are further numbers of a jet, beside its scores, in which the bulk
    is compared. ``by: likelihood`` leaves the fractions to the likelihood of the map, with the priors of the
    data cards in place of what the bulk says.
    """

    by: Literal["distance", "likelihood"] = "distance"
    pt_knots: PositiveInt = 1
    pt_variation: Positive = 1.0
    separators: tuple[Separator, ...] = ()
    relative_floor: Annotated[float, Field(ge=0, lt=1)] = 0.05
    map_scale: Positive = 0.1
    steps: PositiveInt = 250
    batch_size: PositiveInt = 512
    learning_rate: Positive = 2e-2


class BaseDensityConfig(Configured):
    """The simulation's density p(z | pT, |eta|) of each flavour.

    ``steps`` at most: the fit of a flavour ends when a fifth of its jets (4,096 at most), set aside, no
    longer gains. Then come ``bootstrap_steps`` with all jets, at three tenths of the rate, but no more than
    half as many as before.
    """

    transforms: PositiveInt = 3
    hidden_width: PositiveInt = 48
    spline_bins: PositiveInt = 4
    steps: PositiveInt = 3000
    batch_size: PositiveInt = 512
    learning_rate: Positive = 5e-3


class CalibrationConfig(Configured):
    """Stages 1 and 3: composition, then map, then bootstrap replicas.

    The fits of densities and maps end with a leg of ``bootstrap_steps``: on top of the densities' steps (see
    there), and among those of the maps (all of them, if they are no more), with a learning rate that rises
    and falls once more. This leg is what every replica does again with its own events, from where the nominal
    fit began it and with the same minibatches; the shorter, the less a replica forgets of that fit. The
    composition, and maps that are fitted by a distance, go on from the nominal fit for as many steps. With
    ``composition.by: likelihood`` replicas do all steps of the maps.

    ``seeds`` is the number of further fits of densities and maps that start from other initial weights:
    their spread is an uncertainty of the map. So is what maps of other ``families`` differ by.
    """

    base_density: BaseDensityConfig = BaseDensityConfig()
    composition: CompositionConfig = CompositionConfig()
    map: MapConfig = MapConfig()
    joint: JointConfig = JointConfig()
    bootstraps: Annotated[int, Field(ge=2)] = 100
    bootstrap_steps: PositiveInt = 200
    seeds: Annotated[int, Field(ge=0)] = 2
    families: tuple[Family, ...] = ()
    workers: Annotated[int, Field(ge=0)] = 0
