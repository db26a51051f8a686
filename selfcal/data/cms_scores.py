r"""Class probabilities from what CMS NanoAOD stores of a tagger.

NanoAOD keeps ratios rather than probabilities. With :math:`p_b, p_c, p_l` the probabilities given that the
jet is no tau (b with bb and leptonic b; light with gluons):

.. math::
    B = \frac{p_b}{p_b+p_c+p_l}, \quad CvB = \frac{p_c}{p_c+p_b}, \quad CvL = \frac{p_c}{p_c+p_l}

hence :math:`p_b : p_c : p_l = \frac{1-CvB}{CvB} : 1 : \frac{1-CvL}{CvL}`, normalised to one. Two ratios fix
the three classes and B, which DeepJet, ParticleNet, RobustParT and UParT all define as above, must then
come out: it is checked. B itself enters only where a ratio is exactly 0 and tells nothing of
:math:`p_b : p_l`; elsewhere 1 - B would lose the light class to cancellation (values have 11 bits).
Taggers with tau classes also give :math:`T = p_\tau / (p_\tau + p_b + p_c + p_l)` (``TauVJet``): then
:math:`p_\tau = T` and the other three are multiplied by :math:`1 - T`.

A negative value (-1; -3 or -3000 for sums) marks a jet that the tagger did not look at.
Definitions: CMSSW ``PhysicsTools/NanoAOD/python/jetsAK4_Puppi_cff.py`` and
``RecoBTag/ONNXRuntime/python/pfParticleNetFromMiniAODAK4DiscriminatorsJetTags_cff.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfcal.config.card import ScoreFields
from selfcal.data.field_names import missing_fields
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import DataError

Columns = Mapping[str, NDArray[np.float64]]

MISSING = -1.0
CONSISTENCY = 0.02
"""Largest |B - B from the ratios|; rounding to 11 bits alone gives up to 0.0005."""

_SPLIT = {"b": ("B_b", "B_bb", "B_lepb"), "c": ("C",), "light": ("UDS", "G")}


@dataclass(frozen=True)
class ScoreScheme:
    """How the probabilities of a tagger follow from fields of the file.

    ``kind``: ``listed`` (the card names each class), ``split`` (all classes of DeepJet-like taggers),
    ``direct`` (B and C, light is the rest) or ``ratios`` (B, CvB and CvL, see above).
    ``fields``: field of the file by part, ``classes`` in the order of ``FLAVOURS``.
    """

    kind: str
    fields: Mapping[str, str]
    classes: tuple[str, ...]


def score_scheme(scores: ScoreFields, prefix: str, names: Collection[str], where: str) -> ScoreScheme:
    """How to get a tagger's probabilities; ``prefix`` is ``<collection>_btag``.

    Raises
    ------
    DataError
        If the file has neither form of the scores.
    """
    if scores.fields:
        absent = [name for name in scores.fields.values() if name not in names]
        if absent:
            raise missing_fields(absent, sorted(names), where, "scores.fields")
        listed = {str(flavour): str(name) for flavour, name in scores.fields.items()}
        return ScoreScheme("listed", listed, tuple(name for name in FLAVOURS if name in listed))
    stem = prefix + scores.tagger
    parts = {part: stem + part for part in ("B", "C", "CvB", "CvL", "TauVJet")}
    split = {part: stem + part for of_class in _SPLIT.values() for part in of_class}
    has_tau = parts["TauVJet"] in names
    classes = FLAVOURS if has_tau else FLAVOURS[:3]
    tau = {"TauVJet": parts["TauVJet"]} if has_tau else {}
    if all(name in names for name in split.values()):
        return ScoreScheme("split", split | tau, classes)
    if all(parts[part] in names for part in ("B", "CvB", "CvL")):
        return ScoreScheme("ratios", {part: parts[part] for part in ("B", "CvB", "CvL")} | tau, classes)
    if all(parts[part] in names for part in ("B", "C")):
        return ScoreScheme("direct", {part: parts[part] for part in ("B", "C")} | tau, classes)
    absent = [parts[part] for part in ("B", "CvB", "CvL") if parts[part] not in names]
    present = sorted(name for name in names if name.startswith(prefix)) or sorted(names)
    raise missing_fields(absent, present, where, "scores")


def taggers_in(prefix: str, names: Collection[str]) -> tuple[str, ...]:
    """Taggers whose scores give three classes, in the way that ``scores.tagger`` names them."""
    stems = {name[len(prefix) : -1] for name in names if name.startswith(prefix) and name.endswith("B")}
    found: list[str] = []
    for stem in sorted(one for one in stems if one and not one.endswith("Cv")):
        has = {part for part in ("C", "CvB", "CvL") if f"{prefix}{stem}{part}" in names}
        if "C" in has or {"CvB", "CvL"} <= has:
            found.append(stem)
    return tuple(found)


def probabilities(scheme: ScoreScheme, columns: Columns, where: str) -> NDArray[np.float64]:
    """(N, K) class probabilities; a whole row is -1 where the tagger gave nothing.

    ``columns`` holds the values of each part of ``scheme.fields``.

    Raises
    ------
    DataError
        If B, CvB and CvL contradict each other, or are NaN or infinite.
    """
    makers: dict[str, Callable[[Columns, str], NDArray[np.float64]]] = {
        "split": _from_split,
        "direct": _from_direct,
        "ratios": _from_ratios,
    }
    for part, values in columns.items():  # -Inf is below zero, too, and no sentinel
        if bad := int((~np.isfinite(values)).sum()):
            raise DataError(f"{bad} jets with NaN or infinite {scheme.fields.get(part, part)}", where=where)
    missing = np.any([values < 0 for values in columns.values()], axis=0)
    if scheme.kind == "listed":
        result = np.column_stack([columns[name] for name in scheme.classes])
    else:
        result = makers[scheme.kind]({name: values[~missing] for name, values in columns.items()}, where)
        if "TauVJet" in columns:
            tau = columns["TauVJet"][~missing]
            result = np.column_stack([result * (1 - tau)[:, None], tau])
        full = np.full((len(missing), result.shape[1]), MISSING)
        full[~missing] = result
        result = full
    result[missing] = MISSING
    return result


def _from_split(columns: Columns, where: str) -> NDArray[np.float64]:  # noqa: ARG001 - one signature
    return np.column_stack([_sum(columns, parts) for parts in _SPLIT.values()])


def _sum(columns: Columns, parts: Sequence[str]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([columns[part] for part in parts], axis=0)
    return total


def _from_direct(columns: Columns, where: str) -> NDArray[np.float64]:
    b, c = columns["B"], columns["C"]
    light = 1.0 - b - c
    wrong = light < -CONSISTENCY
    if wrong.any():
        raise DataError(f"B + C exceeds 1 for {int(wrong.sum())} jets", where=where, expected="probabilities")
    return np.column_stack([b, c, np.maximum(light, 0.0)])


def _from_ratios(columns: Columns, where: str) -> NDArray[np.float64]:
    b, c_vs_b, c_vs_light = columns["B"], columns["CvB"], columns["CvL"]
    result = np.column_stack([b, np.zeros_like(b), 1.0 - b])  # no charm: the ratios say nothing else
    charm = (c_vs_b > 0) & (c_vs_light > 0)
    # (1 - CvB) / CvB : 1 : (1 - CvL) / CvL, multiplied by CvB CvL: no division by small numbers.
    parts = np.column_stack([(1 - c_vs_b) * c_vs_light, c_vs_b * c_vs_light, (1 - c_vs_light) * c_vs_b])
    with np.errstate(divide="ignore", invalid="ignore"):
        result[charm] = (parts / parts.sum(axis=1, keepdims=True))[charm]
    wrong = np.abs(result[:, 0] - b) > CONSISTENCY
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"B contradicts CvB and CvL for {int(wrong.sum())} of {len(b)} jets (first: {b[first]:.4f}, "
            f"the ratios give {result[first, 0]:.4f})",
            where=where,
            expected="B = p_b / (p_b + p_c + p_light), CvB = p_c / (p_c + p_b), CvL = p_c / (p_c + p_light)",
            fix="name the class probabilities under 'scores.fields', if the file has them",
        )
    return result
