"""Closed-form derivatives against automatic differentiation, and the elimination of the local parameters."""

from __future__ import annotations

import pytest
import torch

from selfcal.likelihood.derivatives import Differentiator, rate_jacobian
from selfcal.likelihood.fit import fisher_information
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.minimise import gradient, minimise, moving

CODES = (("code4", "code4p"), ("code1", "code0"))


def points(model: HistFactory, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(n, len(model.parameters), generator=generator, dtype=torch.float64)
    return torch.where(model.start == 0, 1.3 * noise, (0.15 * noise).exp())


@pytest.mark.parametrize("codes", CODES)
def test_gradient_jacobian_and_hessian_are_those_of_autodiff(codes, workspaces) -> None:
    model = HistFactory(workspaces.everything(), normsys_code=codes[0], histosys_code=codes[1])
    differentiator = Differentiator(model)
    theta = points(model, 5)
    counts = torch.poisson(model.observed.expand(5, -1), generator=torch.Generator().manual_seed(1))
    centre = model.centre + 0.1 * model.width
    jacobian = differentiator.jacobian(differentiator.linear(theta))
    slopes = gradient(differentiator, theta, counts, centre.expand(5, -1))
    hessians = differentiator.hessian(theta, counts, centre.expand(5, -1))
    for i in range(5):

        def half(point: torch.Tensor, data: torch.Tensor = counts[i]) -> torch.Tensor:
            return 0.5 * model.deviance(point, data, centre)

        torch.testing.assert_close(
            jacobian[i], torch.func.jacrev(model.expected)(theta[i]), rtol=1e-11, atol=1e-10
        )
        torch.testing.assert_close(slopes[i], torch.func.grad(half)(theta[i]), rtol=1e-11, atol=1e-10)
        automatic = torch.func.jacrev(torch.func.grad(half))(theta[i])
        torch.testing.assert_close(hessians[i], automatic, rtol=1e-10, atol=1e-9)


def test_the_factors_of_single_bins_are_local_and_shared_ones_are_not(workspaces) -> None:
    model = HistFactory(workspaces.everything())
    differentiator = Differentiator(model)
    names = list(model.index)
    local = {names[j] for j in differentiator.local_index.flatten().tolist() if j < len(names)}
    wide = {names[j] for j in differentiator.global_index.tolist()}
    assert local | wide >= set(names)
    assert not local & wide
    # stat[0..2] belong to the channel 'east', stat[3..5] to 'west'; the bins of 'fake_error' are one.
    assert {f"stat[{k}]" for k in range(6)} | {"fake_error[0]", "alone[0]"} <= local
    assert {"mu", "scale", "lumi", "top_yield", "shape[0]"} <= wide


def test_one_step_with_eliminated_factors_is_the_step_of_the_whole_matrix(workspaces) -> None:
    model = HistFactory(workspaces.everything())
    differentiator = Differentiator(model)
    (theta,) = points(model, 1)
    theta = torch.where(model.fixed, model.start, 1 + 0.02 * (theta - 1))
    theta = torch.where(model.start == 0, 0.02 * theta, theta)
    counts, centre = model.observed[None], model.centre[None]
    reached = minimise(differentiator, theta[None], counts, centre, iterations_max=1).theta[0]
    linear = differentiator.linear(theta[None])
    information = fisher_information(model, theta, linear.expected[0], differentiator.jacobian(linear)[0])
    slope = gradient(differentiator, theta[None], counts, centre)
    free = moving(model, theta[None], slope)[0]
    step = torch.zeros_like(theta)
    step[free] = -torch.linalg.solve(information[free][:, free], slope[0][free])
    torch.testing.assert_close(reached, theta + step, rtol=1e-9, atol=1e-9)


def test_derivatives_of_the_rates_of_single_cells_are_those_of_automatic_differentiation(workspaces) -> None:
    model = HistFactory(workspaces.everything())
    theta = points(model, 1)[0]
    cells = torch.arange(0, len(model.cells), 2)
    wanted = torch.func.jacrev(lambda at: model.rates(at)[cells])(theta)
    torch.testing.assert_close(rate_jacobian(model, theta, cells), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["normfactor", "histosys", "normsys", "shapesys"])
def test_a_model_of_one_kind_of_modifier_has_the_same_derivatives(kind, workspaces) -> None:
    model = HistFactory(workspaces.small([workspaces.MODIFIERS[kind]]))
    theta = points(model, 1)[0]
    cells = torch.arange(len(model.cells))
    wanted = torch.func.jacrev(lambda at: model.rates(at)[cells])(theta)
    torch.testing.assert_close(rate_jacobian(model, theta, cells), wanted, rtol=1e-10, atol=1e-12)
