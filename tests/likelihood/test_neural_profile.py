"""The network of the profile likelihood: exact at the best fit for any weights, accurate where it learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.config.neural_profile import NeuralProfileConfig
from selfcal.errors import ConfigError, DataError, FitError
from selfcal.likelihood.neural_profile import (
    NeuralProfile,
    accuracy,
    learn_profile,
    load_profile,
    save_profile,
)
from selfcal.likelihood.profile_target import draw_points, exact_profile, profile_target, rise_max
from selfcal.likelihood.stage import measure
from selfcal.run.atomic import write_arrays

CONFIG = NeuralProfileConfig(
    working_points=(0.77,), flavours=("b", "c", "light"), points=60, test_points=20, width=24, steps=600
)


@pytest.fixture(scope="module")
def target(small_world):
    measured = measure(small_world.templates, FitConfig())
    return profile_target(measured.factors.ratios, measured.result, CONFIG)


@pytest.fixture(scope="module")
def taught(target):
    return exact_profile(target, draw_points(target, CONFIG.points, CONFIG.level, 1))


@pytest.fixture(scope="module")
def network(target, taught) -> NeuralProfile:
    return learn_profile(target, taught, CONFIG, seed=3)


def random_network(size: int, seed: int) -> NeuralProfile:
    rng = np.random.default_rng(seed)
    root = np.tril(rng.normal(size=(size, size))) + 2 * np.eye(size)
    network = NeuralProfile(rng.uniform(0.5, 2, size), np.linalg.inv(root), 7)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network.eval().requires_grad_(requires_grad=False)


def test_value_gradient_and_curvature_at_the_best_fit_are_exact_for_any_weights():
    network = random_network(3, 5)
    best, inverse = network.best, network.inverse_root
    at = best.clone().requires_grad_()

    def rise(scale_factors: torch.Tensor) -> torch.Tensor:
        return network(scale_factors[None])[0]

    assert float(rise(best)) == pytest.approx(0, abs=1e-25)
    (slope,) = torch.autograd.grad(rise(at), at)
    np.testing.assert_allclose(slope.numpy(), 0, atol=1e-12)
    curvature = torch.autograd.functional.hessian(rise, best)
    of_logarithms = (inverse.T @ inverse).numpy()
    expected = 2 * of_logarithms / np.outer(best.numpy(), best.numpy())
    np.testing.assert_allclose(curvature.numpy(), expected, atol=1e-10)
    # The third order is free.
    far = best * torch.exp(torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64))
    u = inverse @ torch.log(far / best)
    assert abs(float(rise(far)) - float(u @ u)) > 1e-3


def test_the_correction_begins_with_the_third_order():
    network = random_network(2, 8)
    direction = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    left = [float(network.whitened(step * direction)[0]) - step**2 for step in (1e-2, 5e-3)]
    assert left[0] / left[1] == pytest.approx(8, rel=0.1)


def test_it_is_never_negative():
    network = random_network(4, 2)
    points = network.best * torch.exp(
        torch.randn(500, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    )
    assert (network(points) >= 0).all()


def test_the_exact_profile_near_the_best_fit_is_the_quoted_parabola(target, small_world):
    """C holds the fluctuation of the nominal simulation, as the quoted covariance does."""
    u = np.random.default_rng(2).normal(size=(4, len(target.best)))
    u *= 0.02 / np.linalg.norm(u, axis=1, keepdims=True)
    values = target.best * np.exp(u @ target.root.T)
    exact = exact_profile(target, values)
    assert exact.converged.all()
    np.testing.assert_allclose(exact.rise, 4e-4, rtol=0.05)
    np.testing.assert_allclose(exact.gradient @ target.root, 2 * u, rtol=0.1, atol=2e-3)
    quoted = measure(small_world.templates, FitConfig()).factors
    block = quoted.covariance[np.ix_(target.slots, target.slots)]
    own = np.outer(target.best, target.best) * target.covariance
    np.testing.assert_allclose(np.diag(own), np.diag(block), rtol=0.03)


def test_gradients_of_the_exact_profile_are_its_differences(target):
    (point,) = draw_points(target, 1, CONFIG.level, 9)
    shift = 1e-3 * np.sqrt(np.diag(target.covariance))
    steps = np.concatenate([np.diag(shift), -np.diag(shift)])
    exact = exact_profile(target, np.concatenate([point[None], point * np.exp(steps)]))
    n = len(shift)
    differences = (exact.rise[1 : n + 1] - exact.rise[n + 1 :]) / (2 * shift)
    np.testing.assert_allclose(exact.gradient[0] * shift, differences * shift, atol=3e-5)


def test_the_network_is_accurate_on_fresh_points_and_far_better_than_the_parabola(target, network):
    exact = exact_profile(target, draw_points(target, CONFIG.test_points, CONFIG.level, 2))
    found = accuracy(network, target, exact, rise_max(len(target.best), CONFIG.level))
    assert found.points + found.beyond + found.unreached == CONFIG.test_points
    assert found.unreached <= 2
    assert exact.rise[exact.converged].max() > 5
    assert found.root_mean < 0.03
    assert found.mean < 0.3 * found.parabola_mean
    # Points are where they are asked for: uniform in |u| up to the joint three standard deviations.
    u = np.linalg.norm(target.whitened(exact.values), axis=1)
    assert u.max() < np.sqrt(rise_max(len(target.best), CONFIG.level))
    assert rise_max(1, 0.9973) == pytest.approx(9.0, rel=1e-3)


def test_learning_is_its_seed(target, taught):
    config = CONFIG.model_copy(update={"steps": 5})
    one, again = (learn_profile(target, taught, config, seed=4) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_files_give_the_same_network(network, target, tmp_path):
    path = save_profile(tmp_path / "p.safetensors", network)
    points = torch.from_numpy(draw_points(target, 7, 0.9, 4))
    assert torch.equal(load_profile(path)(points), network(points))
    (tmp_path / "p.safetensors").write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError):
        load_profile(path)


def test_what_cannot_be_profiled_is_refused(target):
    def choose(**changes):
        return profile_target(target.ratios, target.result, CONFIG.model_copy(update=changes))

    with pytest.raises(ConfigError, match=r"working points \[0.5\]"):
        choose(working_points=(0.5, 0.77))
    # All working points of all flavours hold the continuous shapes, and these are independent.
    assert len(choose(working_points=(0.85, 0.77, 0.7, 0.6)).best) == 12
    fewer = choose(flavours=("b",))
    assert [row.flavour for row in fewer.rows] == ["b"]
    assert fewer.best[0] == target.best[0]


def test_a_file_of_something_else_or_a_judge_without_points_is_refused(network, target, taught, tmp_path):
    write_arrays(tmp_path / "p.safetensors", {"best": np.ones(3)})
    with pytest.raises(DataError, match="not a profile likelihood") as caught:
        load_profile(tmp_path / "p.safetensors")
    assert caught.value.fix == "run 'selfcal profile' again"
    with pytest.raises(FitError, match="no exact point to judge the network by"):
        accuracy(network, target, taught, -1.0)


def test_flavours_that_are_not_measured_cannot_be_profiled(target):
    with pytest.raises(ConfigError, match=r"no flavour of 'neural_profile.flavours' is measured"):
        profile_target(target.ratios, target.result, CONFIG.model_copy(update={"flavours": ("quark",)}))


def test_scale_factors_that_are_fixed_or_out_of_reach_are_refused(target):
    # All parameters move together and far: every scale factor follows from any other one.
    sigma = 1e6 * np.sqrt(np.diag(target.result.covariance))
    fixed = replace(target.result, covariance=np.outer(sigma, sigma))
    with pytest.raises(ConfigError, match="one of the scale factors is fixed, or follows from the others"):
        profile_target(target.ratios, fixed, CONFIG)
    with pytest.raises(FitError, match="no point of the profile likelihood converged") as caught:
        exact_profile(target, np.full((2, 3), 1e3))
    assert caught.value.where == "2 points"
