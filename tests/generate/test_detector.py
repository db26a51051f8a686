"""Stage 2: resolution against its formula, and every nuisance parameter doing what it says."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from selfcal.config.detector_parameters import PRIORS, DetectorParameters
from selfcal.data.jets import ORIGINS, TRACK_FIELDS, Jets
from selfcal.generate import resolution
from selfcal.generate.candidates import Candidates, nearest_neighbour, random_stream
from selfcal.generate.detector import simulate
from selfcal.generate.pileup import MinimumBiasPool
from selfcal.generate.records import TruthJets
from selfcal.generate.secondary import LAYER_RADII_MM, charged_candidates, material_products
from selfcal.generate.tracker import BENDING_RADIUS_MM_PER_GEV, Measured, perigee, reconstruct

FLAT = DetectorParameters(tail_fraction_scale=0.0)


def column(tracks: np.ndarray, name: str) -> np.ndarray:
    return tracks[:, TRACK_FIELDS.index(name)].astype(np.float64)


def prompt_pions(pt_gev: np.ndarray, seed: int = 1) -> Candidates:
    """Lonely central pions from the origin, one per jet."""
    generator = np.random.default_rng(seed)
    n = len(pt_gev)
    phi, eta = generator.uniform(-np.pi, np.pi, n), generator.uniform(-0.3, 0.3, n)
    momentum = np.stack([pt_gev * np.cos(phi), pt_gev * np.sin(phi), pt_gev * np.sinh(eta)], axis=1)
    return Candidates(
        jet=np.arange(n),
        momentum=momentum,
        position=np.zeros((n, 3)),
        charge=np.where(generator.random(n) < 0.5, -1, 1).astype(np.int8),
        pdg=np.full(n, 211, dtype=np.int32),
        origin=np.full(n, 2, dtype=np.int8),
        vertex=np.zeros(n, dtype=np.int16),
        stop_radius_mm=np.full(n, np.inf),
    )


def measure(candidates: Candidates, detector: DetectorParameters) -> Measured:
    eta = np.arcsinh(candidates.momentum[:, 2] / np.hypot(*candidates.momentum[:, :2].T))
    phi = np.arctan2(candidates.momentum[:, 1], candidates.momentum[:, 0])
    return reconstruct(candidates, eta, phi, detector, 7, "test")


@pytest.mark.parametrize(
    ("low", "high", "microns"), [(2.0, 5.0, 42.0), (5.0, 10.0, 21.9), (10.0, 60.0, 15.1)]
)
def test_d0_resolution_of_published_pt_ranges(
    top_truth: TruthJets, pool: MinimumBiasPool, low: float, high: float, microns: float
) -> None:
    """Half the width of the central 68 % of primary tracks in jets, within 15 % of the quoted figures."""
    jets = simulate(top_truth, DetectorParameters(), pool, dataset="x", seed=1).jets
    d0 = column(jets.tracks, "d0")
    eta = np.repeat(jets.eta, jets.n_tracks) + column(jets.tracks, "deta")
    pt = 1e-3 / np.abs(column(jets.tracks, "qOverP")) / np.cosh(eta)
    chosen = (jets.track_origin == ORIGINS.index("primary")) & (pt > low) & (pt < high)
    width = np.diff(np.quantile(d0[chosen], [0.1587, 0.8413]))[0] / 2 * 1000
    assert width == pytest.approx(microns, rel=0.15)


@pytest.mark.parametrize("pt_gev", [1.0, 4.0, 50.0])
def test_errors_follow_the_formula(pt_gev: float) -> None:
    n = 6000
    measured = measure(prompt_pions(np.full(n, pt_gev)), FLAT)
    inner = column(measured.columns, "numberOfInnermostPixelLayerHits") > 0
    inner &= column(measured.columns, "numberOfInnermostPixelLayerSharedHits") == 0
    # sin(theta) = 1/cosh(eta) lies between 0.96 and 1
    expected_d0 = np.hypot(0.010, 0.095 / pt_gev)
    expected_z0 = np.hypot(0.038, 0.120 / pt_gev)
    tolerance = 4.0 / np.sqrt(2.0 * inner.sum()) + 0.01
    assert column(measured.columns, "d0")[inner].std() == pytest.approx(expected_d0, rel=tolerance)
    assert column(measured.columns, "z0SinTheta")[inner].std() == pytest.approx(expected_z0, rel=tolerance)
    momentum_error = np.abs(measured.pt_gev / pt_gev - 1.0)
    assert np.median(momentum_error) == pytest.approx(0.6745 * np.hypot(0.013, 3.5e-4 * pt_gev), rel=0.08)


def test_significances_are_standard_normal_at_nominal_core() -> None:
    measured = measure(prompt_pions(np.full(8000, 20.0)), FLAT)
    for name in ("lifetimeSignedD0Significance", "lifetimeSignedZ0SinThetaSignificance"):
        significance = column(measured.columns, name)
        assert significance.std() == pytest.approx(1.0, abs=0.04)
        assert abs(significance.mean()) < 4.0 / np.sqrt(len(significance))


def test_missing_innermost_hit_costs_resolution() -> None:
    measured = measure(prompt_pions(np.full(20_000, 50.0)), FLAT)
    inner = column(measured.columns, "numberOfInnermostPixelLayerHits") > 0
    d0 = column(measured.columns, "d0")
    assert (~inner).sum() > 300
    assert d0[~inner].std() / d0[inner].std() == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("charge", [-1, 1])
def test_perigee_against_a_traced_helix(charge: int) -> None:
    """Step along the helix in small angles; the nearest point to the axis is the perigee."""
    momentum = np.array([[1.2, -0.7, 0.9]])
    position = np.array([[3.0, 4.0, 5.0]])
    d0, z0, phi0 = perigee(momentum, position, np.array([charge], dtype=np.int8))
    pt, phi = np.hypot(1.2, -0.7), np.arctan2(-0.7, 1.2)
    radius = BENDING_RADIUS_MM_PER_GEV * pt
    arc = np.linspace(-20.0, 20.0, 400_001)
    # dphi/ds = -q/R, and x' = cos(phi), y' = sin(phi)
    angle = phi - charge * arc / radius
    x = 3.0 - charge * radius * (np.sin(angle) - np.sin(phi))
    y = 4.0 + charge * radius * (np.cos(angle) - np.cos(phi))
    at = np.argmin(np.hypot(x, y))
    assert abs(d0[0]) == pytest.approx(np.hypot(x, y)[at], rel=1e-6)
    assert d0[0] == pytest.approx(-x[at] * np.sin(angle[at]) + y[at] * np.cos(angle[at]), rel=1e-6)
    assert z0[0] == pytest.approx(5.0 + arc[at] * 0.9 / pt, abs=1e-3)
    assert phi0[0] == pytest.approx(angle[at], abs=1e-5)


def test_lifetime_sign_is_positive_downstream() -> None:
    """Tracks from a point 5 mm along the jet axis cross it in front of the primary vertex."""
    n = 500
    pions = prompt_pions(np.full(n, 20.0))
    angle = np.where(np.arange(n) % 2 == 0, 0.15, -0.15)
    phi = np.arctan2(pions.momentum[:, 1], pions.momentum[:, 0]) - angle
    moved = Candidates(
        **{**pions.__dict__, "position": np.stack([5 * np.cos(phi), 5 * np.sin(phi), 0 * phi], 1)}
    )
    eta = np.arcsinh(pions.momentum[:, 2] / 20.0)
    measured = reconstruct(moved, eta, phi, FLAT, 7, "test")
    assert (column(measured.columns, "lifetimeSignedD0Significance") > 0).all()
    assert np.abs(column(measured.columns, "d0")).mean() == pytest.approx(5 * np.sin(0.15), rel=0.03)


def test_nearest_neighbour_against_loops() -> None:
    generator = np.random.default_rng(5)
    jet = np.sort(generator.integers(0, 6, 30))
    jet[-1] = 9
    eta, phi = generator.uniform(-1, 1, 30), generator.uniform(-np.pi, np.pi, 30)
    found = nearest_neighbour(jet, eta, phi)
    for i in range(30):
        others = [j for j in range(30) if j != i and jet[j] == jet[i]]
        dphi = [abs((phi[i] - phi[j] + np.pi) % (2 * np.pi) - np.pi) for j in others]
        expected = min(
            (float(np.hypot(eta[i] - eta[j], d)) for j, d in zip(others, dphi, strict=True)), default=np.inf
        )
        assert found[i] == pytest.approx(expected)


def test_same_seed_same_jets_and_streams_are_independent(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    one, two = (simulate(top_truth, DetectorParameters(), pool, dataset="x", seed=3).jets for _ in range(2))
    np.testing.assert_array_equal(one.tracks, two.tracks)
    other = simulate(top_truth, DetectorParameters(), pool, dataset="x", seed=4).jets
    assert other.tracks.shape != one.tracks.shape
    assert random_stream(1, "a").random() != random_stream(1, "b").random()
    assert random_stream(1, "a").random() == random_stream(1, "a").random()


def simulated(truth: TruthJets, pool: MinimumBiasPool, **theta: float) -> Jets:
    return simulate(truth, DetectorParameters(**theta), pool, dataset="x", seed=11).jets


def origins_per_jet(jets: Jets, *names: str) -> float:
    return float(np.isin(jets.track_origin, [ORIGINS.index(n) for n in names]).sum() / len(jets))


def test_core_scales_widen_the_core(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    """Common random numbers: each primary track's error is stretched by exactly the scale."""
    for scale, name in (("d0_core_scale", "d0"), ("z0_core_scale", "z0SinTheta")):
        widths = []
        for value in (1.0, 1.1):
            pions = measure(prompt_pions(np.full(4000, 10.0)), DetectorParameters(**{scale: value}))
            widths.append(column(pions.columns, name).std())
        assert widths[1] / widths[0] == pytest.approx(1.1, rel=1e-3)
    nominal, worse = simulated(top_truth, pool), simulated(top_truth, pool, d0_core_scale=1.3)
    light = [np.abs(column(j.tracks, "lifetimeSignedD0Significance")) for j in (nominal, worse)]
    assert np.median(light[1]) / np.median(light[0]) > 1.1


