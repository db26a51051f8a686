"""Composition, densities and maps refitted, with the densities and the bootstrap spreads of a finished run.

Maps start at the identity, the centre of the remainders that are drawn: those of the run know its own data,
which few steps do not forget.

A pseudo-experiment has the sizes and the priors of the run, so the spreads of its fractions and maps are
taken from the run's replicas, relative to the central values; central values are refitted every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError, DataError
from selfcal.likelihood.shifts import relative_shift
from selfcal.likelihood.templates import read_templates
from selfcal.run.context import RunContext
from selfcal.transport.base_density import BaseDensities, continue_base_densities
from selfcal.transport.calibration import Calibration, load_calibration
from selfcal.transport.composition import CompositionPrior, fit_composition
from selfcal.transport.control_regions import composition_prior
from selfcal.transport.derivation import Derivation
from selfcal.transport.derivation_tasks import fit_maps
from selfcal.transport.extrapolation import with_extrapolated
from selfcal.transport.sample import build_sample, simulated_fractions

Floats = NDArray[np.float64]
REFITTED = "stiff"
"""The variation of the map that every pseudo-experiment fits itself."""


@dataclass(frozen=True)
class WarmStart:
    """Where refits start, and how uncertain they are; R regions, F flavours, M replicas of the run.

    Attributes
    ----------
    run : the run's own calibration
    bulk_spread : (R, F) relative standard deviation of the fractions of the bulk fit
    replica_fractions : (M, R, F) deviation of the replicas' fractions from their mean, relative to it
    replica_shift : (M, R, F, P, K) shift of the templates by the replicas, relative to the nominal map's
    seed_shift : name -> (R, F, P, K) the same by fits from other initial weights
    undetermined : indices of the flavours whose map is the identity
    """

    run: Calibration
    densities: BaseDensities | None
    bulk_spread: Floats
    replica_fractions: Floats
    replica_shift: Floats
    seed_shift: Mapping[str, Floats]
    undetermined: tuple[int, ...]


def read_warm_start(context: RunContext) -> WarmStart:
    """From the derivation, the map and the templates of a finished run.

    Raises
    ------
    DataError
        If the run is not finished up to its fit.
    """
    templates = context.directory.results / "templates.json"
    if not templates.exists():
        raise DataError(
            "no finished fit to start from",
            where=str(context.directory.path),
            fix="run 'selfcal run' to the end first",
        )
    derivation = Derivation.of_run(context.directory)
    calibration = load_calibration(context.directory.results / "map")
    fitted = read_templates(templates)
    count = derivation.config.bootstraps
    bulk = torch.stack([derivation.composition(f"bulk-{i}").fractions for i in range(count)])
    replicas = torch.stack([derivation.mixture(f"replica-{i}").fractions for i in range(count)])
    return WarmStart(
        calibration,
        derivation.densities() if derivation.config.map.by_likelihood else None,
        (bulk.std(0) / bulk.mean(0)).numpy(),
        (replicas / replicas.mean(0) - 1).numpy(),
        relative_shift(fitted.replicas, np.broadcast_to(fitted.calibrated, fitted.replicas.shape)),
        {
            name: relative_shift(varied, fitted.calibrated)
            for name, varied in fitted.variations.items()
            if name != REFITTED
        },
        derivation.undetermined(),
    )


def refit(
    warm: WarmStart,
    context: RunContext,
    simulation: Mapping[str, ScoredJets],
    data: Mapping[str, ScoredJets],
    steps: int,
    seed: int,
) -> Calibration:
    """The steps of a run's derivation, ``steps`` long each, without replicas.

    Raises
    ------
    ConfigError
        If the fractions are fitted with separators, or by likelihood.
    FitError
        If a fit does not converge.
    """
    config = context.config.calibration_in_use
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    if config.composition.separators or config.composition.by != "distance":
        raise ConfigError(
            "pseudo-experiments hold no separators, and take fractions from the distance",
            where="calibration.composition",
            expected="'separators: []' and 'by: distance'",
        )
    simulated, observed = (
        build_sample(jets, warm.run.regions, warm.run.frame) for jets in (simulation, data)
    )
    count = len(warm.run.regions)
    prior = composition_prior(context, warm.run.regions, simulated_fractions(simulated, count))
    bulk = fit_composition(simulated, observed, prior, config.composition, generator, steps=steps)
    densities = warm.densities
    if densities is not None:
        densities = continue_base_densities(densities, simulated, config.base_density, steps, generator)
    spread = torch.from_numpy(np.hypot(warm.bulk_spread, config.composition.relative_floor))
    sigma = (spread * bulk.fractions).clamp_min(1e-4)
    fitted = fit_maps(
        simulation=simulated,
        data=observed,
        densities=densities,
        constraint=CompositionPrior(bulk.fractions, sigma),
        config=config.model_copy(update={"map": config.map.model_copy(update={"steps": steps})}),
        generator=generator,
        identities=warm.undetermined,
        pt_shape=bulk.pt_shape,
    )
    replicas = torch.from_numpy(warm.replica_fractions.std(0, ddof=1)) * fitted.fractions
    disagreement = fitted.fractions - bulk.fractions
    stiff = with_extrapolated(bulk.maps, warm.undetermined, simulated, config.composition.map_scale)
    return Calibration(
        frame=warm.run.frame,
        regions=warm.run.regions,
        nominal=fitted.maps,
        stiff=stiff,
        replicas=(fitted.maps,),
        prior=prior,
        fractions=fitted.fractions,
        bulk_fractions=bulk.fractions,
        fraction_uncertainty=(torch.maximum(replicas, sigma).square() + disagreement.square()).sqrt(),
        extrapolated=tuple(FLAVOURS[index] for index in warm.undetermined),
        region_scale=warm.run.region_scale,
    )
