"""Which channels and reference regions a fit has, and the templates brought into its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.errors import ConfigError, DataError
from selfcal.likelihood.external import NONE, external_entries
from selfcal.likelihood.templates import Binning, Templates

Status = Literal["measured", "unmeasured", "extrapolated", "external"]

FLOOR_ENTRIES = 0.1
"""Content of an empty template bin, in units of the mean weight: keeps every expectation positive."""
NEGLIGIBLE = 1e-6
"""Part of that which is left where a scale factor from elsewhere fixes the bin."""


@dataclass(frozen=True)
class Layout:
    """R regions, F flavours, P kinematic bins, K discriminant bins of one fit.

    Attributes
    ----------
    active : (R, P) whether the channel has data and is fitted
    reference : (F,) index of the region in which each flavour's scale factor is quoted, -1: none
    own_region : (F,) whether that is the flavour's configured reference region
    free : (F, P) whether the flavour's shape is free in that kinematic bin
    external : (F, P) whether the flavour's scale factor is known from elsewhere
    yields : (R, F) prior central value of the number of jets
    shape : (R, F, P, K) calibrated templates, each (r, f) summing to one over the active channels
    relative_error : (R, F, P, K) statistical error of ``shape`` relative to it
    """

    regions: tuple[str, ...]
    flavours: tuple[str, ...]
    binning: Binning
    active: NDArray[np.bool_]
    reference: NDArray[np.int64]
    own_region: NDArray[np.bool_]
    free: NDArray[np.bool_]
    external: NDArray[np.bool_]
    yields: NDArray[np.float64]
    shape: NDArray[np.float64]
    relative_error: NDArray[np.float64]

    def channel(self, region: int, kinematic_bin: int) -> str:
        """Name of a channel in the workspace."""
        return f"{self.regions[region]}_{self.binning.name(kinematic_bin)}"

    def has(self, region: int, flavour: int, kinematic_bin: int) -> bool:
        """Whether a flavour is expected in a channel."""
        return bool(
            self.active[region, kinematic_bin]
            and self.yields[region, flavour] > 0
            and self.shape[region, flavour, kinematic_bin].sum() > 0
        )

    def status(self, flavour: int, kinematic_bin: int) -> Status:
        """Whether the data of a reference region determine this flavour in this kinematic bin."""
        region = int(self.reference[flavour])
        if region < 0 or not self.has(region, flavour, kinematic_bin):
            return "unmeasured"
        if self.own_region[flavour]:
            return "measured"
        return "external" if self.external[flavour, kinematic_bin] else "extrapolated"


def sample_name(flavour: str, k: int) -> str:
    """Name of the sample that holds one discriminant bin of a flavour."""
    return f"{flavour}_bin{k}"


def make_layout(templates: Templates, config: FitConfig) -> Layout:
    """Decide on channels and reference regions, normalise the templates, fill their empty bins.

    A template without simulated jets takes its shape from the sum over the regions. A flavour whose
    reference region is not among the regions is quoted where the most of its jets are expected, with
    status ``extrapolated``, or ``external`` where its scale factor is given.

    Raises
    ------
    DataError
        If templates hold NaN, infinities or negative sums, or no channel has data.
    ConfigError
        If a flavour has no entry in ``residual_width`` although it is not free.
    """
    _check(templates)
    n_regions, n_flavours = len(templates.regions), len(FLAVOURS)
    active = templates.data.sum(axis=2) > 0
    if not active.any():
        raise DataError("no region has data in the measure fold", where="fit")
    data_total = (templates.data.sum(axis=2) * active).sum(axis=1)
    yields = templates.composition * data_total[:, None]
    external = external_entries(templates.binning, config) != NONE
    shape = np.zeros_like(templates.calibrated)
    relative_error = np.zeros_like(shape)
    for r in range(n_regions):
        for f in range(n_flavours):
            if yields[r, f] > 0:
                shape[r, f], relative_error[r, f] = _normalised(templates, (r, f), active[r], external[f])
    yields = yields * (shape.sum(axis=(2, 3)) > 0)
    reference, own_region = _references(templates.regions, config, yields)
    free = np.zeros((n_flavours, active.shape[1]), dtype=bool)
    for f, name in enumerate(FLAVOURS):
        if name in config.free_flavours and own_region[f]:
            free[f] = active[reference[f]] & (shape[reference[f], f].sum(axis=1) > 0)
        if name not in config.residual_width:
            raise ConfigError(f"no residual width for flavour '{name}'", where="fit.residual_width")
    return Layout(
        regions=templates.regions,
        flavours=FLAVOURS,
        binning=templates.binning,
        active=active,
        reference=reference,
        own_region=own_region,
        free=free,
        external=external,
        yields=yields,
        shape=shape,
        relative_error=relative_error,
    )


def _check(templates: Templates) -> None:
    for name in ("data", "nominal", "nominal_variance", "calibrated", "calibrated_variance", "composition"):
        values = getattr(templates, name)
        if not np.isfinite(values).all() or (values < 0).any():
            raise DataError(
                f"templates.{name} holds negative, infinite or undefined values",
                where="fit",
                expected="sums of weights per bin that are zero or positive",
                fix="merge pT or discriminant bins in which negative weights prevail",
            )
    shifted = {
        "replicas": templates.replicas,
        "composition_relative_uncertainty": templates.composition_relative_uncertainty,
        **{f"variations.{name}": values for name, values in templates.variations.items()},
        **{f"detector.{name}": values for name, values in templates.detector.items()},
    }
    for name, values in shifted.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"templates.{name} holds {int((~np.isfinite(values)).sum())} infinite or undefined values",
                where="fit",
                expected="finite numbers",
                fix="run the stages before the fit again; report it if they write the same",
            )


def _normalised(
    templates: Templates, key: tuple[int, int], active: NDArray[np.bool_], external: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shape (P, K) of one region and flavour, and its relative error (at most one).

    Empty bins are filled; with next to nothing where an external scale factor says what sums of bins are.
    """
    r, f = key
    content, variance = templates.calibrated[r, f], templates.calibrated_variance[r, f]
    if content[active].sum() == 0:
        content = templates.calibrated[:, f].sum(axis=0)
        variance = templates.calibrated_variance[:, f].sum(axis=0)
    content, variance = content * active[:, None], variance * active[:, None]
    if content.sum() == 0:
        return content, np.zeros_like(content)
    mean_weight = variance.sum() / content.sum()
    floor = FLOOR_ENTRIES * max(mean_weight, 1e-6 * content.max())
    least = np.where(external, NEGLIGIBLE, 1.0) * floor
    filled = np.where(active[:, None], np.maximum(content, least[:, None]), 0.0)
    error = np.sqrt(np.where(content > 0, variance, mean_weight**2))
    relative = np.minimum(np.divide(error, filled, out=np.zeros_like(filled), where=filled > 0), 1.0)
    return filled / filled.sum(), relative * active[:, None]


def _references(
    regions: tuple[str, ...], config: FitConfig, yields: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    reference = np.full(len(FLAVOURS), -1, dtype=np.int64)
    own = np.zeros(len(FLAVOURS), dtype=bool)
    for f, name in enumerate(FLAVOURS):
        wanted = config.reference_regions.get(name)  # type: ignore[call-overload]
        if wanted in regions:
            reference[f], own[f] = regions.index(wanted), True
        elif yields[:, f].max() > 0:
            reference[f] = int(yields[:, f].argmax())
    return reference, own