def test_biases_move_the_mean() -> None:
    for parameter, name, value in (("d0_bias_mm", "d0", 0.02), ("z0_bias_mm", "z0SinTheta", 0.1)):
        pions = prompt_pions(np.full(2000, 30.0))
        means = [
            column(measure(pions, DetectorParameters(**{parameter: v})).columns, name).mean()
            for v in (0.0, value)
        ]
        assert means[1] - means[0] == pytest.approx(value, rel=0.03)


def test_tail_fraction_counts_wide_tracks() -> None:
    uniform = np.linspace(0.0, 1.0, 100_001)
    lonely = np.zeros_like(uniform)
    for scale in (0.5, 1.0, 1.5):
        width = resolution.tail_width(uniform, scale, lonely)
        assert (width == 5.0).mean() == pytest.approx(0.008 * scale, rel=1e-2)
        assert (width == 2.0).mean() == pytest.approx(0.06 * scale, rel=1e-2)


def test_efficiency_shift_removes_that_share_of_tracks() -> None:
    pions = prompt_pions(np.full(30_000, 5.0))
    counts = [len(measure(pions, DetectorParameters(efficiency_shift=s)).jet) for s in (0.0, -0.05)]
    assert (counts[0] - counts[1]) / 30_000 == pytest.approx(0.05, abs=0.005)


