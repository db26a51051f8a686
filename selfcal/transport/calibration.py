"""A finished calibration: maps, their replicas and the composition, on disk and applied to jets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfcal.config.calibration import MapConfig
from selfcal.config.evaluation import Family
from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays, write_arrays
from selfcal.run.sealed import read_sealed, write_sealed
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.choice import build_maps, map_config
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import CONDITIONS, ScoreFrame, condition_features
from selfcal.transport.derivation import Derivation
from selfcal.transport.extrapolation import with_extrapolated
from selfcal.transport.maps import FlavourMaps

ARRAYS_NAME, DESCRIPTION_NAME = "map.safetensors", "map.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Calibration:
    """What the calibrate stage found.

    Attributes
    ----------
    frame : coordinates in which the maps act
    regions : control regions, in the order of the rows of ``fractions``
    nominal : maps by likelihood
    stiff : affine maps by the energy distance, another model of the same shift
    replicas : M bootstrap replicas of ``nominal``
    seeds : fits like ``nominal`` that started from other initial weights
    families : fits like ``nominal`` with maps of other families
    region_scale : (F,) standard deviation of what a region may move a flavour's jets more than the map
        does, per coordinate (``region_dependence``)
    prior, bulk_fractions, fractions, fraction_uncertainty : composition of the cards, of the bulk
        distance and of the likelihood, and the σ of the latter, (R, F)
    extrapolated : flavours that no region determines: their nominal map is the identity, and their
        stiff map makes the step that is their uncertainty
    """

    frame: ScoreFrame
    regions: tuple[str, ...]
    nominal: FlavourMaps
    stiff: FlavourMaps
    replicas: tuple[FlavourMaps, ...]
    prior: CompositionPrior
    fractions: Float[Tensor, "regions flavours"]
    bulk_fractions: Float[Tensor, "regions flavours"]
    fraction_uncertainty: Float[Tensor, "regions flavours"]
    extrapolated: tuple[str, ...] = ()
    seeds: tuple[FlavourMaps, ...] = ()
    region_scale: tuple[float, ...] = (0.0,) * len(FLAVOURS)
    families: Mapping[Family, FlavourMaps] = field(default_factory=dict)

    def apply(self, jets: ScoredJets, maps: FlavourMaps) -> ScoredJets:
        """Simulated ``jets`` as they would look in data under ``maps``.

        Raises
        ------
        DataError
            If a jet has no flavour: the map depends on it.
        """
        if (jets.flavour < 0).any():
            raise DataError(
                f"{int((jets.flavour < 0).sum())} jets without flavour label",
                where=jets.region,
                expected="labelled simulation: data are never transported",
            )
        with torch.no_grad():
            moved = maps(
                self.frame.enter(torch.from_numpy(jets.log_probability)),
                torch.from_numpy(jets.flavour.astype(np.int64)),
                condition_features(jets.pt_gev, jets.abs_eta),
            )
            return replace(jets, log_probability=self.frame.leave(moved).numpy())

    def elsewhere(self, moved: ScoredJets) -> list[tuple[ScoredJets, ScoredJets]]:
        """Calibrated jets of a region that had no part in the calibration, as they might also look there.

        Each coordinate in turn is shifted up and down by ``region_scale`` of the jet's flavour.
        """
        coordinates = self.frame.enter(torch.from_numpy(moved.log_probability))
        step = coordinates.new_tensor(self.region_scale)[torch.from_numpy(moved.flavour.astype(np.int64))]
        pairs = []
        for axis in range(coordinates.shape[1]):
            along = torch.zeros_like(coordinates)
            along[:, axis] = step
            up, down = (self.frame.leave(coordinates + sign * along).numpy() for sign in (1.0, -1.0))
            pairs.append((replace(moved, log_probability=up), replace(moved, log_probability=down)))
        return pairs


def collect(derivation: Derivation, regions: tuple[str, ...], frame: ScoreFrame) -> Calibration:
    """Gather the results of a derivation whose tasks are all done."""
    count = derivation.config.bootstraps
    replicas = [derivation.mixture(f"replica-{index}") for index in range(count)]
    nominal, bulk = derivation.mixture(), derivation.composition()
    undetermined = derivation.undetermined()
    stiff = with_extrapolated(
        bulk.score_maps(derivation.simulation.coordinates.shape[1]),
        undetermined,
        derivation.simulation,
        derivation.config.composition.map_scale,
    )
    return Calibration(
        frame=frame,
        regions=regions,
        nominal=nominal.maps,
        stiff=stiff,
        replicas=tuple(replica.maps for replica in replicas),
        prior=derivation.prior,
        fractions=nominal.fractions,
        bulk_fractions=bulk.fractions,
        fraction_uncertainty=derivation.final_uncertainty(),
        extrapolated=tuple(FLAVOURS[index] for index in undetermined),
        seeds=tuple(derivation.mixture(f"seed-{index}").maps for index in range(derivation.config.seeds)),
        region_scale=tuple(derivation.region_dependence().scale.tolist()),
        families={name: derivation.mixture(f"family-{name}").maps for name in derivation.config.families},
    )


def _stored(maps: FlavourMaps, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": value.numpy() for name, value in maps.state_dict().items()}


def save_calibration(calibration: Calibration, config: MapConfig, folder: Path) -> list[Path]:
    """Write ``map.safetensors`` and ``map.json``; returns both paths."""
    arrays = {
        "prior/fractions": calibration.prior.fractions.numpy(),
        "prior/uncertainty": calibration.prior.uncertainty.numpy(),
        "composition/fractions": calibration.fractions.numpy(),
        "composition/bulk": calibration.bulk_fractions.numpy(),
        "composition/uncertainty": calibration.fraction_uncertainty.numpy(),
    }
    arrays |= _stored(calibration.nominal, "nominal") | _stored(calibration.stiff, "stiff")
    for index, maps in enumerate(calibration.replicas):
        arrays |= _stored(maps, f"replica-{index}")
    for index, maps in enumerate(calibration.seeds):
        arrays |= _stored(maps, f"seed-{index}")
    for name, maps in calibration.families.items():
        arrays |= _stored(maps, f"family-{name}")
    write_arrays(folder / ARRAYS_NAME, arrays)
    write_sealed(
        folder / DESCRIPTION_NAME,
        {
            "format_version": FORMAT_VERSION,
            "regions": list(calibration.regions),
            "frame": {"mean": calibration.frame.mean, "scale": calibration.frame.scale},
            "map": config.model_dump(mode="json"),
            "replicas": len(calibration.replicas),
            "extrapolated": list(calibration.extrapolated),
            "seeds": len(calibration.seeds),
            "families": list(calibration.families),
            "region_scale": list(calibration.region_scale),
        },
    )
    return [folder / ARRAYS_NAME, folder / DESCRIPTION_NAME]


def load_calibration(folder: Path) -> Calibration:
    """Read what :func:`save_calibration` wrote.

    Raises
    ------
    DataError
        If a file is missing, damaged or of another format version.
    """
    described = read_sealed(folder / DESCRIPTION_NAME)
    arrays = {name: torch.from_numpy(value) for name, value in read_arrays(folder / ARRAYS_NAME).items()}
    try:
        if described["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {described['format_version']}, expected {FORMAT_VERSION}")
        config = MapConfig.model_validate(described["map"])
        frame = ScoreFrame(tuple(described["frame"]["mean"]), tuple(described["frame"]["scale"]))
        width = len(frame.mean)

        # The prior width of a map matters while it is fitted, not afterwards.
        def restored(maps: FlavourMaps, prefix: str) -> FlavourMaps:
            start = prefix + "/"
            maps.load_state_dict({n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)})
            return maps.requires_grad_(requires_grad=False)

        return Calibration(
            frame=frame,
            regions=tuple(described["regions"]),
            nominal=restored(build_maps(config, width, CONDITIONS), "nominal"),
            stiff=restored(FlavourMaps(lambda: AffineMap(width, CONDITIONS, prior_width=1.0)), "stiff"),
            replicas=tuple(
                restored(build_maps(config, width, CONDITIONS), f"replica-{index}")
                for index in range(described["replicas"])
            ),
            prior=CompositionPrior(arrays["prior/fractions"], arrays["prior/uncertainty"]),
            fractions=arrays["composition/fractions"],
            bulk_fractions=arrays["composition/bulk"],
            fraction_uncertainty=arrays["composition/uncertainty"],
            extrapolated=tuple(described["extrapolated"]),
            seeds=tuple(
                restored(build_maps(config, width, CONDITIONS), f"seed-{i}")
                for i in range(described["seeds"])
            ),
            region_scale=tuple(described["region_scale"]),
            families={
                name: restored(build_maps(map_config(name, config), width, CONDITIONS), f"family-{name}")
                for name in described.get("families", ())
            },
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"not a calibration of this version: {error}", where=str(folder)) from error
