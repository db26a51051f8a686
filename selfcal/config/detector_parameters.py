"""The nuisance parameters theta of the detector, their nominal values and their priors."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class DetectorParameters(BaseModel):
    """One detector: everything the parametric tracker can be told to do differently.

    The defaults are the nominal simulation. A *scale* multiplies a nominal
    quantity, a *shift* is added to it. Ranges refuse what is not a detector
    (a negative width, say), not what is unlikely: that is the prior's part,
    :data:`PRIORS`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    d0_core_scale: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the d0 resolution core")
    z0_core_scale: float = Field(default=1.0, gt=0.2, lt=5.0, description="scale of the z0 resolution core")
    tail_fraction_scale: float = Field(
        default=1.0, ge=0.0, lt=8.0, description="scale of the fractions of badly measured tracks"
    )
    d0_bias_mm: float = Field(default=0.0, gt=-0.2, lt=0.2, description="weak mode: common d0 offset, mm")
    z0_bias_mm: float = Field(default=0.0, gt=-0.5, lt=0.5, description="weak mode: common z0 offset, mm")
    efficiency_shift: float = Field(
        default=0.0, gt=-0.5, lt=0.1, description="added to the tracking efficiency of every track"
    )
    dense_core_loss_scale: float = Field(
        default=1.0, ge=0.0, lt=8.0, description="scale of the efficiency loss next to another track"
    )
    fake_rate_scale: float = Field(
        default=1.0, ge=0.0, lt=20.0, description="scale of the rate of fake tracks"
    )
    pileup_mu: float = Field(
        default=40.0, ge=0.0, lt=250.0, description="mean interactions per bunch crossing"
    )
    material_scale: float = Field(
        default=1.0, ge=0.0, lt=5.0, description="scale of the tracker material (conversions, interactions)"
    )
    innermost_efficiency_shift: float = Field(
        default=0.0, gt=-0.9, lt=0.03, description="added to the hit efficiency of the innermost pixel layer"
    )
    jet_energy_scale: float = Field(default=1.0, gt=0.7, lt=1.3, description="scale of the jet momentum")
    jet_energy_resolution_scale: float = Field(
        default=1.0, ge=0.0, lt=4.0, description="scale of the jet momentum resolution"
    )
    momentum_resolution_scale: float = Field(
        default=1.0, gt=0.1, lt=5.0, description="scale of the track momentum resolution"
    )


@dataclass(frozen=True)
class Prior:
    """Gaussian prior of one nuisance parameter, in the parameter's own unit."""

    mean: float
    width: float
    unit: str


PRIORS: dict[str, Prior] = {
    "d0_core_scale": Prior(1.0, 0.10, ""),
    "z0_core_scale": Prior(1.0, 0.10, ""),
    "tail_fraction_scale": Prior(1.0, 0.50, ""),
    "d0_bias_mm": Prior(0.0, 0.005, "mm"),
    "z0_bias_mm": Prior(0.0, 0.020, "mm"),
    "efficiency_shift": Prior(0.0, 0.02, ""),
    "dense_core_loss_scale": Prior(1.0, 0.40, ""),
    "fake_rate_scale": Prior(1.0, 0.40, ""),
    "pileup_mu": Prior(40.0, 4.0, ""),
    "material_scale": Prior(1.0, 0.15, ""),
    "innermost_efficiency_shift": Prior(0.0, 0.02, ""),
    "jet_energy_scale": Prior(1.0, 0.02, ""),
    "jet_energy_resolution_scale": Prior(1.0, 0.10, ""),
    "momentum_resolution_scale": Prior(1.0, 0.10, ""),
}
"""Means are the nominal values; widths cover the data/simulation ratios seen at the LHC
(core of the signed significance 0.97-1.10, fraction beyond three sigma 0.85-1.41)."""
