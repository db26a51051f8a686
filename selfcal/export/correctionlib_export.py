"""Scale factors as a correctionlib file (schema v2) with the names and inputs that CMS analyses use.

``<tagger>_comb`` (systematic, working_point, flavor, abseta, pt) : b, c and tau jets (5, 4, 15)
``<tagger>_incl`` (systematic, working_point, flavor, abseta, pt) : light jets (0)
``<tagger>_shape`` (systematic, flavor, abseta, pt, discriminant) : all flavours, pseudo-continuous
``<tagger>_wp_values`` (working_point) : thresholds on the discriminant
``<tagger>_status`` (working_point, flavor, abseta, pt), ``<tagger>_shape_status`` (flavor, abseta, pt,
discriminant) : 1 measured, 2 extrapolated, 3 external, 0 none
``<tagger>_generators`` (systematic, variation, working_point, flavor, abseta, pt) : where other simulations
were given, their efficiency over the nominal one's; who uses one divides the scale factor of data by it
``<tagger>_high_pt`` (systematic, working_point, flavor, abseta, pt) : where bins beyond the last measured one
were asked for, its scale factors carried there; apart from the others, because nothing is measured there

``systematic`` is central, or ``up`` or ``down`` followed by

=============================  =================================================================
nothing                        total
``_statistic``                 the data's statistics
``_<group>``                   one group of systematic uncertainties
``_correlated``                all groups that are correlated between data-taking periods
``_uncorrelated``              all others; the two add in quadrature to the total
``_ev0``, ``_ev1``, …          independent variations of one flavour, which together give its
                               covariance; flavours with fewer of them stay at their central value
``_ev_envelope``               what those leave over, below 1 % of σ
=============================  =================================================================

Variations with the same number of different flavours have nothing to do with each other: vary one flavour
at a time. Working points are named by their efficiency in percent.

Evaluation is an error outside the measured |eta| and pT, for NaN (the binnings are not uniform and not
clamped, the forms that let NaN pass in correctionlib), and for a bin that was not measured (a category
without a matching key): there is no number that means "not measured". The two status corrections give 0 in
all those cases, so that an analysis can ask first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import correctionlib.schemav2 as schema
import numpy as np
from numpy.typing import NDArray

from selfcal.config.fit import ExportConfig
from selfcal.data.flavours import FLAVOUR_TO_CONE_LABEL, FLAVOURS
from selfcal.export.contract import Exported, Results
from selfcal.export.rows import Place, ScaleFactorRows, working_point_name
from selfcal.export.simulations import OF_GENERATORS, OF_HIGH_PT, Row, SimulationRows
from selfcal.run.atomic import write_text

INCL = ("light",)
UNMEASURED = "not measured"
STATUS = {"unmeasured": 0.0, "measured": 1.0, "extrapolated": 2.0, "external": 3.0}
STATUS_MEANING = "1 measured, 2 extrapolated, 3 external, 0 none"

Leaf = Callable[[Place], Any]


def export_correctionlib(results: Results) -> Exported:
    """Write ``correctionlib.json``."""
    corrections = correction_set(results.factors, results.config, results.simulations)
    path = results.folder / "correctionlib.json"
    write_text(path, corrections.model_dump_json(exclude_unset=True, indent=1) + "\n")
    return Exported("correctionlib", (path,))


def correction_set(
    factors: ScaleFactorRows, config: ExportConfig, simulations: SimulationRows | None = None
) -> schema.CorrectionSet:
    """All corrections of one measurement.

    Raises
    ------
    ConfigError
        If ``uncorrelated_groups`` names a group that does not exist.
    """
    tagger = factors.tagger
    values = systematics(factors, config)
    comb = tuple(flavour for flavour in factors.flavours if flavour not in INCL)
    incl = tuple(flavour for flavour in factors.flavours if flavour in INCL)
    corrections = [
        _working_points(f"{tagger}_{name}", flavours, factors, values)
        for name, flavours in (("comb", comb), ("incl", incl))
        if flavours
    ]
    corrections += [
        _shape(f"{tagger}_shape", factors, values),
        _wp_values(f"{tagger}_wp_values", factors),
        _status(f"{tagger}_status", factors),
        _shape_status(f"{tagger}_shape_status", factors),
    ]
    if simulations and simulations.generators:
        corrections.append(_generators(f"{tagger}_generators", factors.flavours, simulations))
    if simulations and simulations.high_pt:
        corrections.append(_high_pt(f"{tagger}_high_pt", factors, simulations))
    return schema.CorrectionSet(
        schema_version=2,
        description=f"{factors.note}Flavour-tagging scale factors of {tagger}, data over simulation",
        corrections=corrections,
    )


def systematics(factors: ScaleFactorRows, config: ExportConfig) -> dict[str, NDArray[np.float64]]:
    """Key of each systematic -> (N,) the scale factor of every row under it, NaN where not measured."""
    factors.check_groups(config.uncorrelated_groups, ExportConfig.model_fields["uncorrelated_groups"].default)
    known = [i for i, row in enumerate(factors.rows) if row["value"] is not None]
    central = np.full(len(factors.rows), np.nan)
    central[known] = [factors.rows[i]["value"] for i in known]
    shifts: dict[str, NDArray[np.float64]] = {}

    def add(suffix: str, indices: Iterable[int], shift: Iterable[float]) -> None:
        own = shifts.setdefault(suffix, np.zeros(len(central)))
        own[list(indices)] = list(shift)

    rows = [factors.rows[i] for i in known]
    add("", known, (row["total"] for row in rows))
    add("_statistic", known, (row["stat"] for row in rows))
    for group in factors.groups:
        add(f"_{group}", known, (row["syst"].get(group, 0.0) for row in rows))
    split = [factors.periods(row, config.uncorrelated_groups) for row in rows]
    add("_correlated", known, (correlated for correlated, _ in split))
    add("_uncorrelated", known, (uncorrelated for _, uncorrelated in split))
    for reduced in factors.eigenvariations.values():
        for number, shift in enumerate(reduced["shifts"]):
            add(f"_ev{number}", reduced["rows"], shift)
        add("_ev_envelope", reduced["rows"], reduced["envelope"])
    values = {"central": central}
    for suffix, shift in shifts.items():
        values[f"up{suffix}"] = central + shift
        values[f"down{suffix}"] = central - shift
    return values


def _working_points(
    name: str,
    flavours: tuple[str, ...],
    factors: ScaleFactorRows,
    values: Mapping[str, NDArray[np.float64]],
) -> schema.Correction:
    def leaf(numbers: NDArray[np.float64]) -> schema.Category:
        return _by_working_point(
            flavours, factors, lambda place: number_or_error(numbers[factors.index(place)])
        )

    described = "light jets" if flavours == INCL else "b, c and tau jets"
    return schema.Correction(
        name=name,
        version=1,
        description=f"{factors.note}Working-point scale factors of {described}; errors out of range",
        inputs=[
            _systematic(),
            working_point_variable(),
            flavour_variable(flavours),
            abs_eta_variable(),
            pt_variable(),
        ],
        output=_weight(),
        data=category("systematic", {key: leaf(numbers) for key, numbers in values.items()}),
    )


def _shape(
    name: str, factors: ScaleFactorRows, values: Mapping[str, NDArray[np.float64]]
) -> schema.Correction:
    def leaf(numbers: NDArray[np.float64]) -> schema.Category:
        return _by_discriminant(factors, lambda place: number_or_error(numbers[factors.index(place)]))

    return schema.Correction(
        name=name,
        version=1,
        description=f"{factors.note}Pseudo-continuous scale factors; errors outside the measured range",
        inputs=[
            _systematic(),
            flavour_variable(factors.flavours),
            abs_eta_variable(),
            pt_variable(),
            _discriminant(),
        ],
        output=_weight(),
        data=category("systematic", {key: leaf(numbers) for key, numbers in values.items()}),
    )


def _wp_values(name: str, factors: ScaleFactorRows) -> schema.Correction:
    thresholds = zip(factors.working_points, factors.discriminant_edges, strict=True)
    return schema.Correction(
        name=name,
        version=1,
        description="Lower edge of the discriminant at each working point",
        inputs=[working_point_variable()],
        output=schema.Variable(name="discriminant", type="real", description="threshold"),
        data=category("working_point", {working_point_name(wp): edge for wp, edge in thresholds}),
    )


def _status(name: str, factors: ScaleFactorRows) -> schema.Correction:
    return schema.Correction(
        name=name,
        version=1,
        description=f"Whether there is a scale factor: {STATUS_MEANING}",
        inputs=[
            working_point_variable(),
            flavour_variable(factors.flavours),
            abs_eta_variable(),
            pt_variable(),
        ],
        output=_status_variable(),
        data=_by_working_point(
            factors.flavours, factors, lambda place: STATUS[factors.at(place)["status"]], flow=0.0
        ),
    )


def _shape_status(name: str, factors: ScaleFactorRows) -> schema.Correction:
    return schema.Correction(
        name=name,
        version=1,
        description=f"Whether there is a pseudo-continuous scale factor: {STATUS_MEANING}",
        inputs=[flavour_variable(factors.flavours), abs_eta_variable(), pt_variable(), _discriminant()],
        output=_status_variable(),
        data=_by_discriminant(factors, lambda place: STATUS[factors.at(place)["status"]], flow=0.0),
    )


def _generators(name: str, flavours: tuple[str, ...], simulations: SimulationRows) -> schema.Correction:
    def of_variation(variation: str, sign: int) -> schema.Category:
        rows = [row for row in simulations.generators if row["variation"] == variation]
        return _by_row(rows, lambda row: row["value"] + sign * row["stat"])

    leaves = {
        key: category("variation", {name: of_variation(name, sign) for name in simulations.variations})
        for key, sign in (("central", 0), ("up", 1), ("down", -1))
    }
    systematic = schema.Variable(
        name="systematic", type="string", description="central, up or down (statistics)"
    )
    variation = schema.Variable(name="variation", type="string", description="name of the other simulation")
    return schema.Correction(
        name=name,
        version=1,
        description=f"{OF_GENERATORS}; errors outside of what both have",
        inputs=[
            systematic,
            variation,
            working_point_variable(),
            flavour_variable(flavours),
            abs_eta_variable(),
            pt_variable(),
        ],
        output=schema.Variable(name="factor", type="real", description="other simulation over nominal one"),
        data=category("systematic", leaves),
    )


def _high_pt(name: str, factors: ScaleFactorRows, simulations: SimulationRows) -> schema.Correction:
    def shifted(part: str | None, sign: int) -> schema.Category:
        def value(row: Row) -> float:
            if row["value"] is None:
                return math.nan
            size = row["total"] if part is None else row["syst"].get(part, 0.0)
            return float(row["value"] + sign * size)

        return _by_row(simulations.high_pt, value)

    leaves = {"central": shifted(None, 0), "up": shifted(None, 1), "down": shifted(None, -1)}
    for part in simulations.parts:
        leaves |= {f"up_{part}": shifted(part, 1), f"down_{part}": shifted(part, -1)}
    known = f"central, or up or down followed by nothing (total) or one of _{', _'.join(simulations.parts)}"
    return schema.Correction(
        name=name,
        version=1,
        description=f"{factors.note}{OF_HIGH_PT}; errors where nothing is known",
        inputs=[
            schema.Variable(name="systematic", type="string", description=known),
            *(
                working_point_variable(),
                flavour_variable(factors.flavours),
                abs_eta_variable(),
                pt_variable(),
            ),
        ],
        output=_weight(),
        data=category("systematic", leaves),
    )


def _by_row(rows: Sequence[Row], value: Callable[[Row], float]) -> schema.Category:
    """Working point, flavour, |eta| and pT of ``rows``, in their own bins; without a row it is an error."""

    def bins(own: Sequence[Row]) -> schema.Binning:
        found = {(tuple(row["abs_eta"]), tuple(row["pt_gev"])): value(row) for row in own}
        abs_eta = sorted({edge for eta, _ in found for edge in eta})
        pt_gev = sorted({edge for _, pt in found for edge in pt})
        by_pt = [
            binning(
                "pt",
                pt_gev,
                [number_or_error(found.get((eta, pt), math.nan)) for pt in itertools.pairwise(pt_gev)],
                "error",
            )
            for eta in itertools.pairwise(abs_eta)
        ]
        return binning("abseta", abs_eta, by_pt, "error")

    def of(**wanted: Any) -> list[Row]:
        return [row for row in rows if all(row[key] == one for key, one in wanted.items())]

    return category(
        "working_point",
        {
            working_point_name(point): category(
                "flavor",
                {
                    cone_label(flavour): bins(of(working_point=point, flavour=flavour))
                    for flavour in dict.fromkeys(row["flavour"] for row in of(working_point=point))
                },
            )
            for point in dict.fromkeys(row["working_point"] for row in rows)
        },
    )


def number_or_error(value: float) -> Any:
    """A number, or for an unmeasured row a node whose evaluation is an error."""
    if np.isnan(value):
        return category("systematic", {UNMEASURED: 0.0})
    return float(value)


def category(name: str, content: Mapping[Any, Any]) -> schema.Category:
    items = [schema.CategoryItem(key=key, value=value) for key, value in content.items()]
    return schema.Category(nodetype="category", input=name, content=items)


def binning(name: str, edges: Iterable[Any], content: list[Any], flow: Any) -> schema.Binning:
    return schema.Binning(nodetype="binning", input=name, edges=list(edges), content=content, flow=flow)


def _by_working_point(
    flavours: tuple[str, ...], factors: ScaleFactorRows, leaf: Leaf, flow: Any = "error"
) -> schema.Category:
    def of_flavour(point: float, flavour: str) -> schema.Binning:
        return _by_kinematics(factors, lambda p, e: leaf(Place(flavour, p, e, working_point=point)), flow)

    return category(
        "working_point",
        {
            working_point_name(point): category(
                "flavor", {cone_label(flavour): of_flavour(point, flavour) for flavour in flavours}
            )
            for point in factors.working_points
        },
    )


def _by_discriminant(factors: ScaleFactorRows, leaf: Leaf, flow: Any = "error") -> schema.Category:
    edges = ["-inf", *factors.discriminant_edges, "inf"]

    def bins(flavour: str, p: int, e: int) -> schema.Binning:
        content = [leaf(Place(flavour, p, e, bin=k)) for k in range(factors.n_bins)]
        return binning("discriminant", edges, content, flow)

    def of_flavour(flavour: str) -> schema.Binning:
        return _by_kinematics(factors, lambda p, e: bins(flavour, p, e), flow)

    return category("flavor", {cone_label(flavour): of_flavour(flavour) for flavour in factors.flavours})


def _by_kinematics(factors: ScaleFactorRows, leaf: Callable[[int, int], Any], flow: Any) -> schema.Binning:
    by_pt = [
        binning("pt", factors.pt_gev_edges, [leaf(p, e) for p in range(factors.n_pt)], flow)
        for e in range(factors.n_eta)
    ]
    return binning("abseta", factors.abs_eta_edges, by_pt, flow)


def cone_label(flavour: str) -> int:
    return FLAVOUR_TO_CONE_LABEL[FLAVOURS.index(flavour)]


def _systematic() -> schema.Variable:
    text = (
        "central, or up or down followed by nothing (total), _statistic, _<group>, _correlated, "
        "_uncorrelated (between data-taking periods), _ev0 and on (one flavour at a time), _ev_envelope"
    )
    return schema.Variable(name="systematic", type="string", description=text)


def working_point_variable() -> schema.Variable:
    return schema.Variable(name="working_point", type="string", description="b efficiency in percent")


def flavour_variable(flavours: tuple[str, ...]) -> schema.Variable:
    labels = ", ".join(f"{cone_label(flavour)} {flavour}" for flavour in flavours)
    return schema.Variable(name="flavor", type="int", description=f"jet flavour: {labels}")


def abs_eta_variable() -> schema.Variable:
    return schema.Variable(name="abseta", type="real", description="|eta| of the jet")


def pt_variable() -> schema.Variable:
    return schema.Variable(name="pt", type="real", description="pT of the jet in GeV")


def _discriminant() -> schema.Variable:
    return schema.Variable(name="discriminant", type="real", description="b-tagging discriminant")


def _weight() -> schema.Variable:
    return schema.Variable(name="weight", type="real", description="data over simulation")


def _status_variable() -> schema.Variable:
    return schema.Variable(name="status", type="real", description=STATUS_MEANING)
