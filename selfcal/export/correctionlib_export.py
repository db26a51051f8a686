"""Scale factors as a correctionlib file (schema v2) with the names and inputs that CMS analyses use.

``<tagger>_comb`` (systematic, working_point, flavor, abseta, pt) : b, c and tau jets (5, 4, 15)
``<tagger>_incl`` (systematic, working_point, flavor, abseta, pt) : light jets (0)
``<tagger>_shape`` (systematic, flavor, abseta, pt, discriminant) : all flavours, pseudo-continuous
``<tagger>_wp_values`` (working_point) : thresholds on the discriminant

``systematic`` is central, up, down (total), up_statistic, down_statistic, or up_<group>, down_<group>.
Working points are named by their efficiency in percent. Evaluation raises an error outside the measured
|eta| and pT, for NaN (the binnings are not uniform and not clamped, the forms that let NaN pass in
correctionlib), and for a bin that was not measured (a category without a matching key): there is no number
that means "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import correctionlib.schemav2 as schema

from selfcal.data.flavours import FLAVOUR_TO_CONE_LABEL, FLAVOURS
from selfcal.errors import DataError

COMB = ("b", "c", "tau")
INCL = ("light",)
UNMEASURED = "not measured"

Row = Mapping[str, Any]


def correction_set(content: Mapping[str, Any]) -> schema.CorrectionSet:
    """All corrections of one ``scale_factors.json``.

    Raises
    ------
    DataError
        If a row of the grid flavours × pT × (working points, bins) is missing.
    """
    tagger = content["tagger"]
    corrections = [
        _working_points(f"{tagger}_comb", COMB, content),
        _working_points(f"{tagger}_incl", INCL, content),
        _shape(f"{tagger}_shape", content),
        _wp_values(f"{tagger}_wp_values", content),
    ]
    return schema.CorrectionSet(
        schema_version=2,
        description=f"Flavour-tagging scale factors of {tagger}, data over simulation",
        corrections=corrections,
    )


def as_text(corrections: schema.CorrectionSet) -> str:
    """JSON text of a correction set."""
    return corrections.model_dump_json(exclude_unset=True, indent=1) + "\n"


def working_point_name(working_point: float) -> str:
    """Efficiency in percent: 0.77 is '77'."""
    return f"{100 * working_point:g}"


def systematics(content: Mapping[str, Any]) -> dict[str, Callable[[Row], float]]:
    """Key of each systematic -> the scale factor of a measured row under it."""
    groups = sorted({group for row in content["rows"] for group in row["syst"]})
    keys: dict[str, Callable[[Row], float]] = {"central": lambda row: float(row["value"])}
    sources: dict[str, Callable[[Row], float]] = {
        "": lambda row: float(row["total"]),
        "_statistic": lambda row: float(row["stat"]),
    }
    for group in groups:
        sources[f"_{group}"] = _group(group)
    for suffix, sigma in sources.items():
        keys[f"up{suffix}"] = _shifted(sigma, 1.0)
        keys[f"down{suffix}"] = _shifted(sigma, -1.0)
    return keys


def _group(name: str) -> Callable[[Row], float]:
    return lambda row: float(row["syst"].get(name, 0.0))


def _shifted(sigma: Callable[[Row], float], sign: float) -> Callable[[Row], float]:
    return lambda row: float(row["value"]) + sign * sigma(row)


def _working_points(name: str, flavours: tuple[str, ...], content: Mapping[str, Any]) -> schema.Correction:
    points = content["working_points"]

    def at_point(point: float, key: Callable[[Row], float]) -> Any:
        return _by_flavour(
            flavours,
            lambda flavour: _by_kinematics(
                content, lambda p: _value(_row(content, flavour, p, working_point=point), key)
            ),
        )

    def leaf(key: Callable[[Row], float]) -> Any:
        return _category(
            "working_point", {working_point_name(point): at_point(point, key) for point in points}
        )

    described = "light jets" if flavours == INCL else "b, c and tau jets"
    return schema.Correction(
        name=name,
        version=1,
        description=f"Working-point scale factors of {described}; errors outside the measured range",
        inputs=[_systematic(), _working_point(), _flavor(flavours), _abseta(), _pt()],
        output=_weight(),
        data=_category("systematic", {key: leaf(value) for key, value in systematics(content).items()}),
    )


def _shape(name: str, content: Mapping[str, Any]) -> schema.Correction:
    edges = ["-inf", *content["discriminant_edges"], "inf"]
    n_bins = len(edges) - 1

    def by_discriminant(flavour: str, p: int, key: Callable[[Row], float]) -> Any:
        return schema.Binning(
            nodetype="binning",
            input="discriminant",
            edges=edges,
            content=[_value(_row(content, flavour, p, bin=k), key) for k in range(n_bins)],
            flow="error",
        )

    def leaf(key: Callable[[Row], float]) -> Any:
        return _by_flavour(
            FLAVOURS,
            lambda flavour: _by_kinematics(content, lambda p: by_discriminant(flavour, p, key)),
        )

    return schema.Correction(
        name=name,
        version=1,
        description="Pseudo-continuous scale factors; errors outside the measured range",
        inputs=[
            _systematic(),
            _flavor(FLAVOURS),
            _abseta(),
            _pt(),
            schema.Variable(name="discriminant", type="real", description="b-tagging discriminant"),
        ],
        output=_weight(),
        data=_category("systematic", {key: leaf(value) for key, value in systematics(content).items()}),
    )


def _wp_values(name: str, content: Mapping[str, Any]) -> schema.Correction:
    thresholds = zip(content["working_points"], content["discriminant_edges"], strict=True)
    return schema.Correction(
        name=name,
        version=1,
        description="Lower edge of the discriminant at each working point",
        inputs=[_working_point()],
        output=schema.Variable(name="discriminant", type="real", description="threshold"),
        data=_category("working_point", {working_point_name(wp): float(edge) for wp, edge in thresholds}),
    )


def _row(content: Mapping[str, Any], flavour: str, pt_bin: int, **wanted: Any) -> Row:
    kind = "continuous" if "bin" in wanted else "working_point"
    pt_gev = content["pt_gev_edges"][pt_bin : pt_bin + 2]
    for row in content["rows"]:
        same = row["flavour"] == flavour and row["kind"] == kind and list(row["pt_gev"]) == list(pt_gev)
        if same and all(row[name] == value for name, value in wanted.items()):
            return dict(row)
    raise DataError(
        f"no row for {flavour} jets, pT {pt_gev[0]:g}–{pt_gev[1]:g} GeV, {wanted}",
        where="scale_factors.json",
        expected="one row per flavour, pT bin, working point and discriminant bin, measured or not",
        fix="run 'selfcal fit' again",
    )


def _value(row: Row, key: Callable[[Row], float]) -> Any:
    """A number, or for an unmeasured row a node whose evaluation is an error."""
    if row["value"] is None:
        return _category("systematic", {UNMEASURED: 0.0})
    return key(row)


def _category(name: str, content: Mapping[str, Any]) -> schema.Category:
    items = [schema.CategoryItem(key=key, value=value) for key, value in content.items()]
    return schema.Category(nodetype="category", input=name, content=items)


def _by_flavour(flavours: tuple[str, ...], leaf: Callable[[str], Any]) -> schema.Category:
    items = [
        schema.CategoryItem(key=FLAVOUR_TO_CONE_LABEL[FLAVOURS.index(flavour)], value=leaf(flavour))
        for flavour in flavours
    ]
    return schema.Category(nodetype="category", input="flavor", content=items)


def _by_kinematics(content: Mapping[str, Any], leaf: Callable[[int], Any]) -> schema.Binning:
    pt_gev_edges = content["pt_gev_edges"]
    by_pt = schema.Binning(
        nodetype="binning",
        input="pt",
        edges=list(pt_gev_edges),
        content=[leaf(p) for p in range(len(pt_gev_edges) - 1)],
        flow="error",
    )
    return schema.Binning(
        nodetype="binning",
        input="abseta",
        edges=list(content["abs_eta_edges"]),
        content=[by_pt],
        flow="error",
    )


def _systematic() -> schema.Variable:
    text = "central, up, down, up_statistic, down_statistic, up_<group>, down_<group>"
    return schema.Variable(name="systematic", type="string", description=text)


def _working_point() -> schema.Variable:
    return schema.Variable(name="working_point", type="string", description="b efficiency in percent")


def _flavor(flavours: tuple[str, ...]) -> schema.Variable:
    labels = ", ".join(f"{FLAVOUR_TO_CONE_LABEL[FLAVOURS.index(f)]} {f}" for f in flavours)
    return schema.Variable(name="flavor", type="int", description=f"jet flavour: {labels}")


def _abseta() -> schema.Variable:
    return schema.Variable(name="abseta", type="real", description="|eta| of the jet")


def _pt() -> schema.Variable:
    return schema.Variable(name="pt", type="real", description="pT of the jet in GeV")


def _weight() -> schema.Variable:
    return schema.Variable(name="weight", type="real", description="data over simulation")
