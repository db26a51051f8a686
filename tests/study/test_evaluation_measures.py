"""The measures of closure on laws whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from selfcal.likelihood.templates import Binning
from selfcal.study.evaluation_measures import (
    FlavourJets,
    efficiency_measures,
    histogram_chi2,
    null_measures,
    rejection_measures,
    separations,
    wasserstein,
)

BINNING = Binning((20.0, 60.0, 250.0), (-1.0, 0.0, 1.0), (0.85, 0.77, 0.6))


def sample(random: np.random.Generator, jets: int, shift: float = 0.0, weight: float = 1.0) -> FlavourJets:
    u = random.normal(size=(jets, 3))
    u[:, 0] += shift
    return FlavourJets(
        u,
        random.normal(size=(jets, 2)),
        u[:, 0],
        random.integers(0, 2, jets),
        np.full(jets, weight),
        np.arange(jets) // 2,
    )


def ones(*samples: FlavourJets) -> list[np.ndarray]:
    return [np.ones((1, len(jets))) for jets in samples]


def test_wasserstein_is_that_of_scipy_with_weights_and_a_shift_is_its_length() -> None:
    random = np.random.default_rng(1)
    first, second = sample(random, 300), sample(random, 200)
    weighted = FlavourJets(**{**vars(second), "weight": random.random(200)})
    found = wasserstein(first, weighted, *ones(first, second))[0]
    for axis in range(3):
        u, v = first.coordinates[:, axis], second.coordinates[:, axis]
        assert found[axis] == pytest.approx(stats.wasserstein_distance(u, v, v_weights=weighted.weight))
    moved = FlavourJets(**{**vars(first), "coordinates": first.coordinates + [0.3, -0.2, 0.0]})
    np.testing.assert_allclose(wasserstein(first, moved, *ones(first, moved))[0], [0.3, 0.2, 0.0], atol=1e-12)


def test_bootstrap_factors_are_counts_of_events() -> None:
    jets = sample(np.random.default_rng(1), 1000)
    factors = jets.bootstrap(200, np.random.default_rng(2))
    np.testing.assert_array_equal(factors[0], 1.0)
    np.testing.assert_array_equal(factors[:, ::2], factors[:, 1::2])
    assert factors[1:].var() == pytest.approx(1.0, rel=0.05)


def test_chi2_of_equal_laws_is_distributed_as_chi2_and_of_others_is_not() -> None:
    random = np.random.default_rng(3)
    draws = [
        histogram_chi2(sample(random, 600), sample(random, 900, weight=3.0), BINNING) for _ in range(200)
    ]
    assert {ndf for _, ndf in draws} == {2 * 3}
    assert np.mean([chi2 for chi2, _ in draws]) == pytest.approx(6.0, abs=4 * np.sqrt(12 / 200))
    chi2, ndf = histogram_chi2(sample(random, 3000), sample(random, 3000, shift=0.3), BINNING)
    assert stats.chi2.sf(chi2, ndf) < 1e-6


def test_sparse_bins_are_merged_not_counted() -> None:
    random = np.random.default_rng(4)
    few, many = sample(random, 40, shift=-2.0), sample(random, 4000, shift=-2.0)
    chi2, ndf = histogram_chi2(few, many, BINNING)
    assert ndf == 0 or chi2 / ndf < 4
    assert ndf < 2 * 3


def test_a_fresh_classifier_finds_what_there_is() -> None:
    """Between N(0, 1) and N(m, 1) the best AUC is Φ(m/√2)."""
    random = np.random.default_rng(5)
    simulation, data = sample(random, 6000), sample(random, 6000, shift=0.8)
    areas = separations(data, simulation, 4000, 3, [1])
    assert areas.mean() == pytest.approx(stats.norm.cdf(0.8 / np.sqrt(2)), abs=0.02)
    null = null_measures(simulation, 3000, 6, [1])
    assert null["auc"] == pytest.approx(0.5, abs=3 * np.sqrt(1 / (6 * 1500)))
    assert null["auc_spread"] < 0.03
    assert max(null["w1"]) < 0.1


def test_kinematics_are_given_to_the_simulation() -> None:
    random = np.random.default_rng(6)
    simulation, data = sample(random, 4000), sample(random, 4000)
    harder = FlavourJets(**{**vars(data), "conditions": data.conditions + [0.3, 0.0]})
    weighted = simulation.like(harder)
    mean = np.average(weighted.conditions, weights=weighted.weight, axis=0)
    np.testing.assert_allclose(mean, harder.conditions.mean(0), atol=0.02)


def test_ratios_and_their_bootstrap_errors() -> None:
    """Efficiencies counted by hand; the bootstrap error is the binomial one, √2 larger for pairs of jets."""
    random = np.random.default_rng(7)
    data, calibrated = sample(random, 4000, shift=0.2), sample(random, 8000)
    factors = tuple(jets.bootstrap(300, np.random.default_rng(8)) for jets in (data, calibrated))
    shifted = [
        FlavourJets(**{**vars(calibrated), "discriminant": calibrated.discriminant + s}) for s in (-1, 1)
    ]
    found = efficiency_measures(data, calibrated, shifted, factors, BINNING)
    assert [point["working_point"] for point in found["points"]] == [0.85, 0.77, 0.6]
    ratios = []
    for point, edge in zip(found["points"], BINNING.discriminant_edges, strict=True):
        passed = [jets.discriminant >= edge for jets in (data, calibrated)]
        ratios.append(passed[0].mean() / passed[1].mean())
        assert point["ratio"] == pytest.approx(ratios[-1], rel=1e-12)
        relative = np.sqrt(sum((1 - p.mean()) / p.mean() / len(p) for p in passed))
        assert point["error"] == pytest.approx(ratios[-1] * relative, rel=0.2)
        spread = np.std([passed[0].mean() / (one.discriminant >= edge).mean() for one in shifted], ddof=1)
        assert point["map_uncertainty"] == pytest.approx(spread)
    assert found["deviation"] == pytest.approx(np.abs(np.array(ratios) - 1).mean())
    assert len(found["deviation_bootstraps"]) == 300


def test_working_points_that_hardly_a_jet_passes_are_left_out() -> None:
    random = np.random.default_rng(9)
    data, calibrated = sample(random, 400, shift=-2.2), sample(random, 400, shift=-2.2)
    factors = tuple(jets.bootstrap(10, random) for jets in (data, calibrated))
    found = efficiency_measures(data, calibrated, [], factors, BINNING)
    assert [point["working_point"] for point in found["points"]] == [0.85]
    assert found["points"][0]["map_uncertainty"] is None
    far = sample(random, 400, shift=-9.0)
    factors = tuple(jets.bootstrap(10, random) for jets in (far, far))
    assert efficiency_measures(far, far, [], factors, BINNING) == {"points": [], "deviation": None}


def test_rejection_kept_at_fixed_signal_efficiency() -> None:
    """The same shift of signal and background keeps all rejection; that of the background alone does not."""
    random = np.random.default_rng(10)
    signal, background = sample(random, 3000, shift=2.0), sample(random, 3000)
    closer = FlavourJets(**{**vars(background), "discriminant": background.discriminant + 0.5})
    both = [
        FlavourJets(**{**vars(jets), "discriminant": jets.discriminant + 5.0})
        for jets in (signal, background)
    ]
    factors = [tuple(jets.bootstrap(5, np.random.default_rng(1)) for jets in (signal, background))] * 3
    rows = rejection_measures([both[0], signal, signal], [both[1], background, closer], factors, (0.6, 0.77))
    for row in rows:
        assert row["kept_in_data"] == pytest.approx(1.0)
        cut = np.quantile(signal.discriminant, 1 - row["working_point"])
        expected = (background.discriminant >= cut).mean() / (closer.discriminant >= cut).mean()
        assert row["kept"] == pytest.approx(expected, rel=0.02)
        assert row["kept"] < 0.8
