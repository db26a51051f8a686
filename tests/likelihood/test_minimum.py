"""Minimum, Hessian and uncertainties against pyhf with MINUIT."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from iminuit import Minuit

from selfcal.config.fit import FitConfig
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import certify, fit, minuit_minimum
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.minimise import _solve, minimise
from selfcal.likelihood.pyhf_check import backend
from selfcal.likelihood.workspace import build_workspace

MODELS = ("uncorrelated", "correlated", "one_region", "two_channels", "everything", "scale_factors")


@contextmanager
def quiet() -> Iterator[None]:
    """pyhf hands lists of arrays to torch, which is slow there and harmless here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Creating a tensor from a list of numpy.ndarrays")
        yield


@pytest.fixture
def spec(request, workspaces, make_world):
    """A workspace by name."""
    if request.param == "scale_factors":
        templates = make_world(11).templates
        config = FitConfig(free_flavours=("b",))
        return build_workspace(templates, make_layout(templates, config), config)
    if request.param in {"uncorrelated", "correlated"}:
        return workspaces.simple_models()[request.param]
    if request.param == "one_region":
        return workspaces.small([workspaces.MODIFIERS["shapesys"]])
    return getattr(workspaces, request.param)()


@pytest.mark.parametrize("spec", [name for name in MODELS if name != "scale_factors"], indirect=True)
def test_minuit_on_the_likelihood_of_pyhf_gives_minimum_and_uncertainties(spec, pyhf_reference) -> None:
    model = HistFactory(spec)
    result = fit(model)
    reference = pyhf_reference(spec, model.index)
    minuit = Minuit(reference.twice_nll, model.start.numpy(), name=list(model.index))
    minuit.errordef, minuit.strategy, minuit.tol = Minuit.LEAST_SQUARES, 2, 1e-4
    minuit.limits = list(zip(model.lower.tolist(), model.upper.tolist(), strict=True))
    minuit.fixed = model.fixed.tolist()
    minuit.migrad()
    minuit.migrad()
    assert minuit.valid
    moving = result.uncertainty > 0
    difference = np.abs(result.best_fit - np.array(minuit.values))
    assert (difference[moving] / result.uncertainty[moving]).max() < 1e-3
    # MINUIT maps limited parameters to a sine, in which a wide one near its limit has another error.
    minuit.limits = [(None, None)] * len(minuit.values)
    minuit.hesse()
    np.testing.assert_allclose(result.uncertainty[moving], np.array(minuit.errors)[moving], rtol=1e-2)
    assert result.twice_nll == pytest.approx(minuit.fval, rel=1e-9)
    assert result.certificate["converged"]
    assert result.certificate["minimiser"] == "fisher"


@pytest.mark.parametrize("spec", MODELS, indirect=True)
def test_the_hessian_is_that_of_pyhf(spec, pyhf_reference) -> None:
    model = HistFactory(spec)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(len(model.start), generator=generator, dtype=torch.float64)
    theta = model.start + 0.05 * noise * model.width
    with quiet(), backend("pytorch"):
        reference = pyhf_reference(spec, model.index)
        order = torch.tensor(reference.order)
        data = torch.tensor(reference.data, dtype=torch.float64)

        def half(point: torch.Tensor) -> torch.Tensor:
            return -reference.pdf.logpdf(point, data).sum()

        expected = torch.autograd.functional.hessian(half, theta[order])
    found = Differentiator(model).hessian(theta[None], model.observed[None], model.centre[None])[0]
    found = found[order][:, order]
    scale = torch.diagonal(expected).abs().clamp_min(1e-12).rsqrt()
    scaled = (found - expected) * scale[:, None] * scale[None, :]
    assert float(scaled.abs().max()) < 1e-6