def test_dense_core_loss_spares_lonely_tracks() -> None:
    pions = prompt_pions(np.full(4000, 5.0))
    near = Candidates(
        **{**pions.__dict__, "jet": np.arange(4000) // 2, "momentum": np.repeat(pions.momentum[::2], 2, 0)}
    )
    eta = np.arcsinh(near.momentum[::2, 2] / 5.0)
    phi = np.arctan2(near.momentum[::2, 1], near.momentum[::2, 0])
    found = {}
    for scale in (0.0, 1.0, 2.0):
        detector = DetectorParameters(dense_core_loss_scale=scale)
        assert len(measure(pions, detector).jet) == len(measure(pions, DetectorParameters()).jet)
        found[scale] = len(reconstruct(near, eta, phi, detector, 7, "test").jet) / 4000
    assert found[0.0] - found[1.0] == pytest.approx(0.30, abs=0.03)
    assert found[1.0] - found[2.0] == pytest.approx(0.30, abs=0.03)


def test_counting_parameters(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    """Fakes, pile-up and material secondaries per jet follow their parameter; the rest stays as it was."""
    nominal = simulated(top_truth, pool)
    # strange decays are secondaries of the generator and know no material
    bare = origins_per_jet(simulated(top_truth, pool, material_scale=0.0), "other_secondary")
    cases = (
        ("fake_rate_scale", 4.0, 4.0, "fake", 0.0),
        ("pileup_mu", 80.0, 2.0, "pileup", 0.0),
        ("material_scale", 2.0, 2.0, "other_secondary", bare),
    )
    for parameter, value, factor, origin, offset in cases:
        changed = simulated(top_truth, pool, **{parameter: value})
        ratio = (origins_per_jet(changed, origin) - offset) / (origins_per_jet(nominal, origin) - offset)
        assert ratio == pytest.approx(factor, rel=0.2), parameter
        # twice the material stops twice as many b daughters: a few per cent
        lost = 0.10 if parameter == "material_scale" else 0.01
        assert 1.0 - lost < origins_per_jet(changed, "from_b") / origins_per_jet(nominal, "from_b") <= 1.01
    assert origins_per_jet(simulated(top_truth, pool, fake_rate_scale=0.0), "fake") == 0.0
    assert origins_per_jet(simulated(top_truth, pool, pileup_mu=0.0), "pileup") == 0.0


def test_innermost_efficiency_shift() -> None:
    pions = prompt_pions(np.full(20_000, 5.0))
    shares = [
        column(
            measure(pions, DetectorParameters(innermost_efficiency_shift=s)).columns,
            "numberOfInnermostPixelLayerHits",
        ).mean()
        for s in (0.0, -0.10)
    ]
    assert shares[0] == pytest.approx(0.97, abs=0.005)
    assert shares[0] - shares[1] == pytest.approx(0.10, abs=0.01)


def test_jet_energy_scale_and_resolution(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    sharp = simulate(
        top_truth, DetectorParameters(jet_energy_resolution_scale=0.0), pool, dataset="x", seed=2
    )
    np.testing.assert_allclose(sharp.jets.pt_gev, top_truth.pt_gev[sharp.truth_row], rtol=1e-4)
    scaled = simulate(
        top_truth,
        DetectorParameters(jet_energy_resolution_scale=0.0, jet_energy_scale=1.05),
        pool,
        dataset="x",
        seed=2,
    )
    np.testing.assert_allclose(scaled.jets.pt_gev, 1.05 * top_truth.pt_gev[scaled.truth_row], rtol=1e-4)
    smeared = simulate(top_truth, DetectorParameters(), pool, dataset="x", seed=2)
    true_pt = top_truth.pt_gev[smeared.truth_row].astype(np.float64)
    hard = true_pt > 40.0
    pull = (smeared.jets.pt_gev[hard] / true_pt[hard] - 1.0) / resolution.jet_relative_sigma(true_pt[hard])
    assert pull.std() == pytest.approx(1.0, abs=0.12)
    assert smeared.jets.pt_gev.min() >= 20.0


def test_jets_point_where_they_were_made(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    """η and φ in units of the resolution of the jet's axis, across ±π as well."""
    found = simulate(top_truth, DetectorParameters(), pool, dataset="x", seed=2)
    sigma = resolution.jet_axis_sigma(top_truth.pt_gev[found.truth_row].astype(float))
    turn = found.jets.phi - top_truth.phi[found.truth_row]
    assert np.abs(found.jets.phi).max() <= 3.1417
    for pull in (
        ((turn + np.pi) % (2 * np.pi) - np.pi) / sigma,
        (found.jets.eta - top_truth.eta[found.truth_row]) / sigma,
    ):
        assert abs(pull.mean()) < 5 / np.sqrt(len(pull))
        assert abs(pull.std() - 1) < 5 / np.sqrt(2 * len(pull))


def test_momentum_resolution_scale() -> None:
    pions = prompt_pions(np.full(4000, 40.0))
    errors = [
        np.std(1.0 / measure(pions, DetectorParameters(momentum_resolution_scale=s)).pt_gev)
        for s in (1.0, 1.5)
    ]
    assert errors[1] / errors[0] == pytest.approx(1.5, rel=0.01)


def test_material_products_share_a_vertex_on_a_layer(top_truth: TruthJets) -> None:
    charged = charged_candidates(top_truth, 1.0, 1)
    products = material_products(top_truth, charged, 1.0, 1)
    radius = np.hypot(*products.position[:, :2].T)
    assert np.abs(radius[:, None] - LAYER_RADII_MM).min(axis=1).max() < 1e-3
    electrons = np.abs(products.pdg) == 11
    assert electrons.sum() > 100
    for jet, vertex in {(int(j), int(v)) for j, v in zip(products.jet, products.vertex, strict=True)}:
        together = (products.jet == jet) & (products.vertex == vertex)
        assert np.ptp(products.position[together], axis=0).max() < 1e-9
        if electrons[together].any():
            assert sorted(products.charge[together]) == [-1, 1]
        rows = slice(top_truth.offsets[jet], top_truth.offsets[jet + 1])
        assert vertex > top_truth.vertex[rows].max(initial=0)


def test_track_truth_of_the_file(top_truth: TruthJets, pool: MinimumBiasPool) -> None:
    jets = simulated(top_truth, pool)
    primary = jets.track_origin == ORIGINS.index("primary")
    assert (jets.track_vertex[primary] == 0).all()
    foreign = np.isin(jets.track_origin, [ORIGINS.index("pileup"), ORIGINS.index("fake")])
    assert (jets.track_vertex[foreign] == -2).all()
    assert (jets.track_vertex[~primary & ~foreign] > 0).all()
    assert np.isfinite(jets.tracks).all()
    pt = column(jets.tracks, "qOverP")
    assert np.abs(column(jets.tracks, "d0")).max() <= 3.5
    assert np.abs(column(jets.tracks, "z0SinTheta")).max() <= 5.0
    assert np.hypot(column(jets.tracks, "deta"), column(jets.tracks, "dphi")).max() < 0.4
    assert np.abs(pt).max() < 1.0 / 500.0
    assert 6.0 < jets.n_tracks.mean() < 11.0


def test_priors_name_the_parameters_and_their_nominal_values() -> None:
    nominal = DetectorParameters().model_dump()
    assert list(PRIORS) == list(nominal)
    for name, prior in PRIORS.items():
        assert prior.mean == nominal[name]
        for sigmas in (-2, 2) if name != "innermost_efficiency_shift" else (-2, 1):
            DetectorParameters(**{name: prior.mean + sigmas * prior.width})


def test_theta_refuses_what_is_no_detector() -> None:
    with pytest.raises(ValidationError):
        DetectorParameters(d0_core_scale=-1.0)
    with pytest.raises(ValidationError):
        DetectorParameters.model_validate({"d0_core_scal": 1.0})
    with pytest.raises(ValidationError):
        DetectorParameters().d0_core_scale = 2.0  # type: ignore[misc]
