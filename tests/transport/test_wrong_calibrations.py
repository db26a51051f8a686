"""Calibrations that are wrong, and look right where one does not look closely: they must be caught."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from selfcal.config.calibration import MapConfig
from selfcal.data.flavours import FLAVOURS, B
from selfcal.data.scored import ScoredJets, concatenate
from selfcal.likelihood.templates import Binning
from selfcal.study.closure_rows import failures, region_rows
from selfcal.tagger.discriminants import discriminant_b
from selfcal.tagger.working_points import thresholds
from selfcal.transport.averaged_descent import DistanceSchedule
from selfcal.transport.calibration import Calibration
from selfcal.transport.choice import build_maps
from selfcal.transport.composition import CompositionPrior, fit_by_distance
from selfcal.transport.conditions import CONDITIONS
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.sample import build_sample
from tests.transport.synthetic_world import REGIONS, SyntheticWorld

WORKING_POINT = 0.77


def d_b(jets: ScoredJets) -> np.ndarray:
    return discriminant_b(jets.log_probability)


def labelled_data(world: SyntheticWorld) -> list[ScoredJets]:
    return [replace(world.data[r], flavour=world.data_flavour[r].astype(np.int8)) for r in REGIONS]


def binning_of(simulation: ScoredJets) -> Binning:
    b_jets = simulation.select(simulation.flavour == B)
    (edge,) = thresholds(d_b(b_jets), b_jets.weight, [WORKING_POINT])
    return Binning((20.0, 1000.0), (float(edge),), (WORKING_POINT,))


def as_one_region(jets: list[ScoredJets]) -> ScoredJets:
    return replace(concatenate(jets), region="all")


def share_passing(jets: ScoredJets, edge: float, weight: np.ndarray) -> float:
    return float(weight[d_b(jets) >= edge].sum() / weight.sum())


def closure_of(calibration: Calibration, world: SyntheticWorld) -> list[dict]:
    simulation = as_one_region(list(world.simulation.values()))
    rows = region_rows(
        as_one_region(labelled_data(world)),
        simulation,
        simulation,
        calibration,
        binning_of(simulation),
        d_b,
        np.zeros((len(FLAVOURS), 1)),
    )
    return [{"region": "all", **row} for row in rows]


def pooled_marginal_fit(
    calibration: Calibration, simulation: ScoredJets, data: ScoredJets, fractions: np.ndarray
) -> FlavourMaps:
    """All regions poured together, fractions given and not fitted, flexible maps with no price."""
    frame = calibration.frame
    samples = [build_sample({"all": jets}, ("all",), frame) for jets in (simulation, data)]
    given = torch.from_numpy(fractions)[None]
    torch.manual_seed(1)
    maps = build_maps(MapConfig(family="residual", displacement_scale=10.0), 3, CONDITIONS)
    fit_by_distance(
        samples[0],
        samples[1],
        CompositionPrior(given, 1e-5 * torch.ones_like(given)),
        maps,
        given,
        DistanceSchedule(150, 384, 2e-2),
        torch.Generator().manual_seed(2),
    )
    return maps


def test_a_pooled_marginal_penalty_closes_in_the_mixture_and_is_wrong_per_flavour(
    calibration: Calibration, world: SyntheticWorld
) -> None:
    """With half the charm that there is. On the same data the default is right, flavour by flavour."""
    simulation = as_one_region(list(world.simulation.values()))
    truth = as_one_region(labelled_data(world))
    binning = binning_of(simulation)
    fractions = np.bincount(truth.flavour, minlength=4) / len(truth)
    wrong = fractions * np.array([1.0, 0.5, 1.0, 1.0])
    wrong[2] += fractions[1] - wrong[1]
    data = replace(truth, flavour=np.full(len(truth), -1, dtype=np.int8))
    maps = pooled_marginal_fit(calibration, simulation, data, wrong)

    # The mixture, with the fractions that the fit believes in, closes.
    edge = binning.discriminant_edges[0]
    moved = calibration.apply(simulation, maps)
    weight = (wrong / (np.bincount(simulation.flavour, minlength=4) / len(simulation)))[simulation.flavour]
    passing = share_passing(truth, edge, truth.weight)
    assert abs(share_passing(moved, edge, weight) / passing - 1) < 0.03

    pooled = {row["flavour"]: row for row in closure_of(replace(calibration, nominal=maps), world)}
    default = {row["flavour"]: row for row in closure_of(calibration, world)}
    assert abs(pooled["c"]["ratio_calibrated"] - 1) > 0.2
    assert abs(default["b"]["ratio_calibrated"] - 1) < 0.05
    assert abs(default["c"]["ratio_calibrated"] - 1) < 0.06
    light = default["light"]
    assert abs(light["ratio_calibrated"] - 1) < 2 * light["error"] < abs(light["ratio_uncalibrated"] - 1)
    assert not failures(list(default.values()))


def test_light_jets_shifted_by_a_third_of_their_spread_are_caught_by_the_closure(
    calibration: Calibration, world: SyntheticWorld
) -> None:
    honest = closure_of(calibration, world)
    assert not [row for row in failures(honest) if row["flavour"] == "light"]

    def shifted(maps: FlavourMaps) -> FlavourMaps:
        wrong = copy.deepcopy(maps)
        affine = wrong.of(FLAVOURS.index("light"))
        affine = getattr(affine, "affine", affine)
        with torch.no_grad():
            affine.constant[3:6] += 0.3
        return wrong

    # Replicas, seeds and stiff maps make the same mistake: the spread that is quoted stays as small.
    wrong = replace(
        calibration,
        nominal=shifted(calibration.nominal),
        stiff=shifted(calibration.stiff),
        replicas=tuple(shifted(maps) for maps in calibration.replicas),
        seeds=tuple(shifted(maps) for maps in calibration.seeds),
    )
    found = failures(closure_of(wrong, world))
    assert [row["flavour"] for row in found] == ["light"]
    assert abs(found[0]["pull"]) > 5
