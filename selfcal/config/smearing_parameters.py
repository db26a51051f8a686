"""The parameters theta of the smearing model, their nominal values and their priors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from selfcal.config import detector_parameters as generator


class SmearingParameters(BaseModel):
    """How the tracks of data differ from those of the simulation; the defaults are the simulation itself.

    A *scale* multiplies a quantity of the simulation, a *shift* or a *bias* is added to it. *Low* and
    *high* are tracks below and above 5 GeV. Ranges refuse what is not a detector, the prior
    (:data:`PRIORS`) says what is likely.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    d0_core_scale_low: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the d0 residuals")
    d0_core_scale_high: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the d0 residuals")
    z0_core_scale_low: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the z0 residuals")
    z0_core_scale_high: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the z0 residuals")
    tail_scale_low: float = Field(
        default=1.0, ge=0.0, lt=8.0, description="scale of the fraction of tracks measured twice as badly"
    )
    tail_scale_high: float = Field(
        default=1.0, ge=0.0, lt=8.0, description="scale of the fraction of tracks measured twice as badly"
    )
    far_tail_scale: float = Field(
        default=1.0,
        ge=0.0,
        lt=20.0,
        description="scale of the fraction of tracks measured five times as badly",
    )
    d0_bias_mm: float = Field(default=0.0, gt=-0.2, lt=0.2, description="common d0 offset, mm")
    z0_bias_mm: float = Field(default=0.0, gt=-0.5, lt=0.5, description="common z0 sin(theta) offset, mm")
    efficiency_shift: float = Field(
        default=0.0, gt=-0.5, lt=0.3, description="added to the probability that a track is found"
    )
    innermost_efficiency_shift: float = Field(
        default=0.0, gt=-0.9, lt=0.5, description="added to the fraction of tracks with innermost-layer hit"
    )
    pileup_scale: float = Field(
        default=1.0, ge=0.0, lt=8.0, description="scale of the rate of pile-up tracks"
    )
    fake_scale: float = Field(default=1.0, ge=0.0, lt=20.0, description="scale of the rate of fake tracks")

    def vector(self) -> NDArray[np.float64]:
        """The values in the order of :data:`PARAMETERS`, (D,)."""
        return np.array([getattr(self, name) for name in PARAMETERS])

    @classmethod
    def from_vector(cls, values: NDArray[np.float64]) -> SmearingParameters:
        """The inverse of :meth:`vector`; values beyond the range are put just inside it."""
        inside = within_ranges(np.asarray(values, np.float64))
        return cls(**{name: float(value) for name, value in zip(PARAMETERS, inside, strict=True)})


@dataclass(frozen=True)
class Prior:
    """Gaussian prior of one parameter in its own unit."""

    width: float
    unit: str = ""


PRIORS: dict[str, Prior] = {
    "d0_core_scale_low": Prior(0.10),
    "d0_core_scale_high": Prior(0.10),
    "z0_core_scale_low": Prior(0.10),
    "z0_core_scale_high": Prior(0.10),
    "tail_scale_low": Prior(0.50),
    "tail_scale_high": Prior(0.50),
    "far_tail_scale": Prior(0.50),
    "d0_bias_mm": Prior(0.005, "mm"),
    "z0_bias_mm": Prior(0.020, "mm"),
    "efficiency_shift": Prior(0.02),
    "innermost_efficiency_shift": Prior(0.02),
    "pileup_scale": Prior(0.20),
    "fake_scale": Prior(0.50),
}
"""Widths around the nominal values. They cover the data/simulation ratios seen by CMS in signed
impact-parameter significances: core 0.97-1.10, fraction beyond three sigma 0.85-1.41."""

PARAMETERS: tuple[str, ...] = tuple(PRIORS)
NOMINAL = SmearingParameters()


def prior_widths(changed: Mapping[str, float]) -> NDArray[np.float64]:
    """Prior widths in the order of :data:`PARAMETERS`, some of them ``changed``, (D,)."""
    return np.array([changed.get(name, prior.width) for name, prior in PRIORS.items()])


def within_ranges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``values`` (..., D) in the order of :data:`PARAMETERS`, those beyond their range put just inside it."""
    low, high = _RANGES
    return np.asarray(np.clip(values, low, high), np.float64)


def _range(model: type[BaseModel], name: str) -> tuple[float, float]:
    margin = 1e-9
    low, high = -np.inf, np.inf
    for bound in model.model_fields[name].metadata:
        for attribute in ("gt", "ge"):
            if (edge := getattr(bound, attribute, None)) is not None:
                low = max(low, edge + margin * (attribute == "gt"))
        if (edge := getattr(bound, "lt", None)) is not None:
            high = min(high, edge - margin)
    return low, high


_RANGES = np.array([_range(SmearingParameters, name) for name in PARAMETERS]).T

Model = Literal["smearing", "generator"]


@dataclass(frozen=True)
class ParameterSpace:
    """The D parameters of a simulator: names and units, nominal values and default prior widths."""

    model: Model
    values: type[BaseModel]
    names: tuple[str, ...]
    units: tuple[str, ...]
    nominal_values: tuple[float, ...]
    default_widths: tuple[float, ...]

    @property
    def nominal(self) -> NDArray[np.float64]:
        """(D,)"""
        return np.array(self.nominal_values)

    def widths(self, changed: Mapping[str, float]) -> NDArray[np.float64]:
        """Prior widths, some of them ``changed``, (D,)."""
        pairs = zip(self.names, self.default_widths, strict=True)
        return np.array([changed.get(name, width) for name, width in pairs])

    def within(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``values`` (..., D), those beyond their range put just inside it."""
        low, high = self._ranges
        return np.asarray(np.clip(values, low, high), np.float64)

    @cached_property
    def _ranges(self) -> NDArray[np.float64]:
        return np.array([_range(self.values, name) for name in self.names]).T


SMEARING = ParameterSpace(
    "smearing",
    SmearingParameters,
    PARAMETERS,
    tuple(prior.unit for prior in PRIORS.values()),
    tuple(NOMINAL.vector().tolist()),
    tuple(prior.width for prior in PRIORS.values()),
)
GENERATOR = ParameterSpace(
    "generator",
    generator.DetectorParameters,
    tuple(generator.PRIORS),
    tuple(prior.unit for prior in generator.PRIORS.values()),
    tuple(prior.mean for prior in generator.PRIORS.values()),
    tuple(prior.width for prior in generator.PRIORS.values()),
)
SPACES: dict[Model, ParameterSpace] = {space.model: space for space in (SMEARING, GENERATOR)}
"""What a simulator may vary, by ``inference.model``."""
