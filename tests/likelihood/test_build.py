"""Templates of the measure fold: every entry against a count made by hand, under maps of known shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.config.tagger import TaggerConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.data.scored import ScoredJets
from selfcal.errors import ConfigError, DataError
from selfcal.likelihood.build import (
    HISTOGRAM_BINS,
    MeasureFold,
    build_templates,
    working_point_binning,
    write_discriminants,
)
from selfcal.likelihood.stage import two_jets
from selfcal.likelihood.templates import Binning
from selfcal.run.atomic import read_arrays
from selfcal.transport.affine_map import AffineMap
from selfcal.transport.calibration import Calibration
from selfcal.transport.composition import CompositionPrior
from selfcal.transport.conditions import ScoreFrame
from selfcal.transport.maps import FlavourMaps
from selfcal.transport.simplex import log_probability_from_coordinates

REGIONS = ("first", "second")
BINNING = Binning((20.0, 60.0, 250.0), (-1.0, 1.0), (0.85, 0.7), (0.0, 1.2, 2.5))
TAGGER = TaggerConfig()
FRACTIONS = torch.tensor([[0.6, 0.1, 0.25, 0.05], [0.1, 0.2, 0.65, 0.05]], dtype=torch.float64)
UNCERTAINTY = torch.tensor([[0.06, 0.05, 0.05, 0.1], [0.01, 0.02, 0.13, 0.05]], dtype=torch.float64)


def scored(region: str, jets: int, seed: int, labelled: bool) -> ScoredJets:
    random = np.random.default_rng(seed)
    coordinates = random.normal(size=(jets, 3))
    flavour = random.integers(0, 4, jets) if labelled else np.full(jets, -1)
    return ScoredJets(
        region,
        log_probability_from_coordinates(torch.from_numpy(coordinates)).numpy(),
        random.uniform(15, 300, jets),
        random.uniform(0, 2.7, jets),
        flavour.astype(np.int8),
        random.uniform(0.5, 1.5, jets) if labelled else np.ones(jets),
        np.full(jets, 2, dtype=np.int8),
        np.arange(jets),
    )


def maps_by(shift: float) -> FlavourMaps:
    """Every flavour's coordinates move by ``shift`` in the frame."""
    maps = FlavourMaps(lambda: AffineMap(3, 2, 0.1))
    with torch.no_grad():
        for index in range(len(FLAVOURS)):
            maps.of(index).constant[3:6] = shift
    return maps.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def fold() -> MeasureFold:
    simulation = {name: scored(name, 600, seed, labelled=True) for seed, name in enumerate(REGIONS)}
    data = {
        name: scored(name, 400 + 100 * seed, 10 + seed, labelled=False) for seed, name in enumerate(REGIONS)
    }
    return MeasureFold(simulation, data, BINNING, TAGGER)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(
        ScoreFrame((0.1, 0.0, -0.1), (1.0, 2.0, 0.5)),
        REGIONS,
        maps_by(0.0),
        maps_by(0.4),
        (maps_by(0.2), maps_by(-0.1)),
        CompositionPrior(FRACTIONS, 0.2 * FRACTIONS),
        FRACTIONS,
        FRACTIONS,
        UNCERTAINTY,
        seeds=(maps_by(0.3), maps_by(-0.2)),
        families={"brenier": maps_by(0.25), "flow_nflows": maps_by(-0.15)},
    )


def by_hand(fold: MeasureFold, calibration: Calibration, shift: float, power: int = 1) -> np.ndarray:
    """(R, F, P, K) by one loop over jets whose scores are moved by the shift."""
    found = np.zeros((2, 4, BINNING.n_kinematic, BINNING.n_bins))
    for r, region in enumerate(REGIONS):
        jets = fold.simulation[region]
        moved = calibration.frame.enter(torch.from_numpy(jets.log_probability)) + shift
        d_b = fold.discriminant(replace(jets, log_probability=calibration.frame.leave(moved).numpy()))
        for i in range(len(jets)):
            pt_gev, abs_eta = jets.pt_gev[i], jets.abs_eta[i]
            if 20 <= pt_gev < 250 and abs_eta < 2.5:
                p = 2 * int(pt_gev >= 60) + int(abs_eta >= 1.2)
                k = int(d_b[i] >= -1.0) + int(d_b[i] >= 1.0)
                found[r, jets.flavour[i], p, k] += jets.weight[i] ** power
    return found


