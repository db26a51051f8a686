"""Lifetime signs and uncertainties against geometry and numerical derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.data.jet_axis import (
    pseudorapidity,
    relative_angles,
    require_conventions,
    signed_d0_significance,
    signed_z0_significance,
    z0_sin_theta_sigma,
)
from selfcal.errors import DataError


def test_tracks_of_a_decay_in_flight_have_positive_signs():
    """Straight tracks from a point at distance L along the jet axis: the signs are that of L."""
    generator = np.random.default_rng(3)
    n = 2000
    jet_eta, jet_phi = generator.uniform(-2, 2, n), generator.uniform(-np.pi, np.pi, n)
    eta, phi = jet_eta + generator.normal(0, 0.2, n), jet_phi + generator.normal(0, 0.2, n)
    length = generator.choice([-1, 1], n) * generator.uniform(0.1, 5, n)
    # The vertex, and the point of the track nearest to the beam line in the transverse plane.
    x, y, z = length * np.cos(jet_phi), length * np.sin(jet_phi), length * np.sinh(jet_eta)
    along = x * np.cos(phi) + y * np.sin(phi)
    x0, y0, z0 = x - along * np.cos(phi), y - along * np.sin(phi), z - along * np.sinh(eta)
    d0 = -x0 * np.sin(phi) + y0 * np.cos(phi)
    deta, dphi = relative_angles(eta, phi, jet_eta, jet_phi)
    sigma = np.full(n, 0.01)
    d0_significance = signed_d0_significance(d0, sigma, dphi)
    np.testing.assert_array_equal(np.sign(d0_significance), np.sign(length))
    np.testing.assert_allclose(np.abs(d0_significance), np.abs(d0) / 0.01)
    # z0 = L (sinh(eta_jet) - cos(dphi) sinh(eta)) has the sign of L (eta_jet - eta) unless dphi matters.
    clear = np.abs(np.sinh(jet_eta) - np.sinh(eta)) > 2 * np.abs(1 - np.cos(dphi)) * np.abs(np.sinh(eta))
    assert clear.mean() > 0.8
    z0_significance = signed_z0_significance(z0, sigma, deta)
    np.testing.assert_array_equal(np.sign(z0_significance)[clear], np.sign(length)[clear])


def test_angles_are_the_short_way_round():
    deta, dphi = relative_angles(np.array([1.0]), np.array([3.1]), np.array([0.5]), np.array([-3.1]))
    np.testing.assert_allclose(deta, 0.5)
    np.testing.assert_allclose(dphi, 6.2 - 2 * np.pi)
    np.testing.assert_allclose(pseudorapidity(2 * np.arctan(np.exp(-np.array([-2.0, 0.3])))), [-2.0, 0.3])


def test_uncertainty_of_z0_sin_theta_is_the_propagated_covariance():
    z0, theta, step = 3.0, 0.7, 1e-6
    covariance = np.array([[0.04, 0.006], [0.006, 0.0025]])
    slope = np.array(
        [
            ((z0 + step) - (z0 - step)) * np.sin(theta) / (2 * step),
            z0 * (np.sin(theta + step) - np.sin(theta - step)) / (2 * step),
        ]
    )
    found = z0_sin_theta_sigma(*(np.array([v]) for v in (z0, theta, 0.04, 0.0025, 0.006)))
    np.testing.assert_allclose(found, np.sqrt(slope @ covariance @ slope), rtol=1e-8)


@pytest.mark.parametrize(
    ("conventions", "part"),
    [({"reference": "primary_vertex"}, "reference"), ({"lifetime_sign": "geometric"}, "lifetime_sign")],
)
def test_a_card_with_other_conventions_is_refused(conventions, part):
    card = {"name": "x", "role": "simulation", "region": "r", "files": ("a.root",), "format": "physlite"}
    with pytest.raises(DataError) as caught:
        require_conventions(DataCard(**card, conventions=conventions), ("beamline",), "PHYSLITE")
    assert caught.value.where is not None
    assert part in caught.value.where
    require_conventions(
        DataCard(**card, conventions={"reference": "beamline", "lifetime_sign": "jet_axis"}),
        ("beamline",),
        "PHYSLITE",
    )
