"""Data cards: one per dataset, saying what it is, where it is and what it is made of."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured

Fraction = Annotated[float, Field(ge=0, le=1)]
FlavourName = Literal["b", "c", "light", "tau"]
ProcessName = Literal["ttbar_emu", "ttbar_ljets", "w_charm", "dijet", "z_tautau", "gluon_to_bb"]
FormatName = Literal["ftag_hdf5", "physlite", "nanoaod", "pfnano"]
GuardName = Literal[
    "momentum_unit", "length_unit", "angle_unit", "duplicate_jets", "missing_scores", "score_columns"
]
FieldName = Annotated[str, Field(min_length=1)]


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


class Units(Configured):
    """Units of the file; without a word, those of its format (ATLAS: MeV and mm, CMS: GeV and cm)."""

    momentum: Literal["MeV", "GeV"] | None = None
    length: Literal["mm", "cm", "um"] | None = None
    angle: Literal["rad", "deg"] | None = None


class FieldMap(Configured):
    """Names of the file's jet and track fields where they differ from those of the format."""

    pt: FieldName | None = None
    eta: FieldName | None = None
    phi: FieldName | None = None
    label: FieldName | None = None
    run: FieldName | None = None
    event: FieldName | None = None
    jet_index: FieldName | None = None
    weight: FieldName | None = None
    truth_pt: FieldName | None = None
    tracks: dict[FieldName, FieldName] = {}


class ScoreFields(Configured):
    """The scores of an existing tagger in the file.

    ``tagger`` is the prefix of its fields: ``GN2v01`` (ATLAS, ``GN2v01_pb`` and so on) or
    ``DeepFlav``, ``PNet``, ``RobustParTAK4``, ``UParTAK4`` (CMS, ``Jet_btag<tagger>B``, ``...CvB``,
    ``...CvL``). ``fields`` names the fields of the class probabilities one by one instead.
    """

    tagger: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    fields: dict[FlavourName, FieldName] = {}


class Cut(Configured):
    """Keep jets whose field (by the file's own name) is in [min, max], or equals one of ``values``."""

    field: FieldName
    min: float | None = None
    max: float | None = None
    values: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min is None and self.max is None and not self.values:
            raise ValueError("a cut needs 'min', 'max' or 'values'")
        return self


class TrackConventions(Configured):
    """How the file defines its impact parameters: recorded with the results, and what the sign rests on.

    ``reference`` is the point to which d0 and z0 refer; ``lifetime_sign`` says whether the
    significances carry the sign of the projection on the jet axis.
    """

    reference: Literal["beamline", "primary_vertex", "beamspot"] | None = None
    lifetime_sign: Literal["jet_axis", "geometric"] | None = None


class DataCard(Configured):
    """One dataset: simulation (labelled) or data (unlabelled) of one region.

    ``use: control`` datasets derive and measure; ``validation`` datasets are held
    out and looked at only by the closure check; ``truth`` datasets hold large samples
    of the nominal and of the pseudo-data world from which only the closure check takes
    the true efficiencies. ``alternative`` datasets are simulation of a control region made otherwise
    (generator, radiation, top-quark pT), or the same jets with other event weights; ``variation`` names
    what is different, and each name becomes a nuisance of the fit. ``weights: event`` counts every jet
    by its event weight. ``collection`` is the jet collection of a ROOT file. ``accept`` overrides a guard
    that refuses the dataset, with the reason in words; both are recorded with the results.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    role: Literal["simulation", "data"]
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")]
    use: Literal["control", "validation", "truth", "alternative"] = "control"
    variation: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    format: FormatName = "ftag_hdf5"
    files: tuple[str, ...] = ()
    collection: FieldName | None = None
    fields: FieldMap = FieldMap()
    units: Units = Units()
    scores: ScoreFields | None = None
    selection: tuple[Cut, ...] = ()
    conventions: TrackConventions = TrackConventions()
    accept: dict[GuardName, Annotated[str, Field(min_length=8)]] = {}
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
            raise ValueError(
                "data of a control region need a prior: add 'composition: {relative_uncertainty: 0.25}'"
            )
        if self.role == "simulation" and self.composition is not None:
            raise ValueError("'composition' belongs to the data of a region, not to its simulation")
        if (self.use == "alternative") != (self.variation is not None):
            raise ValueError("'use: alternative' and 'variation' belong together")
        if self.use == "alternative" and self.role != "simulation":
            raise ValueError("only simulation can be an alternative")
        return self
