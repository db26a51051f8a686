"""Factors from the units of a file to ours (GeV, mm, rad)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from selfcal.config.card import DataCard, FormatName, Units

_DEFAULTS: dict[FormatName, tuple[str, str, str]] = {
    "ftag_hdf5": ("MeV", "mm", "rad"),
    "physlite": ("MeV", "mm", "rad"),
    "nanoaod": ("GeV", "cm", "rad"),
    "pfnano": ("GeV", "cm", "rad"),
}
_GEV = {"MeV": 1e-3, "GeV": 1.0}
_MM = {"um": 1e-3, "mm": 1.0, "cm": 10.0}
_RAD = {"rad": 1.0, "deg": math.pi / 180}
_TRACK_LENGTHS = frozenset({"d0", "z0SinTheta"})
_TRACK_ANGLES = frozenset({"dphi", "phiUncertainty", "thetaUncertainty"})
_TRACK_INVERSE_MOMENTA = frozenset({"qOverP", "qOverPUncertainty"})


def units_of(card: DataCard) -> Units:
    """The units of a dataset: what its card says, otherwise those of its format."""
    momentum, length, angle = _DEFAULTS[card.format]
    given = card.units
    return Units.model_validate(
        {
            "momentum": given.momentum or momentum,
            "length": given.length or length,
            "angle": given.angle or angle,
        }
    )


@dataclass(frozen=True)
class UnitScales:
    """What a file's number is multiplied by to be in GeV, mm and rad."""

    momentum_gev: float
    length_mm: float
    angle_rad: float

    @classmethod
    def of(cls, card: DataCard) -> UnitScales:
        """The factors of a dataset."""
        units = units_of(card)
        return cls(_GEV[units.momentum or ""], _MM[units.length or ""], _RAD[units.angle or ""])


def track_factor(name: str, scales: UnitScales) -> float:
    """What a file's track field is multiplied by to be in the native unit (mm, rad, 1/MeV)."""
    if name in _TRACK_LENGTHS:
        return scales.length_mm
    if name in _TRACK_ANGLES:
        return scales.angle_rad
    if name in _TRACK_INVERSE_MOMENTA:
        return 1e-3 / scales.momentum_gev
    return 1.0
