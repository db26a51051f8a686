"""The vertex fit against scipy, against generated truth, and its gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from selfcal.tagger.perigee import Perigee
from selfcal.tagger.vertex_fit import MASS_RESOLUTION_GEV, PION_MASS_GEV, PRIOR_WIDTH_MM, fit_vertices

CURVATURE_OF_1_GEV = 0.299792458e-3 * 2.0


def tracks_through(
    vertices_mm: np.ndarray, n_tracks: int, seed: int, *, smeared: bool = True, helix: bool = True
) -> Perigee:
    """Tracks of B jets from one point each, measured with known, correlated covariances."""
    rng = np.random.default_rng(seed)
    shape = (len(vertices_mm), n_tracks)
    pt, eta, phi = rng.uniform(0.7, 8.0, shape), rng.normal(0.4, 0.2, shape), rng.normal(0.0, 0.2, shape)
    theta = 2.0 * np.arctan(np.exp(-eta))
    kappa = rng.choice([-1.0, 1.0], shape) * CURVATURE_OF_1_GEV / pt * helix
    x, y, z = (column[:, None] for column in vertices_mm.T)
    a, b = x * np.cos(phi) + y * np.sin(phi), y * np.cos(phi) - x * np.sin(phi)
    bend = kappa * a**2 / (1.0 + np.sqrt(1.0 - (kappa * a) ** 2))
    path = np.where(kappa == 0, a, np.arcsin(kappa * a) / np.where(kappa == 0, 1.0, kappa))
    truth = np.stack([b + bend, z * np.sin(theta) - path * np.cos(theta), phi, theta, kappa], axis=-1)
    sigma = np.stack(
        [
            np.hypot(0.010, 0.095 / pt),
            np.hypot(0.038, 0.120 / pt),
            np.hypot(7e-5, 9e-4 / pt),
            np.hypot(3e-4, 1.1e-3 / pt),
            0.013 * np.maximum(np.abs(kappa), 1e-7),
        ],
        axis=-1,
    )
    correlation = np.eye(5)
    correlation[0, 2] = correlation[2, 0] = -0.6
    correlation[1, 3] = correlation[3, 1] = 0.3
    covariance = sigma[..., :, None] * correlation * sigma[..., None, :]
    root = np.linalg.cholesky(covariance)
    noise = (root @ rng.normal(size=(*shape, 5, 1)))[..., 0]
    parameters = truth + noise * smeared * (np.arange(5) < 5 if helix else np.arange(5) < 4)
    return Perigee(*(torch.from_numpy(array) for array in (parameters, covariance, pt)))


def everything(tracks: Perigee, vertices: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    jets, count = tracks.pt_gev.shape
    return torch.ones(jets, count, dtype=torch.bool), torch.ones(jets, vertices, count, dtype=torch.float64)


def residual_of(track: np.ndarray, covariance: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slow twin: distances from a track written with its circle's centre, and their covariance."""
    d0, z0_sin, phi, theta, kappa = track
    left, ahead = np.array([-np.sin(phi), np.cos(phi)]), np.array([np.cos(phi), np.sin(phi)])
    a, b = v[:2] @ ahead, v[:2] @ left
    if kappa == 0:
        r_d, path = d0 - b, a
    else:
        to_centre = (d0 - 1.0 / kappa) * left - v[:2]
        r_d = (1.0 - abs(kappa) * np.hypot(*to_centre)) / kappa
        towards = -to_centre * np.sign(kappa)
        azimuth = np.arctan2(-towards[0], towards[1])
        path = ((phi - azimuth + np.pi) % (2 * np.pi) - np.pi) / kappa
    r = np.array([r_d, z0_sin + path * np.cos(theta) - v[2] * np.sin(theta)])
    J = np.array(
        [
            [1.0, 0.0, a, 0.0, -0.5 * a**2],
            [0.0, 1.0, b * np.cos(theta), -a * np.sin(theta) - v[2] * np.cos(theta), 0.0],
        ]
    )
    return r, J @ covariance @ J.T


