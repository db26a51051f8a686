"""Studies: the same run at many points, which numbers to put side by side, and what they should show."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcal.config.base import Configured, NotNegative

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
_KEY = r"[A-Za-z0-9_-]+(\[[^\]]+\])?"
ResultPath = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]+(\.{_KEY})+$")]
"""``file.key.key`` in ``results/<file>.json``; ``rows[flavour=b,working_point=0.77]`` selects from a list."""

CASE = "case"
SEED = "seed"
BOOTSTRAP = "data.bootstrap"


class CoverageConfig(Configured):
    """Likelihood toys of the fit of every finished run: ``results/coverage.json`` in its directory."""

    toys: Annotated[int, Field(ge=2)] = 1000
    seed: Annotated[int, Field(ge=0)] = 1


class PseudoExperimentsConfig(Configured):
    """Full pseudo-experiments of every finished run: ``results/pseudo_experiments.json`` in its directory.

    Each has its own detector, composition, remainder and events, which are drawn from ``jets_per_region``
    simulated jets at most. ``steps`` is the length of the refits.
    ``detectors`` are simulated once, to find the neighbourhood of each detector's posterior.
    ``remainder_scale`` multiplies the width of the remainder, which is the prior of the stiff maps
    (``calibration.composition.map_scale``; 0: data differ by the detector alone). ``workers`` processes share
    the experiments (0: one per core), about a gigabyte of memory each.
    """

    experiments: Annotated[int, Field(ge=1)] = 200
    seed: Annotated[int, Field(ge=0)] = 1
    jets_per_region: Annotated[int, Field(ge=1)] = 10_000
    steps: Annotated[int, Field(ge=1)] = 100
    detectors: Annotated[int, Field(ge=1)] = 64
    remainder_scale: NotNegative = 1.0
    workers: Annotated[int, Field(ge=0)] = 0


class DetectorTreatmentsConfig(Configured):
    """Detector uncertainties of every finished run, guessed, inferred and profiled:
    ``results/detector_treatments.json`` in its directory, with coverage in ``toys`` of each (0: without)."""

    toys: Annotated[int, Field(ge=0)] = 1000
    seed: Annotated[int, Field(ge=0)] = 1


class Case(Configured):
    """One named point of a list: ``set`` assigns keys of the run's configuration, ``at`` is its place on a
    scale (only for checks of a slope)."""

    name: Name
    set: dict[str, Any] = {}
    at: float | None = None


class Check(Configured):
    """One rule of the expected outcome: numbers of some points, within ``min`` and ``max``.

    ``value`` is a column of ``collect``. ``where`` chooses points by axis, ``case`` or ``seed`` (default:
    all). With ``against`` each number is first compared with that of the point which differs in these keys
    alone, as ``ratio`` or ``difference``. ``over`` says which number must be within the limits: ``every``
    one, their ``mean``, ``min``, ``max``, ``rms``, ``std``, or the ``slope`` of ln(value) against ln(x), x
    being the values of the axis ``along`` (``case``: its ``at``). Numbers that are absent (null) are left
    out.
    """

    value: str
    where: dict[str, Any] = {}
    against: dict[str, Any] = {}
    compare: Literal["ratio", "difference"] = "ratio"
    over: Literal["every", "mean", "min", "max", "rms", "std", "slope"] = "every"
    along: str | None = None
    min: float | None = None
    max: float | None = None
    because: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a check needs 'min', 'max' or both")
        if (self.over == "slope") != (self.along is not None):
            raise ValueError("'along' names the axis of 'over: slope', and of nothing else")
        return self


class FakingConfig(Configured):
    """Which of the other cases, hidden systematics of size ``at`` each, could fake the shift of the scale
    factors between the cases ``nothing`` and ``measured`` (:mod:`selfcal.study.faking`)."""

    measured: Name
    nothing: Name


class StudyConfig(Configured):
    """One study: the product of ``axes``, ``cases`` and ``seeds`` on top of a base configuration (of several,
    later ones win).

    ``axes`` is a grid of values by configuration key, ``cases`` a list of named points that may set several
    keys each. ``collect`` names numbers as ``file.key.key``: the file ``results/<file>.json`` of each run,
    then the keys inside it, ``[key=value,...]`` selecting rows of a list; a mapping gives them names of
    their own. A number and its ``..._error`` are shown together. ``until`` is the last stage of each run,
    if not all of them are needed. ``bootstraps`` resamplings of the data (``data.bootstrap``) are done
    beside the data as they are. ``faking`` asks which hidden systematic could fake a shift. ``coverage``
    adds likelihood toys to every run, ``pseudo_experiments`` full ones, ``detector_treatments`` the
    uncertainties with a detector that is guessed, inferred and profiled. ``expected`` says in words what the
    numbers should show, ``checks`` as rules that are looked at in the end.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str
    base: str | Annotated[tuple[str, ...], Field(min_length=1)]
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    cases: tuple[Case, ...] = ()
    bootstraps: Annotated[int, Field(ge=0)] = 0
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1,)
    until: str | None = None
    collect: (
        Annotated[tuple[ResultPath, ...], Field(min_length=1)]
        | Annotated[dict[Name, ResultPath], Field(min_length=1)]
    )
    expected: str
    checks: tuple[Check, ...] = ()
    coverage: CoverageConfig | None = None
    pseudo_experiments: PseudoExperimentsConfig | None = None
    detector_treatments: DetectorTreatmentsConfig | None = None
    faking: FakingConfig | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Where each collected number is found, by the name it goes by."""
        return self.collect if isinstance(self.collect, dict) else {path: path for path in self.collect}

    @model_validator(mode="after")
    def _points(self) -> Self:
        for name, place in (
            (SEED, "list the seeds under 'seeds'"),
            (CASE, "list the cases under 'cases'"),
            (BOOTSTRAP, "say how many under 'bootstraps'"),
        ):
            if name in self.axes:
                raise ValueError(f"'{name}' is no axis; {place}")
        names = [case.name for case in self.cases]
        for name, values in (*self.axes.items(), ("seeds", self.seeds), ("cases", names)):
            if any(value in values[:index] for index, value in enumerate(values)):
                raise ValueError(f"'{name}' holds a value twice")
        taken = {*self.axes, SEED}
        for case in self.cases:
            if both := sorted(taken & set(case.set)):
                raise ValueError(f"'cases' and the axes both set {both}")
        return self

    @model_validator(mode="after")
    def _known_in_faking(self) -> Self:
        if self.faking is None:
            return self
        named = {self.faking.measured, self.faking.nothing}
        if unknown := sorted(named - {case.name for case in self.cases}):
            raise ValueError(f"'faking' names {unknown}, which is no case")
        if self.axes or any(not case.at for case in self.cases if case.name not in named):
            raise ValueError("'faking' needs 'cases' with a size 'at', and no axes")
        return self

    @model_validator(mode="after")
    def _known_in_checks(self) -> Self:
        keys = {*self.axes, SEED, *([CASE] if self.cases else []), *([BOOTSTRAP] if self.bootstraps else [])}
        for check in self.checks:
            if check.value not in self.columns:
                raise ValueError(f"'checks' look at '{check.value}', which is not among 'collect'")
            named = {*check.where, *check.against, *([check.along] if check.along else [])}
            if unknown := sorted(named - keys):
                raise ValueError(f"'checks' name {unknown}, known are {sorted(keys)}")
            if check.along == CASE and any(case.at is None for case in self.cases):
                raise ValueError("'along: case' needs 'at' in every case")
        return self
