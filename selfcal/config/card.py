"""Data cards: one per dataset, saying what it is, where it is and what it is made of."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured

Fraction = Annotated[float, Field(ge=0, le=1)]
FlavourName = Literal["b", "c", "light", "tau"]
ProcessName = Literal["ttbar_emu", "ttbar_ljets", "w_charm", "dijet", "z_tautau"]


class CompositionPrior(Configured):
    """Prior of a region's flavour fractions.

    The central value of flavour f is ``fractions[f]`` where given, otherwise the
    simulation's fraction; it is multiplied by ``scale[f]`` and all are then
    renormalised to one. ``relative_uncertainty`` is the Gaussian width of each.
    """

    fractions: dict[FlavourName, Fraction] = {}
    scale: dict[FlavourName, Annotated[float, Field(gt=0)]] = {}
    relative_uncertainty: Annotated[float, Field(gt=0, le=2)] = 0.25


class GenerateBlock(Configured):
    """Generate this dataset instead of reading files.

    Without ``seed`` the run's seed decides, so that another seed gives other events. Truth
    samples have one of their own: the population is the same for every run.
    """

    process: ProcessName
    world: str = "nominal"
    jets: Annotated[int, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)] | None = None


class DataCard(Configured):
    """One dataset: simulation (labelled) or data (unlabelled) of one region.

    ``use: control`` datasets derive and measure; ``validation`` datasets are held
    out and looked at only by the closure check; ``truth`` datasets hold large samples
    of the nominal and of the pseudo-data world from which only the closure check takes
    the true efficiencies. ``weights: event`` counts every jet by its ``mcEventWeight``.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    role: Literal["simulation", "data"]
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
    use: Literal["control", "validation", "truth"] = "control"
    format: Literal["ftag_hdf5"] = "ftag_hdf5"
    files: tuple[str, ...] = ()
    weights: Literal["unit", "event"] = "unit"
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}
    generate: GenerateBlock | None = None
    composition: CompositionPrior | None = None
    provenance: str = ""
    licence: str = ""
    contact: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.files) == (self.generate is not None):
            raise ValueError("give either 'files' or a 'generate' block, and not both")
        if self.role == "data" and self.use == "control" and self.composition is None:
            raise ValueError("data of a control region need a 'composition' prior")
        if self.role == "simulation" and self.composition is not None:
            raise ValueError("'composition' belongs to the data of a region, not to its simulation")
        return self