@pytest.mark.parametrize("helix", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_equals_an_independent_minimisation(helix, seed):
    """scipy minimises the same χ² written one track at a time; weights are arbitrary."""
    rng = np.random.default_rng(seed)
    tracks = tracks_through(rng.uniform([1, -1, -3], [8, 1, 6], (4, 3)), 5, seed, helix=helix)
    valid, _ = everything(tracks)
    weights = torch.from_numpy(rng.uniform(0, 1, (4, 2, 5)))
    fit = fit_vertices(tracks, valid, weights)
    assert bool(fit.converged.all())
    for jet, vertex in np.ndindex(4, 2):
        w = weights[jet, vertex].numpy()

        def whitened(v, jet=jet, w=w):
            parts = []
            for i in range(5):
                r, S = residual_of(tracks.parameters[jet, i].numpy(), tracks.covariance[jet, i].numpy(), v)
                parts.append(np.sqrt(w[i]) * np.linalg.solve(np.linalg.cholesky(S), r))
            return np.concatenate([*parts, v / PRIOR_WIDTH_MM])

        # differences over 1e-4 of each coordinate: finer ones drown in the rounding of the circles' radii
        options = {"jac": "3-point", "diff_step": 1e-4, "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
        found = least_squares(whitened, [1.0, 0.1, 0.5], method="trf", **options)
        np.testing.assert_allclose(fit.position_mm[jet, vertex].numpy(), found.x, atol=1e-6, rtol=0)
        chi2 = (whitened(found.x)[:-3] ** 2).sum()
        assert fit.chi2[jet, vertex].item() == pytest.approx(chi2, abs=1e-6)
        curvature = np.linalg.inv(found.jac.T @ found.jac)
        np.testing.assert_allclose(fit.covariance[jet, vertex].numpy(), curvature, rtol=0.02, atol=2e-5)


def test_agrees_with_the_fit_of_all_momenta():
    """The full Billoir problem, 3 + 3n parameters, by scipy: same vertex within 1 % of its uncertainty."""
    tracks = tracks_through(np.array([[6.0, 0.3, 4.0], [15.0, -1.0, 2.0]]), 4, seed=8)
    valid, weights = everything(tracks)
    fit = fit_vertices(tracks, valid, weights)
    for jet in range(2):
        measured, root = tracks.parameters[jet].numpy(), np.linalg.cholesky(tracks.covariance[jet].numpy())

        def whitened(free, measured=measured, root=root):
            v, (phi, theta, kappa) = free[:3], (free[3:].reshape(4, 3) * 1e-3 + measured[:, 2:]).T
            a = v[0] * np.cos(phi) + v[1] * np.sin(phi)
            b = v[1] * np.cos(phi) - v[0] * np.sin(phi)
            d0 = b + kappa * a**2 / (1.0 + np.sqrt(1.0 - (kappa * a) ** 2))
            z0_sin = v[2] * np.sin(theta) - np.cos(theta) * np.arcsin(kappa * a) / kappa
            predicted = np.stack([d0, z0_sin, phi, theta, kappa], axis=1)
            pulls = np.linalg.solve(root, (measured - predicted)[..., None])
            return np.concatenate([pulls.ravel(), v / PRIOR_WIDTH_MM])

        found = least_squares(whitened, np.zeros(15), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15)
        sigma = fit.covariance[jet, 0].diagonal().sqrt().numpy()
        assert np.abs((fit.position_mm[jet, 0].numpy() - found.x[:3]) / sigma).max() < 0.01
        assert fit.chi2[jet, 0].item() == pytest.approx((whitened(found.x)[:-3] ** 2).sum(), abs=0.02)


def outputs(parameters, covariance, pt_gev, weights, prior_width_mm=PRIOR_WIDTH_MM):
    jets, _, count = weights.shape
    tracks = Perigee(parameters, 0.5 * (covariance + covariance.mT), pt_gev)
    fit = fit_vertices(
        tracks, torch.ones(jets, count, dtype=torch.bool), weights, prior_width_mm=prior_width_mm
    )
    assert bool(fit.converged.all())
    return fit.position_mm, fit.covariance, fit.lxy_significance, fit.chi2, fit.mass_gev


@pytest.mark.parametrize("helix", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_gradient_of_all_outputs_in_all_inputs(helix, count):
    """Implicit gradients equal differences of repeated fits (a narrow prior, so that one track's
    covariance is of the size of the others' and the differences have as many digits)."""
    tracks = tracks_through(np.array([[3.0, 0.2, 1.5]]), count, seed=5, helix=helix)
    weights = torch.tensor([[[0.9, 0.3, 0.6], [0.2, 0.7, 1.0]]], dtype=torch.float64)[..., :count]
    inputs = (tracks.parameters, tracks.covariance, tracks.pt_gev, weights.clone())
    for tensor in inputs:
        tensor.requires_grad_()
    steps = (1e-7, 1e-9, 1e-6, 1e-6)
    for k, step in enumerate(steps):
        chosen = tuple(t if i == k else t.detach() for i, t in enumerate(inputs))
        assert torch.autograd.gradcheck(
            lambda *x: outputs(*x, prior_width_mm=0.5),
            chosen,
            eps=step,
            atol=1e-4,
            rtol=1e-5,
            fast_mode=k < 2,  # random projections: the whole matrix would take a minute
        )


def test_gradient_of_poor_fits():
    """Tracks forced into one vertex: large residuals, where the Gauss-Newton matrix would be wrong."""
    tracks = tracks_through(np.array([[2.0, 0.2, 1.5]]), 3, seed=6)
    tracks.parameters[0, 0, 0] += 0.8
    tracks.parameters[0, 1, 1] -= 1.5
    weights = torch.full((1, 1, 3), 0.8, dtype=torch.float64)
    assert fit_vertices(tracks, *everything(tracks)).chi2.item() > 50
    weights.requires_grad_()
    detached = (tracks.parameters, tracks.covariance, tracks.pt_gev)
    assert torch.autograd.gradcheck(lambda w: outputs(*detached, w)[0], (weights,), atol=1e-7, rtol=1e-6)


def test_pulls_of_generated_vertices():
    """Known covariances: mean 0, width 1, and the whole covariance is right (χ² of 3 degrees of freedom)."""
    rng = np.random.default_rng(12)
    truth = rng.normal([5.0, 0.0, 4.0], [2.0, 0.3, 2.0], (3000, 3))
    tracks = tracks_through(truth, 4, seed=13)
    valid, weights = everything(tracks)
    with torch.no_grad():
        fit = fit_vertices(tracks, valid, weights)
    assert bool(fit.converged.all())
    off = fit.position_mm[:, 0] - torch.from_numpy(truth)
    pulls = off / fit.covariance[:, 0].diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool((pulls.mean(0).abs() < 0.08).all()), pulls.mean(0)
    assert bool(((pulls.std(0) - 1.0).abs() < 0.06).all()), pulls.std(0)
    distance = (off[:, None] @ torch.linalg.inv(fit.covariance[:, 0]) @ off[..., None]).mean()
    assert distance.item() == pytest.approx(3.0, abs=0.25)
    assert fit.chi2.mean().item() == pytest.approx(2 * 4 - 3, abs=0.25)
    torch.testing.assert_close(fit.lxy_mm, fit.position_mm[..., 0])
    torch.testing.assert_close(
        fit.lxy_significance, fit.lxy_mm / fit.covariance[..., 0, 0].sqrt(), atol=0, rtol=1e-12
    )


def finite_gradients(tracks: Perigee, valid: torch.Tensor, weights: torch.Tensor):
    parameters = tracks.parameters.clone().requires_grad_()
    covariance = tracks.covariance.clone().requires_grad_()
    weights = weights.clone().requires_grad_()
    fit = fit_vertices(Perigee(parameters, covariance, tracks.pt_gev), valid, weights)
    total = sum(
        getattr(fit, name).sum()
        for name in ("position_mm", "covariance", "lxy_significance", "chi2", "n_tracks", "mass_gev")
    )
    assert bool(torch.isfinite(total))
    total.backward()
    for tensor in (parameters, covariance, weights):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
    assert bool(fit.converged.all())
    return fit


PRIOR_COVARIANCE = PRIOR_WIDTH_MM**2 * torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("case", ["no tracks", "zero weight", "all padded"])
def test_without_information_the_prior_is_the_answer(case):
    tracks = tracks_through(np.array([[3.0, 0.2, 1.5]]), 0 if case == "no tracks" else 3, seed=1)
    valid, weights = everything(tracks)
    if case == "zero weight":
        weights = 0.0 * weights
    elif case == "all padded":
        valid = ~valid
        tracks = replace(tracks, parameters=tracks.parameters * torch.nan)
    fit = finite_gradients(tracks, valid, weights)
    assert fit.position_mm.abs().max().item() == 0.0
    torch.testing.assert_close(fit.covariance[0, 0], PRIOR_COVARIANCE)
    for name in ("lxy_significance", "chi2", "n_tracks", "mass_gev"):
        assert getattr(fit, name).item() == 0.0


def test_one_track_gives_its_point_nearest_to_the_primary_vertex():
    """A line has one: foot of the perpendicular from the origin, in units where the prior is round."""
    tracks = tracks_through(np.array([[3.0, 0.6, 1.5]]), 1, seed=2, helix=False)
    fit = finite_gradients(tracks, *everything(tracks))
    d0, z0_sin, phi, theta, _ = tracks.parameters[0, 0].numpy()
    start = np.array([-d0 * np.sin(phi), d0 * np.cos(phi), z0_sin / np.sin(theta)])
    along = np.array([np.cos(phi) * np.sin(theta), np.sin(phi) * np.sin(theta), np.cos(theta)])
    foot = start - (start @ along) * along
    np.testing.assert_allclose(fit.position_mm[0, 0].detach().numpy(), foot, atol=1e-3)
    assert fit.chi2.item() < 1e-3
    assert fit.mass_gev.item() == pytest.approx(PION_MASS_GEV, abs=MASS_RESOLUTION_GEV)
    # along the track only the prior knows anything
    assert (along @ fit.covariance[0, 0].detach().numpy() @ along) ** 0.5 == pytest.approx(
        PRIOR_WIDTH_MM, rel=0.01
    )


@pytest.mark.parametrize("apart_mm", [0.0, 0.05])
def test_parallel_tracks(apart_mm):
    """Equal directions: the mean of the lines across, the prior along; identical tracks included.

    Apart, they rather meet further out, where their angles allow more: along the lines the χ² has a say.
    """
    one = tracks_through(np.array([[3.0, 0.6, 1.5]]), 1, seed=2, helix=False)
    tracks = Perigee(*(torch.cat([t, t], dim=1) for t in (one.parameters, one.covariance, one.pt_gev)))
    tracks.parameters[0, 1, 0] += apart_mm
    fit = finite_gradients(tracks, *everything(tracks))
    middle = replace(one, parameters=tracks.parameters.mean(1, keepdim=True))
    phi, theta = middle.parameters[0, 0, 2:4]
    along = torch.stack([phi.cos() * theta.sin(), phi.sin() * theta.sin(), theta.cos()])
    off = fit.position_mm - fit_vertices(middle, *everything(middle)).position_mm
    assert (off - (off @ along)[..., None] * along).abs().max() < 2e-3
    assert (off @ along).abs().max() < (1e-3 if apart_mm == 0 else 0.2 * PRIOR_WIDTH_MM)
    assert fit.chi2.item() == pytest.approx(
        apart_mm**2 / (2 * tracks.covariance[0, 0, 0, 0].item()), rel=0.1, abs=1e-3
    )


def test_hopeless_tracks_stay_finite():
    """Hundreds of standard deviations apart: a point, an answer about convergence, finite gradients."""
    tracks = tracks_through(np.array([[3.0, 0.6, 1.5]] * 40), 6, seed=3)
    noise = torch.randn(40, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tracks.parameters[..., :2] += 2.0 * noise
    parameters = tracks.parameters.clone().requires_grad_()
    fit = fit_vertices(replace(tracks, parameters=parameters), *everything(tracks))
    assert fit.chi2.min() > 100
    assert fit.converged.double().mean() > 0.9
    (fit.position_mm.sum() + fit.mass_gev.sum()).backward()
    assert bool(parameters.grad.isfinite().all())


def test_weights_select_tracks():
    """Weight 0 is absence; a fit knows nothing of the other vertex, the other jets, or the order."""
    near = tracks_through(np.array([[1.0, 0.1, 0.5]]), 3, seed=4)
    far = tracks_through(np.array([[7.0, -0.3, 5.0]]), 2, seed=5)
    both = Perigee(*(torch.cat([getattr(t, name) for t in (near, far)], dim=1) for name in vars(near)))
    weights = torch.tensor([[[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]], dtype=torch.float64)
    valid, _ = everything(both)
    together = fit_vertices(both, valid, weights)
    alone = [fit_vertices(t, *everything(t)) for t in (near, far)]
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = Perigee(*(getattr(both, name)[:, order] for name in vars(both)))
    again = fit_vertices(shuffled, valid, weights[..., order])
    pairs = Perigee(*(torch.cat([getattr(both, name)] * 2) for name in vars(both)))
    batched = fit_vertices(pairs, torch.cat([valid] * 2), torch.cat([weights, 0.3 * weights]))
    for name in ("position_mm", "covariance", "chi2", "mass_gev"):
        expected = torch.cat([getattr(fit, name) for fit in alone], dim=1)
        for found in (together, again):
            torch.testing.assert_close(getattr(found, name), expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(
            getattr(batched, name)[:1], getattr(together, name), atol=1e-12, rtol=1e-12
        )


def test_mass_of_a_two_body_decay():
    """K_S → π⁺π⁻ at 25 mm: the mass is that at the decay, though the perigees' directions have turned."""
    mass, momentum = 0.497611, 3.0
    inner = np.sqrt(mass**2 / 4 - PION_MASS_GEV**2)
    boost = np.hypot(momentum, mass) / mass, momentum / mass
    along = [boost[1] * mass / 2 + boost[0] * sign * inner * 0.3 for sign in (1, -1)]
    across = inner * np.sqrt(1 - 0.3**2)
    px, py = np.array(along), np.array([across, -across])
    pt, azimuth = np.hypot(px, py), np.arctan2(py, px)
    kappa = np.array([1.0, -1.0]) * CURVATURE_OF_1_GEV / pt
    # circles through (25, 0): centre to the right of the motion for κ > 0
    centre = np.stack([25.0 + np.sin(azimuth) / kappa, -np.cos(azimuth) / kappa], axis=1)
    d0 = (1.0 - np.abs(kappa) * np.hypot(*centre.T)) / kappa
    phi0 = np.arctan2(np.sign(kappa) * centre[:, 0], -np.sign(kappa) * centre[:, 1])
    parameters = torch.from_numpy(np.stack([d0, 0 * d0, phi0, 0 * d0 + np.pi / 2, kappa], axis=1))[None]
    covariance = torch.diag_embed(torch.tensor([1e-4, 1e-3, 1e-8, 1e-8, 1e-12]).double().expand(1, 2, 5))
    tracks = Perigee(parameters, covariance.contiguous(), torch.from_numpy(pt)[None])
    assert abs(phi0[0] - azimuth[0]) > 0.003
    fit = fit_vertices(tracks, *everything(tracks), prior_width_mm=1e4)
    torch.testing.assert_close(fit.position_mm[0, 0], torch.tensor([25.0, 0, 0]).double(), atol=1e-3, rtol=0)
    assert fit.mass_gev.item() == pytest.approx(
        np.hypot(mass, MASS_RESOLUTION_GEV) - MASS_RESOLUTION_GEV, abs=1e-5
    )


def test_works_without_gradients_and_in_inference_mode():
    tracks = tracks_through(np.array([[3.0, 0.6, 1.5]]), 3, seed=7)
    valid, weights = everything(tracks)
    with_gradient = fit_vertices(tracks, valid, weights.clone().requires_grad_())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            fit = fit_vertices(tracks, valid, weights)
        torch.testing.assert_close(fit.position_mm, with_gradient.position_mm.detach(), atol=1e-9, rtol=0)
