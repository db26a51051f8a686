"""Perigee geometry against the generator's helices, closed forms and autodiff."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.data.jets import TRACK_FIELDS
from selfcal.generate.tracker import Hits, _Estimate, assemble, perigee
from selfcal.tagger.perigee import PERIGEE_FIELDS, Perigee, approach, perigee_from_fields
from selfcal.tagger.vertex_fit import _propagated, fit_vertices

JET_ETA, JET_PHI = 0.6, 2.9
"""The azimuth is near π, so that tracks lie on both sides of the cut."""


def particles(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """pT, phi, eta, charge of n particles around the jet axis."""
    rng = np.random.default_rng(seed)
    phi, eta = JET_PHI + rng.uniform(-0.35, 0.35, n), JET_ETA + rng.uniform(-0.2, 0.2, n)
    return rng.uniform(0.6, 20.0, n), phi, eta, rng.choice([-1, 1], n).astype(np.int8)


def from_generator(vertex_mm, n: int = 12, seed: int = 1) -> tuple[Perigee, np.ndarray]:
    """Unsmeared tracks of the generator from a point, as a file has them: perigees (1, n), momenta (n, 3)."""
    pt, phi, eta, charge = particles(n, seed)
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)
    d0, z0, phi0 = perigee(momentum, np.tile(np.asarray(vertex_mm, float), (n, 1)), charge)
    theta = 2.0 * np.arctan(np.exp(-eta))
    ones = np.ones(n, dtype=np.int64)
    estimate = _Estimate.of(pt, np.sin(theta), Hits(*(ones,) * 9))
    measured = assemble(
        np.zeros(n, np.int64), pt, theta, phi0, d0, z0 * np.sin(theta), charge, estimate,
        np.zeros(n, np.int8), np.zeros(n, np.int16), np.array([JET_ETA]), np.array([JET_PHI]),
    )  # fmt: skip
    assert len(measured.columns) == n
    fields = measured.columns[:, [TRACK_FIELDS.index(name) for name in PERIGEE_FIELDS]]
    return perigee_from_fields(torch.from_numpy(fields)[None], torch.full((1, n), JET_ETA)), momentum


def in_jet_frame(vector: np.ndarray) -> torch.Tensor:
    cos, sin = np.cos(JET_PHI), np.sin(JET_PHI)
    rotation = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return torch.from_numpy(np.asarray(vector, float) @ rotation.T)


@pytest.mark.parametrize("flight_mm", [0.5, 4.0, 8.0])
def test_generated_tracks_meet_where_they_were_born(flight_mm):
    """Closed form in, closed form out: only the float32 of the file is between."""
    vertex = flight_mm * np.array([np.cos(JET_PHI + 0.02), np.sin(JET_PHI + 0.02), 0.65])
    tracks, momentum = from_generator(vertex, seed=3)
    there = approach(tracks.parameters, in_jet_frame(vertex))
    assert there.transverse.abs().max() < 2e-6
    assert there.longitudinal.abs().max() < 2e-6
    # and they pass it in the direction of their momentum
    expected = in_jet_frame(momentum)
    azimuth = torch.atan2(expected[:, 1], expected[:, 0])[None]
    torch.testing.assert_close(there.azimuth, azimuth, atol=1e-6, rtol=0)
    torch.testing.assert_close(tracks.pt_gev[0], expected[:, :2].norm(dim=1), atol=0, rtol=1e-6)
    weights = torch.ones(1, 1, 12)
    fit = fit_vertices(tracks, torch.ones(1, 12, dtype=torch.bool), weights, prior_width_mm=1e4)
    torch.testing.assert_close(fit.position_mm[0, 0], in_jet_frame(vertex), atol=2e-5, rtol=0)
    assert fit.chi2.item() < 1e-5


def test_wrong_sign_conventions_would_miss():
    """The agreement above means something: each sign matters by far more than its tolerance."""
    vertex = 4.0 * np.array([np.cos(JET_PHI + 0.02), np.sin(JET_PHI + 0.02), 0.65])
    tracks, _ = from_generator(vertex, seed=3)
    for column in range(5):
        flipped = tracks.parameters.clone()
        flipped[..., column] *= -1
        there = approach(flipped, in_jet_frame(vertex))
        assert torch.hypot(there.transverse, there.longitudinal).max() > 1e-3, column


def test_uncertainties_are_those_of_the_file():
    pt, _, eta, _ = particles(12, 1)
    tracks, _ = from_generator([1.0, 0.3, 0.5], n=12, seed=1)
    theta = 2.0 * np.arctan(np.exp(-eta))
    ones = np.ones(12, np.int64)
    quoted = _Estimate.of(pt, np.sin(theta), Hits(*(ones,) * 9))
    sigma = tracks.covariance[0].diagonal(dim1=-2, dim2=-1).sqrt().numpy()
    for column, expected in enumerate(
        (quoted.sigma_d0, quoted.sigma_z0, quoted.sigma_phi, quoted.sigma_theta)
    ):
        np.testing.assert_allclose(sigma[:, column], expected, rtol=1e-5)
    kappa = tracks.parameters[0, :, 4].numpy()
    relative = np.hypot(0.013, 3.5e-4 * pt)
    np.testing.assert_allclose(
        sigma[:, 4] / np.abs(kappa), np.hypot(relative, quoted.sigma_theta / np.tan(theta)), rtol=1e-5
    )


def test_hidden_uncertainties_have_a_stand_in():
    """A significance of zero says nothing about the uncertainty: 10 ⊕ 95/(pT √sin θ) micrometres for d0."""
    fields = torch.zeros(1, 1, len(PERIGEE_FIELDS))
    fields[0, 0, PERIGEE_FIELDS.index("qOverP")] = 1e-3 / 5.0
    tracks = perigee_from_fields(fields, torch.zeros(1, 1))
    expected = torch.tensor([0.010**2 + 0.019**2, 0.038**2 + 0.024**2], dtype=torch.float64)
    torch.testing.assert_close(tracks.covariance[0, 0].diagonal()[:2], expected, atol=0, rtol=1e-6)
    assert bool((tracks.covariance[0, 0].diagonal()[:4] > 0).all())


def test_no_field_makes_straight_lines():
    fields = torch.rand(2, 3, len(PERIGEE_FIELDS), generator=torch.Generator().manual_seed(1)) + 0.1
    tracks = perigee_from_fields(fields, torch.zeros(2, 3), field_tesla=0.0)
    assert bool((tracks.parameters[..., 4] == 0).all())
    assert bool((tracks.pt_gev > 0).all())


def random_tracks(n: int, seed: int, curvature: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([-0.5, -0.5, -0.4, 0.7, -1.0], dtype=torch.float64)
    high = torch.tensor([0.5, 0.5, 0.4, 2.2, 1.0], dtype=torch.float64)
    parameters = low + (high - low) * torch.rand(n, 5, generator=generator, dtype=torch.float64)
    parameters[:, 4] *= curvature
    return parameters, 6.0 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - torch.tensor(
        [0.0, 3.0, 3.0], dtype=torch.float64
    )


@pytest.mark.parametrize("curvature", [0.0, 1e-9, 1e-4, 2e-3])
def test_distance_is_the_smallest_along_the_track(curvature):
    """Against a slow twin: walk along the circle written with its centre, or the line."""
    parameters, points = random_tracks(6, 2, curvature)
    found = approach(parameters, points)
    for row, ((d0, z0_sin, phi, theta, kappa), point) in enumerate(
        zip(parameters.numpy(), points.numpy(), strict=True)
    ):
        path = np.linspace(-12.0, 12.0, 2_000_001)
        x = -d0 * np.sin(phi) + (path * np.cos(phi) if kappa == 0 else 0.0)
        y = d0 * np.cos(phi) + (path * np.sin(phi) if kappa == 0 else 0.0)
        if kappa != 0:
            turned = -kappa * path / 2
            chord = path * np.sinc(turned / np.pi)
            x, y = x + chord * np.cos(phi + turned), y + chord * np.sin(phi + turned)
        distance = np.hypot(x - point[0], y - point[1])
        nearest = distance.argmin()
        azimuth = phi - kappa * path[nearest]
        left = -(point[0] - x[nearest]) * np.sin(azimuth) + (point[1] - y[nearest]) * np.cos(azimuth)
        assert found.transverse[row].item() == pytest.approx(-left, abs=1e-9)
        longitudinal = z0_sin + path[nearest] * np.cos(theta) - point[2] * np.sin(theta)
        assert found.longitudinal[row].item() == pytest.approx(longitudinal, abs=2e-5)
        assert found.azimuth[row].item() == pytest.approx(azimuth, abs=1e-7)


@pytest.mark.parametrize("curvature", [0.0, 2e-3])
def test_derivatives_equal_autodiff(curvature):
    parameters, points = random_tracks(5, 4, curvature)
    for track, point in zip(parameters, points, strict=True):
        closest = approach(track, point)

        def residual(p, v):
            there = approach(p, v)
            return torch.stack([there.transverse, there.longitudinal])

        by_track, by_point = torch.autograd.functional.jacobian(residual, (track, point))
        torch.testing.assert_close(closest.transverse_by_point, by_point[0], atol=1e-13, rtol=1e-12)
        torch.testing.assert_close(closest.longitudinal_by_point, by_point[1], atol=1e-13, rtol=1e-12)
        spread = torch.diag(torch.tensor([4e-4, 4e-3, 1e-6, 1e-6, 0.025 * curvature**2]).double())
        S = _propagated(track, spread, closest)
        exact = by_track @ spread @ by_track.T
        found = torch.stack([torch.stack([S.dd, S.dz]), torch.stack([S.dz, S.zz])])
        # exact for lines, whose κ has no uncertainty; κ a is up to 0.01 here
        scale = exact.diagonal().sqrt()
        assert ((found - exact) / torch.outer(scale, scale)).abs().max() < (1e-2 if curvature else 1e-12)
