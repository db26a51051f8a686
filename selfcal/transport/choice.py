"""Which maps a configuration asks for, and what the names of their families stand for in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from selfcal.config.calibration import MapConfig
from selfcal.config.evaluation import FAMILIES, Family, MapFamily
from selfcal.transport.brenier_map import BrenierMap
from selfcal.transport.flow_map import FlowMap
from selfcal.transport.maps import CalibrationMap, FlavourMaps, IdentityMap
from selfcal.transport.residual_map import ResidualMap
from selfcal.transport.switch_map import SwitchMap

BUILDERS: Mapping[MapFamily, Callable[[int, int, MapConfig], CalibrationMap]] = {
    "identity": lambda _coordinates, _conditions, _config: IdentityMap(),
    "residual": ResidualMap,
    "brenier": BrenierMap,
    "flow": FlowMap,
    "switch": SwitchMap,
}
"""Each from the numbers of coordinates and of conditions, and the configuration."""

FAMILY_OPTIONS: Mapping[Family, Mapping[str, Any]] = {
    "residual": {"family": "residual", "distance": "energy"},
    "residual_sliced_wasserstein": {"family": "residual", "distance": "sliced_wasserstein"},
    "residual_mmd": {"family": "residual", "distance": "mmd"},
    "flow": {"family": "flow", "library": "zuko", "structure": "coupling"},
    "flow_energy": {
        "family": "flow",
        "library": "zuko",
        "structure": "coupling",
        "fit_by": "distance",
        "distance": "energy",
    },
    "flow_autoregressive": {"family": "flow", "library": "zuko", "structure": "autoregressive"},
    "flow_nflows": {"family": "flow", "library": "nflows", "structure": "coupling"},
    "switch": {"family": "switch", "library": "zuko", "structure": "coupling"},
}
"""What each changes in the configuration of the map, where that is more than its family."""


def map_config(family: Family, config: MapConfig) -> MapConfig:
    """``config`` with another family, by the likelihood where it has an inverse and nothing else is said."""
    options = FAMILY_OPTIONS.get(family, {"family": family})
    return MapConfig.model_validate({**config.model_dump(), "fit_by": "auto", **options})


def family_of(config: MapConfig) -> Family | None:
    """The family that a configuration asks for; None if it is none of ``FAMILIES``."""
    for name in FAMILIES:
        same = map_config(name, config)
        alike = same.model_copy(update={"fit_by": config.fit_by}) == config
        if alike and same.by_likelihood == config.by_likelihood:
            return name
    return None


def build_maps(config: MapConfig, coordinates: int, conditions: int) -> FlavourMaps:
    """The maps that a configuration asks for, as identities."""
    return FlavourMaps(lambda: BUILDERS[config.family](coordinates, conditions, config))