def test_templates_are_counts_of_moved_jets(fold: MeasureFold, calibration: Calibration) -> None:
    found = build_templates(fold, calibration)
    plain, exact = by_hand(fold, calibration, 0.0), {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(found.nominal, plain, **exact)
    np.testing.assert_allclose(found.calibrated, plain, **exact)
    np.testing.assert_allclose(found.nominal_variance, by_hand(fold, calibration, 0.0, power=2), **exact)
    np.testing.assert_allclose(found.calibrated_variance, found.nominal_variance, **exact)
    np.testing.assert_allclose(found.variations["stiff"], by_hand(fold, calibration, 0.4), **exact)
    for replica, shift in zip(found.replicas, (0.2, -0.1), strict=True):
        np.testing.assert_allclose(replica, by_hand(fold, calibration, shift), **exact)
    # Two other seeds: half of each difference, so that both together have the variance of one fit.
    for name, shift in (("seed0", 0.3), ("seed1", -0.2)):
        expected = plain + 0.5 * (by_hand(fold, calibration, shift) - plain)
        np.testing.assert_allclose(found.variations[name], expected, **exact)
    # Two other families: together the root mean square of their differences.
    for name, shift in (("brenier", 0.25), ("flow_nflows", -0.15)):
        expected = plain + (by_hand(fold, calibration, shift) - plain) / 2**0.5
        np.testing.assert_allclose(found.variations[f"family_{name}"], expected, **exact)
    assert set(found.variations) == {"stiff", "seed0", "seed1", "family_brenier", "family_flow_nflows"}
    assert found.corrected is None
    assert found.detector == {}
    for r, region in enumerate(REGIONS):
        jets = fold.data[region]
        counted = BINNING.count(jets.pt_gev, jets.abs_eta, fold.discriminant(jets), jets.weight)
        np.testing.assert_array_equal(found.data[r], counted)
    np.testing.assert_array_equal(found.composition, FRACTIONS.numpy())
    relative = [[0.1, 0.5, 0.2, 1.0], [0.1, 0.1, 0.2, 1.0]]
    np.testing.assert_allclose(found.composition_relative_uncertainty, relative, rtol=1e-12)


def test_with_a_detector_nominal_is_the_simulation_as_it_was(
    fold: MeasureFold, calibration: Calibration
) -> None:
    before = {name: scored(name, 600, 20 + seed, labelled=True) for seed, name in enumerate(REGIONS)}
    found = build_templates(replace(fold, uncorrected=before, detector=(before,)), calibration)
    plain = by_hand(fold, calibration, 0.0)
    old = by_hand(replace(fold, simulation=before), calibration, 0.0)
    np.testing.assert_allclose(found.nominal, old, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.calibrated, plain, rtol=1e-12, atol=1e-12)
    assert found.corrected is not None
    np.testing.assert_allclose(found.corrected, plain, rtol=1e-12, atol=1e-12)
    # One direction of the detector is one mode, with its own sign or the other.
    (mode,) = found.detector.values()
    sign = np.sign(((mode - plain) * (old - plain)).sum())
    np.testing.assert_allclose(plain + sign * (mode - plain), old, rtol=1e-9, atol=1e-9)


def test_working_points_have_the_efficiency_of_their_name(fold: MeasureFold) -> None:
    jets = fold.simulation["first"]
    config = FitConfig(working_points=(0.7, 0.85), pt_gev_edges=(20, 60, 250))
    binning = working_point_binning(jets, config, TAGGER)
    assert binning.working_points == (0.85, 0.7)
    assert binning.discriminant_edges[0] < binning.discriminant_edges[1]
    b_jets = jets.select(jets.flavour == 0)
    d_b = fold.discriminant(b_jets)
    for edge, efficiency in zip(binning.discriminant_edges, binning.working_points, strict=True):
        passing = b_jets.weight[d_b >= edge].sum() / b_jets.weight.sum()
        assert efficiency <= passing < efficiency + b_jets.weight.max() / b_jets.weight.sum()
    with pytest.raises(DataError, match="no simulated b jets to define the working points") as caught:
        working_point_binning(jets.select(jets.flavour != 0), config, TAGGER)
    assert caught.value.where == "region first"


def test_histograms_have_the_jets_of_data_and_the_fitted_composition(
    fold: MeasureFold, calibration: Calibration, tmp_path
) -> None:
    arrays = read_arrays(write_discriminants(fold, calibration, tmp_path / "d.safetensors"))
    assert len(arrays["edges"]) == HISTOGRAM_BINS + 1
    for r, region in enumerate(REGIONS):
        number = len(fold.data[region])
        assert arrays[f"data/{region}"].sum() == pytest.approx(number)
        for name in ("nominal", "calibrated"):
            sums = [arrays[f"{name}/{region}/{flavour}"].sum() for flavour in FLAVOURS]
            assert sums == pytest.approx((number * FRACTIONS[r]).tolist(), rel=1e-9)
        total = sum(arrays[f"calibrated/{region}/{flavour}"] for flavour in FLAVOURS)
        up, down = (arrays[f"calibrated_{side}/{region}"] for side in ("up", "down"))
        error = up - total
        np.testing.assert_allclose(down, np.maximum(total - error, 0.0), atol=1e-9)
        jets = fold.simulation[region]
        weight = jets.weight * (FRACTIONS[r].numpy() / np.bincount(jets.flavour, jets.weight))[jets.flavour]
        weight *= number / weight.sum()

        def histogram(shift: float, w: np.ndarray, jets: ScoredJets = jets) -> np.ndarray:
            moved = calibration.frame.enter(torch.from_numpy(jets.log_probability)) + shift
            d_b = fold.discriminant(replace(jets, log_probability=calibration.frame.leave(moved).numpy()))
            edges = arrays["edges"]
            place = np.clip(np.searchsorted(edges, d_b, side="right") - 1, 0, HISTOGRAM_BINS - 1)
            return np.bincount(place, weights=w, minlength=HISTOGRAM_BINS)

        squares = histogram(0.0, weight**2)
        np.testing.assert_allclose(arrays[f"nominal_variance/{region}"], squares, atol=1e-9)
        difference = histogram(0.2, weight) - histogram(-0.1, weight)
        np.testing.assert_allclose(error, np.sqrt(difference**2 / 2 + squares), atol=1e-9)


def test_pairs_of_jets_need_a_region_that_is_there(fold: MeasureFold, calibration: Calibration) -> None:
    with pytest.raises(ConfigError, match="no region 'dijet'") as caught:
        two_jets(fold, calibration, FitConfig(two_jet_region="dijet"), blind=False)
    assert caught.value.expected == "a region among first, second"
