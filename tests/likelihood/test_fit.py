"""The fit: closed-form answers, convergence, identifiability, toys."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pyhf
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.errors import FitError
from selfcal.likelihood.derivatives import Differentiator
from selfcal.likelihood.fit import fit, goodness_of_fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.identifiability import (
    _Words,
    describe,
    identifiability,
    prior_dominated,
    require_identifiable,
)
from selfcal.likelihood.pyhf_check import confirm_with_pyhf, pyhf_twice_nll
from selfcal.likelihood.stage import measure, postfit_yields, pulls
from selfcal.likelihood.templates import Binning
from selfcal.likelihood.toy_fits import draw_toys, fit_batch

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])
COUNTS = np.array([180.0, 120.0, 140.0, 260.0, 300.0])


def test_one_flavour_with_free_shape_reproduces_the_data_exactly(one_flavour) -> None:
    measured = measure(one_flavour(COUNTS, SHAPE), FitConfig(free_flavours=("b",)))
    continuous = [
        measured.factors.value[i]
        for i, row in enumerate(measured.factors.measured)
        if measured.factors.rows[row].kind == "continuous" and measured.factors.rows[row].flavour == "b"
    ]
    np.testing.assert_allclose(continuous, COUNTS / COUNTS.sum() / SHAPE, rtol=1e-6)


def test_one_flavour_has_the_multinomial_covariance(one_flavour) -> None:
    measured = measure(one_flavour(COUNTS, SHAPE), FitConfig(free_flavours=("b",)))
    total, fraction = COUNTS.sum(), COUNTS / COUNTS.sum()
    multinomial = (np.diag(fraction) - np.outer(fraction, fraction)) / total
    expected = multinomial / np.outer(SHAPE, SHAPE)
    chosen = [
        i for i, row in enumerate(measured.factors.measured) if measured.factors.rows[row].bin is not None
    ]
    found = measured.factors.covariance[np.ix_(chosen, chosen)]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.diag(expected).min())
    statistics = measured.factors.group_covariance["statistics"][np.ix_(chosen, chosen)]
    np.testing.assert_allclose(statistics, found, rtol=1e-3, atol=1e-8)


def test_simulation_statistics_alone_gives_the_multinomial_error_of_the_simulation(one_flavour) -> None:
    size = 2000.0
    measured = measure(
        one_flavour(COUNTS * 1e6, COUNTS / COUNTS.sum(), size=size), FitConfig(free_flavours=("b",))
    )
    fraction = COUNTS / COUNTS.sum()
    chosen = [
        i for i, row in enumerate(measured.factors.measured) if measured.factors.rows[row].bin is not None
    ]
    found = measured.factors.group_covariance["simulation_statistics"][np.ix_(chosen, chosen)]
    expected = (np.diag(fraction) - np.outer(fraction, fraction)) / size / np.outer(fraction, fraction)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_asimov_data_give_back_the_calibration(asimov_world) -> None:
    measured = measure(asimov_world.templates, FitConfig(free_flavours=("b",)))
    worst = max(abs(pull["value"]) for pull in pulls(measured.model, measured.result))
    # The composition prior of the synthetic world is the truth here, so nothing has to move.
    assert worst < 1e-4
    for i, row in enumerate(measured.factors.measured):
        entry = measured.factors.rows[row]
        f = measured.layout.flavours.index(entry.flavour)
        chosen = list(entry.passing)
        truth = asimov_world.true_efficiency[f, entry.kinematic_bin, chosen].sum()
        nominal = asimov_world.nominal_efficiency[f, entry.kinematic_bin, chosen].sum()
        assert measured.factors.value[i] == pytest.approx(truth / nominal, rel=1e-4)


def test_the_certificate_and_pyhf_confirm_the_minimum(random_world) -> None:
    before = pyhf.get_backend()
    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    confirmation = confirm_with_pyhf(measured.workspace, measured.model, measured.result)
    assert pyhf.get_backend() == before
    assert confirmation["pyhf_gradient_in_sigma_max"] < 1e-3
    certificate = measured.result.certificate
    assert certificate["edm"] < 1e-8
    assert certificate["gradient_in_sigma_max"] < 1e-3
    assert certificate["hessian_eigenvalue_min"] > 0
    assert certificate["at_bound"] == []


def test_the_workspace_satisfies_the_schema_and_opens_after_a_round_trip(random_world) -> None:
    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    text = json.dumps(measured.workspace, allow_nan=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pyhf.schema.validate(json.loads(text), "workspace.json")
    value, _ = pyhf_twice_nll(json.loads(text), measured.result.names, measured.result.best_fit)
    assert value == pytest.approx(measured.result.twice_nll, rel=1e-10)


def test_numerical_hessian_gives_the_same_uncertainties(one_flavour) -> None:
    measured = measure(one_flavour(COUNTS, SHAPE), FitConfig(free_flavours=("b",)))
    model, result = measured.model, measured.result
    theta = torch.from_numpy(result.best_fit)
    gradient = torch.func.grad(lambda t: 0.5 * model.deviance(t, model.observed))
    step = 1e-5
    columns = [
        (gradient(theta + step * axis) - gradient(theta - step * axis)) / (2 * step)
        for axis in torch.eye(len(theta), dtype=torch.float64)
    ]
    inverse = torch.linalg.inv(torch.stack(columns)).numpy()
    np.testing.assert_allclose(np.sqrt(np.diag(inverse)), result.uncertainty, rtol=1e-5)


@pytest.mark.fault(9, "a degenerate model")
def test_a_free_yield_beside_a_free_shape_is_refused_and_named(one_flavour) -> None:
    with pytest.raises(FitError, match="not determined") as caught:
        measure(one_flavour(COUNTS, SHAPE), FitConfig(free_flavours=("b",), fix_reference_yield=False))
    assert "b shape in pT 20–250 GeV" in str(caught.value)
    assert "yield of ttbar_emu in pT 20–250 GeV" in str(caught.value)


def test_the_standard_model_has_no_null_direction(random_world) -> None:
    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    assert measured.verdict.null_directions == ()
    assert measured.verdict.smallest_eigenvalue > 1e-6


@pytest.mark.fault(9, "a parameter that changes nothing")
def test_a_parameter_that_changes_nothing_is_named() -> None:
    sample = {
        "name": "s",
        "data": [5.0],
        "modifiers": [
            {"name": "mu_a_0", "type": "normfactor", "data": None},
            {"name": "mu_b_0", "type": "normfactor", "data": None},
        ],
    }
    workspace = {
        "channels": [{"name": "c", "samples": [sample]}],
        "observations": [{"name": "c", "data": [5.0]}],
        "measurements": [{"name": "m", "config": {"poi": "", "parameters": []}}],
        "version": "1.0.0",
    }
    verdict = identifiability(HistFactory(workspace))
    assert len(verdict.null_directions) == 1
    with pytest.raises(FitError, match="1 direction"):
        require_identifiable(verdict)


@pytest.mark.fault(9, "a fit that cannot converge")
def test_a_fit_that_cannot_converge_is_an_error_and_not_a_number(workspaces) -> None:
    spec = workspaces.small([workspaces.MODIFIERS["normsys"]])
    spec["channels"][0]["samples"][1]["data"][2] = 0.0
    # Events where nothing is expected: no parameter can make them likely.
    with pytest.raises(FitError, match="did not converge"):
        fit(HistFactory(spec))


@pytest.mark.fault(9, "a singular Hessian")
def test_a_flat_direction_is_an_error_unless_forced(workspaces) -> None:
    one, two = ([{"name": name, "type": "normfactor", "data": None}] for name in ("one", "two"))
    samples = {"first": ([10.0, 20.0], one), "second": ([5.0, 10.0], two)}
    model = HistFactory(workspaces.workspace({"region": samples}, {"region": [16.0, 29.0]}))
    with pytest.raises(FitError, match="not positive definite"):
        fit(model)
    forced = fit(model, force=True)
    assert forced.certificate["converged"] is False
    assert forced.certificate["hessian_eigenvalue_min"] < 1e-9


def test_the_first_start_is_the_given_one_and_only_later_ones_are_drawn(workspaces) -> None:
    """From the minimum the next fit has nothing to do, whatever its seed."""
    model = HistFactory(workspaces.small([workspaces.MODIFIERS["normsys"]]))
    found = fit(model)
    assert found.certificate["starts"] == 1
    again = [fit(model, start=torch.from_numpy(found.best_fit), seed=seed) for seed in (1, 2, 3)]
    for one in again:
        assert one.certificate["iterations"] < found.certificate["iterations"]
        assert np.array_equal(one.best_fit, again[0].best_fit)


def test_goodness_of_fit_counts_bins_minus_free_parameters(random_world) -> None:
    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    goodness = goodness_of_fit(measured.model, measured.result)
    # 12 channels of 5 bins; 15 shape factors of b and 9 yields are free.
    assert goodness["ndf"] == 60 - 15 - 9
    assert 0.001 < goodness["p_value"] < 0.999


def test_fitted_yields_add_up_to_the_total(random_world) -> None:
    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    for channel in postfit_yields(measured):
        total = np.sum(list(channel["flavours"].values()), axis=0)
        np.testing.assert_allclose(total, channel["total"], rtol=1e-9)
        # A free yield or shape makes each channel's total follow the data.
        assert np.sum(channel["total"]) == pytest.approx(np.sum(channel["data"]), rel=0.02)


def test_toy_pulls_are_unit_gaussians_and_a_halved_uncertainty_is_flagged(one_flavour) -> None:
    measured = measure(one_flavour(5 * COUNTS, SHAPE, size=5e4), FitConfig(free_flavours=("b",)))
    model, truth = measured.model, torch.from_numpy(measured.result.best_fit)
    generator = torch.Generator().manual_seed(4)
    index = model.index["shape_b_0[4]"]
    shape = [model.index[f"shape_b_0[{k}]"] for k in range(5)]
    fits = fit_batch(Differentiator(model), truth, *draw_toys(model, truth, 400, generator))
    assert fits.passed.all()
    covariance = fits.covariance.numpy()[:, shape][:, :, shape]
    # The shape's fraction in the tightest bin, with its first-order error.
    y = fits.best_fit.numpy()[:, shape] * SHAPE
    total = y.sum(axis=1, keepdims=True)
    slope = SHAPE[4] * (np.arange(5) == 4) / total - y[:, 4:] * SHAPE / total**2
    estimates = (y[:, 4:] / total)[:, 0]
    sigmas = np.sqrt(np.einsum("ti,tij,tj->t", slope, covariance, slope))
    y = measured.result.best_fit[shape] * SHAPE
    expected = np.full(400, y[4] / y.sum())
    assert index == shape[4]
    pull = (estimates - expected) / sigmas
    # Mean and width of n unit Gaussian numbers vary by 1/√n and 1/√(2n); half of σ would be seen.
    assert abs(pull.mean()) < 3 / 400**0.5
    assert abs(pull.std(ddof=1) - 1) < 3 / 800**0.5
    assert abs((2 * pull).std(ddof=1) - 1) > 3 / 800**0.5


def test_a_model_without_free_parameters_determines_all_it_has(workspaces) -> None:
    spec = workspaces.small([])
    spec["measurements"][0]["config"]["parameters"] = [{"name": "yield", "fixed": True}]
    verdict = identifiability(HistFactory(spec))
    assert verdict.null_directions == ()
    assert (verdict.smallest_eigenvalue, verdict.condition_number) == (1.0, 1.0)


def test_parameters_are_named_in_words() -> None:
    assert describe("composition_dijet_light") == "light fraction of dijet"
    assert describe("external_tau_0") == "external scale factor of tau"
    assert describe("shape_b_0[3]") == "b shape in kinematic bin 0"
    binning = Binning((20.0, 40.0, 70.0, 250.0), (0.5,), (0.77,))
    assert describe("shape_b_2[3]", binning) == "b shape in pT 70–250 GeV"
    assert describe("mu_of_something_else") == "mu_of_something_else"


def test_pyhf_refuses_what_is_no_workspace_and_confirms_no_other_likelihood(one_flavour) -> None:
    measured = measure(one_flavour(COUNTS, SHAPE), FitConfig(free_flavours=("b",)))
    agreed = confirm_with_pyhf(measured.workspace, measured.model, measured.result)
    assert agreed["relative_difference"] < 1e-9
    wrong = replace(measured.result, twice_nll=measured.result.twice_nll * (1 + 1e-8))
    with pytest.raises(FitError, match="pyhf gives another likelihood at the best fit"):
        confirm_with_pyhf(measured.workspace, measured.model, wrong)
    broken = {key: value for key, value in measured.workspace.items() if key != "observations"}
    with pytest.raises(FitError, match=r"pyhf refuses the workspace: .*observations"):
        pyhf_twice_nll(broken, measured.result.names, measured.result.best_fit)


def test_a_direction_names_what_moves_by_a_tenth_of_the_largest_strongest_first(workspaces) -> None:
    names = _Words(HistFactory(workspaces.everything()), None)
    indices = list(range(4))
    words = [names.of(i) for i in indices]
    assert len(set(words)) == 4
    direction = np.array([0.02, -0.4, 0.05, 0.039])
    assert names.of_direction(direction, indices) == f"{words[1]} with {words[2]}"
    assert names.of_direction(-10 * direction, indices) == names.of_direction(direction, indices)


def test_parameters_that_the_data_hardly_narrow_are_listed_wherever_they_stand(workspaces) -> None:
    """Posterior over prior width above 0.7; free ones and errors of the simulation are none of these."""
    normsys = {"type": "normsys", "data": {"hi": 1.3, "lo": 0.7}}
    weak = {"type": "normsys", "data": {"hi": 1.001, "lo": 0.999}}
    modifiers = [
        {"name": "a_free", "type": "normfactor", "data": None},
        {"name": "simulation_b", **weak},
        {"name": "c_weak", **weak},
        {"name": "staterror_region", "type": "staterror", "data": [0.01, 0.01, 0.0]},
        {"name": "z_weak", **weak},
    ]
    samples = {
        "signal": ([30.0, 10.0, 1.0], modifiers),
        "other": ([400.0, 900.0, 100.0], [{"name": "strong", **normsys}]),
    }
    model = HistFactory(workspaces.workspace({"region": samples}, {"region": [431.0, 912.0, 99.0]}))
    result = fit(model)
    found = prior_dominated(model, result)
    assert found == [name for name in result.names if name.endswith("_weak")]
    assert len(found) == 2
    for parameter, sigma in zip(model.parameters, result.uncertainty, strict=True):
        if parameter.name == "strong":
            assert sigma < 0.2