@pytest.mark.parametrize("spec", ["everything", "scale_factors"], indirect=True)
def test_minuit_arrives_at_the_same_minimum_with_our_gradient(spec) -> None:
    model = HistFactory(spec)
    differentiator = Differentiator(model)
    result = fit(model)
    theta = minuit_minimum(differentiator, model.start, model.observed, model.centre)
    moving = result.uncertainty > 0
    pull = np.abs(theta.numpy() - result.best_fit)[moving] / result.uncertainty[moving]
    assert pull.max() < 0.3
    assert float(model.deviance(theta, model.observed)) == pytest.approx(result.deviance, abs=0.05)


def test_a_batch_of_fits_is_the_same_as_one_by_one(workspaces) -> None:
    model = HistFactory(workspaces.everything())
    differentiator = Differentiator(model)
    generator = torch.Generator().manual_seed(5)
    counts = torch.poisson(model.observed.expand(8, -1), generator=generator)
    centre = model.centre.expand(8, -1)
    together = minimise(differentiator, model.start.expand(8, -1), counts, centre)
    assert together.converged.all()
    certificates = certify(differentiator, together.theta, counts, centre)
    assert certificates.passed.all()
    for i in range(8):
        single = fit(model, counts[i])
        sigma = np.where(single.uncertainty > 0, single.uncertainty, 1.0)
        assert np.abs((together.theta[i].numpy() - single.best_fit) / sigma).max() < 1e-4
        found = torch.diagonal(certificates.covariance[i]).sqrt().numpy()
        np.testing.assert_allclose(found, single.uncertainty, rtol=1e-4, atol=1e-10)


def test_poisson_and_normal_constraints_have_their_closed_form_errors(workspaces) -> None:
    """One bin, fixed yield, one shapesys: γ̂ = (n + a)/(ν + τ), σ² = (n + a)/(ν + τ)²."""
    modifier = {"name": "error", "type": "shapesys", "data": [10.0]}
    spec = workspaces.workspace({"one": {"s": ([50.0], [modifier])}}, {"one": [60.0]})
    result = fit(HistFactory(spec))
    tau = 25.0
    assert result.best_fit[0] == pytest.approx((60 + tau) / (50 + tau), rel=1e-8)
    assert result.uncertainty[0] == pytest.approx(np.sqrt(60 + tau) / (50 + tau), rel=1e-6)


@pytest.mark.fault(9, "a parameter at its bound")
def test_a_parameter_at_its_bound_is_reported_and_held(workspaces) -> None:
    free = {"name": "mu", "type": "normfactor", "data": None}
    rest = {"name": "rest", "type": "staterror", "data": [1.0, 1.0]}
    samples = {"s": ([5.0, 0.0], [free]), "b": ([50.0, 20.0], [rest])}
    result = fit(HistFactory(workspaces.workspace({"one": samples}, {"one": [30.0, 21.0]})))
    assert result.best_fit[0] == 0.0
    assert result.covariance[0].tolist() == [0.0, 0.0, 0.0]
    assert result.certificate["at_bound"] == ["mu"]


def test_a_step_solves_its_equations_in_any_units_and_where_they_are_singular() -> None:
    units = torch.tensor([1.0, 1e4, 1e-3], dtype=torch.float64)
    regular = torch.tensor([[2.0, 0.5, 0.0], [0.5, 3.0, 0.2], [0.0, 0.2, 1.0]], dtype=torch.float64)
    singular = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    undefined = torch.full((3, 3), torch.nan, dtype=torch.float64)
    matrices = torch.stack([units[:, None] * regular * units, singular, undefined])
    right = torch.stack([units, torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), units])
    found = _solve(matrices, right, torch.zeros(3, dtype=torch.float64))
    expected = torch.linalg.solve(regular, torch.ones(3, dtype=torch.float64)) / units
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=0.0)
    # A singular matrix, which has no Cholesky factor, still gives a solution of its equations.
    torch.testing.assert_close(singular @ found[1], right[1], rtol=1e-6, atol=1e-9)
    assert found[1].abs().max() < 1.0
    assert bool(found[2].isnan().all())
