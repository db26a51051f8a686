"""Discriminants against their formulas, for arrays and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.config.tagger import CharmDiscriminant, TaggerConfig, TauDiscriminant
from selfcal.errors import ConfigError
from selfcal.tagger.discriminants import discriminant_b, discriminant_c, discriminant_of, discriminant_tau

P = np.random.default_rng(2).dirichlet(np.ones(4), 500)


@pytest.mark.parametrize(
    ("function", "fractions", "direct"),
    [
        (discriminant_b, (0.2, 0.01), lambda b, c, u, t: np.log(b / (0.2 * c + 0.01 * t + 0.79 * u))),
        (discriminant_b, (0.0, 0.0), lambda b, c, u, t: np.log(b / u)),
        (discriminant_b, (1.0, 0.0), lambda b, c, u, t: np.log(b / c)),
        (discriminant_c, (0.3, 0.05), lambda b, c, u, t: np.log(c / (0.3 * b + 0.05 * t + 0.65 * u))),
        (discriminant_tau, (0.1, 0.2), lambda b, c, u, t: np.log(t / (0.1 * b + 0.2 * c + 0.7 * u))),
    ],
)
def test_against_the_formula(function, fractions, direct):
    expected = direct(*P.T)
    np.testing.assert_allclose(function(np.log(P), *fractions), expected, rtol=1e-12, atol=1e-13)
    tensor = function(torch.from_numpy(np.log(P)), *fractions)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("signal", "direct"),
    [
        ("b", lambda b, c, u, t: np.log(b / (0.3 * c + 0.02 * t + 0.68 * u))),
        ("c", lambda b, c, u, t: np.log(c / (0.25 * b + 0.05 * t + 0.7 * u))),
        ("tau", lambda b, c, u, t: np.log(t / (0.1 * b + 0.4 * c + 0.5 * u))),
    ],
)
def test_the_fractions_of_the_configuration_are_used(signal, direct):
    config = TaggerConfig(
        charm_fraction=0.3,
        tau_fraction=0.02,
        charm=CharmDiscriminant(b_fraction=0.25),
        tau=TauDiscriminant(charm_fraction=0.4),
    )
    np.testing.assert_allclose(
        discriminant_of(signal, np.log(P), config), direct(*P.T), rtol=1e-12, atol=1e-13
    )


def test_light_has_no_discriminant():
    with pytest.raises(ConfigError, match="light"):
        discriminant_of("light", np.log(P), TaggerConfig())


def test_the_tensor_version_is_differentiable():
    log_p = torch.from_numpy(np.log(P[:20])).requires_grad_()
    assert torch.autograd.gradcheck(discriminant_b, (log_p,))


def test_probabilities_that_underflow_stay_finite():
    log_p = np.array([[-2000.0, -1000.0, -1e-300, -1500.0], [-1e-300, -900.0, -1000.0, -1200.0]])
    np.testing.assert_allclose(discriminant_b(log_p), [-2000 - np.log(0.79), 900 - np.log(0.2)], rtol=1e-12)


@pytest.mark.parametrize("fractions", [(0.9, 0.2), (-0.1, 0.1)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ConfigError, match="fractions"):
        discriminant_b(np.log(P), *fractions)
