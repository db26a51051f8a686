"""The quadratic emulator: exact for quadratics, honest about everything else."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.errors import FitError
from selfcal.sbi.emulator import fit_emulator, gaussian_design, n_terms, terms


def quadratic(theta):
    a = np.array([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]])
    b = np.array([[[1.0, 0.5, 0.0], [0.5, -1.0, 0.2], [0.0, 0.2, 0.3]], np.eye(3)])
    return a @ theta + np.einsum("i,mij,j->m", theta, b, theta) + 4.0


def test_a_quadratic_is_reproduced_everywhere():
    centre, width = np.array([0.1, 1.0, -0.5]), np.array([0.3, 0.1, 2.0])
    design = gaussian_design(centre, width, 20, seed=1)
    outputs = np.stack([quadratic(theta) for theta in design])
    emulator = fit_emulator(design, outputs, centre, width, cross=True)
    far = centre + 5 * width
    assert np.allclose(emulator(far), quadratic(far), atol=1e-9)
    assert np.allclose(emulator(np.stack([far, centre])), [quadratic(far), quadratic(centre)], atol=1e-9)
    assert emulator.error.max() < 1e-9


def test_without_products_they_are_missed_and_the_error_says_so():
    centre, width = np.zeros(2), np.ones(2)
    design = gaussian_design(centre, width, 64, seed=1)
    outputs = design.prod(axis=1, keepdims=True)
    emulator = fit_emulator(design, outputs, centre, width, cross=False)
    assert 0.9 * outputs.std() < emulator.error[0] < 1.5 * outputs.std()


def test_the_error_is_that_of_points_left_out():
    generator = np.random.default_rng(1)
    design = generator.normal(size=(30, 2))
    outputs = np.sin(design @ generator.normal(size=(2, 3)))
    emulator = fit_emulator(design, outputs, np.zeros(2), np.ones(2), cross=True)
    left_out = []
    for i in range(len(design)):
        rest = np.delete(np.arange(len(design)), i)
        other = fit_emulator(design[rest], outputs[rest], np.zeros(2), np.ones(2), cross=True)
        left_out.append(outputs[i] - other(design[i]))
    assert np.allclose(emulator.error, np.sqrt((np.array(left_out) ** 2).mean(axis=0)))


def test_terms_are_counted():
    for cross in (False, True):
        assert terms(np.ones((3, 5)), cross=cross).shape == (3, n_terms(5, cross=cross))


def test_designs_spread_like_a_gaussian():
    design = gaussian_design(np.array([1.0, 0.0]), np.array([0.1, 2.0]), 256, seed=1)
    assert design.shape == (256, 2)
    assert np.allclose(design.mean(axis=0), [1.0, 0.0], atol=[0.005, 0.1])
    assert np.allclose(design.std(axis=0), [0.1, 2.0], rtol=0.07)


def test_too_few_points_are_refused():
    design = gaussian_design(np.zeros(3), np.ones(3), 10, seed=1)
    with pytest.raises(FitError, match="10 points for 10 terms"):
        fit_emulator(design, np.zeros((10, 1)), np.zeros(3), np.ones(3), cross=True)
