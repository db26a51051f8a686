"""Scale factors: sums, groups, statuses, and coverage of the whole vector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from selfcal.config.external import ExternalPrior
from selfcal.config.fit import FitConfig
from selfcal.errors import DataError
from selfcal.likelihood.fit import fit
from selfcal.likelihood.scale_factors import as_json, group_of, scale_factors
from selfcal.likelihood.stage import fit_json, measure


@pytest.fixture
def content(random_world):
    config = FitConfig(free_flavours=("b",))
    measured = measure(random_world.templates, config)
    return as_json(measured.factors, measured.layout, "SelfCal")


def test_shapes_sum_to_one_and_working_points_are_sums_of_bins(content) -> None:
    checked = 0
    for flavour in content["flavours"]:
        for low in content["pt_gev_edges"][:-1]:
            own = [r for r in content["rows"] if r["flavour"] == flavour and r["pt_gev"][0] == low]
            bins = {r["bin"]: r for r in own if r["kind"] == "continuous"}
            if any(r["value"] is None for r in bins.values()):
                continue
            simulation = np.array([bins[k]["efficiency_simulation"] for k in range(5)])
            data = simulation * [bins[k]["value"] for k in range(5)]
            assert simulation.sum() == pytest.approx(1, abs=1e-12)
            assert data.sum() == pytest.approx(1, abs=1e-12)
            for index, point in enumerate(content["working_points"]):
                row = next(r for r in own if r["working_point"] == point)
                expected = data[index + 1 :].sum() / simulation[index + 1 :].sum()
                assert row["value"] == pytest.approx(expected, rel=1e-12)
                checked += 1
    assert checked >= 24


def test_the_simulation_efficiency_is_that_of_the_nominal_template(content, random_world) -> None:
    """Up to the fitted fluctuation of the simulation itself, well within its statistical error."""
    templates = random_world.templates
    for row in content["rows"]:
        if row["flavour"] == "b" and row["kind"] == "continuous":
            p = templates.binning.pt_gev_edges.index(row["pt_gev"][0])
            counts = templates.nominal[0, 0, p]
            error = np.sqrt(counts[row["bin"]]) / counts.sum()
            assert row["efficiency_simulation"] == pytest.approx(counts[row["bin"]] / counts.sum(), abs=error)


def test_groups_sum_in_quadrature_to_the_total_with_all_correlations(content) -> None:
    for row in content["rows"]:
        if row["value"] is not None:
            squares = row["stat"] ** 2 + sum(sigma**2 for sigma in row["syst"].values())
            assert np.sqrt(squares) == pytest.approx(row["total"], rel=1e-9)
    covariance = content["covariance"]
    total = sum(np.array(part) for part in covariance["groups"].values())
    np.testing.assert_allclose(total, covariance["matrix"], rtol=1e-9, atol=1e-15)


def test_the_statistical_part_is_the_response_of_the_estimate_to_the_data(asimov_world, one_pt_bin) -> None:
    """Against refits with one bin moved at a time, variances of the Poisson counts added up."""
    templates = one_pt_bin(asimov_world.templates)
    measured = measure(templates, FitConfig(free_flavours=("b",)))
    model, start = measured.model, torch.from_numpy(measured.result.best_fit)
    variance = np.zeros(len(measured.factors.measured))
    for b, count in enumerate(model.observed):
        step = 0.01 * float(count.sqrt())
        values = []
        for sign in (1, -1):
            counts = model.observed.clone()
            counts[b] += sign * step
            result = fit(model, counts, start=start)
            values.append(scale_factors(templates, measured.layout, model, result).value)
        variance += ((values[0] - values[1]) / (2 * step)) ** 2 * float(count)
    quoted = np.diag(measured.factors.group_covariance["statistics"])
    np.testing.assert_allclose(np.sqrt(variance), np.sqrt(quoted), rtol=0.02)


def test_a_flavour_without_simulation_or_data_is_unmeasured_never_a_number(random_world) -> None:
    templates = random_world.templates
    data = templates.data.copy()
    data[3, 2] = 0
    nominal = templates.nominal.copy()
    nominal[2, 2, 0, 4] = 0
    measured = measure(replace(templates, data=data, nominal=nominal), FitConfig(free_flavours=("b",)))
    rows = as_json(measured.factors, measured.layout, "SelfCal")["rows"]
    for row in rows:
        tau_hidden = row["flavour"] == "tau" and row["pt_gev"][0] == 70
        bin_hidden = (
            row["flavour"] == "light"
            and row["pt_gev"][0] == 20
            and (row["bin"] == 4 or row["working_point"] == 0.6)
        )
        if tau_hidden or bin_hidden:
            assert row["status"] == "unmeasured"
            assert row["value"] is None
            assert row["total"] is None
        if row["status"] == "measured":
            assert np.isfinite(row["value"])
            assert row["total"] > 0
    hidden = [r for r in rows if r["status"] == "unmeasured"]
    assert len(hidden) >= 9 + 2


@pytest.mark.fault(7, "a flavour without its region")
def test_a_flavour_without_its_region_is_extrapolated_with_a_larger_uncertainty(random_world) -> None:
    templates = random_world.templates
    names = ("data", "nominal", "nominal_variance", "calibrated", "calibrated_variance", "composition")
    fewer = {name: getattr(templates, name)[:3] for name in names}
    fewer["composition_relative_uncertainty"] = templates.composition_relative_uncertainty[:3]
    without = replace(templates, regions=templates.regions[:3], replicas=templates.replicas[:, :3], **fewer)
    measured = measure(without, FitConfig(free_flavours=("b",)))
    rows = as_json(measured.factors, measured.layout, "SelfCal")["rows"]
    status = {row["status"] for row in rows if row["flavour"] == "tau"}
    assert "extrapolated" in status
    assert "measured" not in status
    assert {row["status"] for row in rows if row["flavour"] == "b"} == {"measured"}


def test_templates_with_undefined_values_are_refused(random_world) -> None:
    broken = random_world.templates.calibrated.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="calibrated"):
        measure(replace(random_world.templates, calibrated=broken), FitConfig(free_flavours=("b",)))


def test_every_constrained_parameter_belongs_to_a_named_group(random_world) -> None:
    templates = random_world.templates
    with_model = replace(
        templates,
        variations={"stiff": 1.1 * templates.calibrated},
        detector={"0": 1.1 * templates.calibrated},
        modelling={"radiation": 1.1 * templates.calibrated},
    )
    prior = ExternalPrior(flavour="tau", value=1.1, uncertainty=0.1)
    measured = measure(with_model, FitConfig(free_flavours=("b",), external=(prior,)))
    groups = {group_of(p.name) for p in measured.model.parameters if p.width is not None}
    assert groups == set(measured.factors.group_covariance) - {"statistics"}


def test_another_map_model_is_an_uncertainty_of_its_difference(asimov_world) -> None:
    """A variation that moves the tau efficiency where data say little shows up at full size."""
    templates = asimov_world.templates
    varied = templates.calibrated.copy()
    varied[:, 3, :, 4] *= 1.3
    config = FitConfig(residual_width={"b": 0.05, "c": 0.1, "light": 0.5, "tau": 1e-3})
    plain = measure(templates, config)
    moved = measure(replace(templates, variations={"other": varied}), config)
    index = [
        i
        for i, row in enumerate(moved.factors.measured)
        if moved.factors.rows[row].flavour == "tau" and moved.factors.rows[row].bin == 4
    ]
    assert np.all(np.diag(plain.factors.group_covariance["map_model"])[index] == 0)
    sigma = np.sqrt(np.diag(moved.factors.group_covariance["map_model"])[index])
    value = moved.factors.value[index]
    assert np.all(sigma / value > 0.15)
    assert np.all(sigma / value < 0.305)


def test_eigenvariations_give_back_the_covariance(content) -> None:
    matrix, order = np.array(content["covariance"]["matrix"]), content["covariance"]["rows"]
    assert set(content["eigenvariations"]) == set(content["flavours"])
    for part in content["eigenvariations"].values():
        chosen = [order.index(row) for row in part["rows"]]
        block, shifts = matrix[np.ix_(chosen, chosen)], np.array(part["shifts"])
        sigma = np.sqrt(np.diag(block))
        rebuilt = shifts.T @ shifts + np.diag(np.array(part["envelope"]) ** 2)
        difference = np.abs(rebuilt - block) / np.outer(sigma, sigma)
        assert part["round_trip_error"]["covariance"] == pytest.approx(difference.max(), abs=1e-12)
        assert difference.max() < 1e-4
        assert len(shifts) < len(chosen)
        assert (np.array(part["envelope"]) < 0.01 * sigma).all()


def test_fit_report_is_plain_json(random_world) -> None:
    import json

    measured = measure(random_world.templates, FitConfig(free_flavours=("b",)))
    text = json.dumps(fit_json(measured, {"pyhf_version": "x"}), allow_nan=False)
    report = json.loads(text)
    assert len(report["pulls"]) == sum(p["constrained"] for p in report["parameters"])
    assert report["certificate"]["converged"] is True


@pytest.mark.parametrize("free_flavours", [(), ("b",)])
def test_scale_factors_cover_the_truth_with_displaced_composition_priors(make_world, free_flavours) -> None:
    """χ² of all working-point rows with at least 25 expected jets, summed over 20 worlds.

    The residual widths are those from which the worlds draw their truth.
    """
    total, ndf, p_values = 0.0, 0, []
    widths = {"b": 0.05, "c": 0.10, "light": 0.5, "tau": 0.3}
    for seed in range(100, 120):
        world = make_world(seed)
        measured = measure(world.templates, FitConfig(free_flavours=free_flavours, residual_width=widths))
        factors = measured.factors
        chosen, difference = [], []
        for i, row in enumerate(factors.measured):
            entry = factors.rows[row]
            if entry.kind == "working_point" and factors.expected_passing[i] >= 25:
                f = measured.layout.flavours.index(entry.flavour)
                passing = (f, entry.kinematic_bin, list(entry.passing))
                truth = world.true_efficiency[passing].sum() / world.nominal_efficiency[passing].sum()
                chosen.append(i)
                difference.append(factors.value[i] - truth)
        block = factors.covariance[np.ix_(chosen, chosen)]
        value = float(np.array(difference) @ np.linalg.solve(block, difference))
        total, ndf = total + value, ndf + len(chosen)
        p_values.append(chi2.sf(value, len(chosen)))
    # ndf is about 500: a χ²/ndf of one has a spread of 0.06; non-Gaussian priors widen it.
    assert 0.8 < total / ndf < 1.2
    assert 0.25 < np.median(p_values) < 0.75


def test_jacobians_are_those_of_automatic_differentiation(random_world) -> None:
    templates = random_world.templates
    templates = replace(templates, calibrated_variance=2 * templates.nominal_variance)
    ratios = measure(templates, FitConfig(free_flavours=("b",))).factors.ratios
    theta = ratios.model.start + 0.2 * torch.where(ratios.model.constrained, 1.0, 0.0)
    eta = torch.zeros(ratios.eta_size, dtype=torch.float64)
    wanted = torch.func.jacrev(ratios.values, argnums=(0, 1))(theta, eta)
    for found, exact in zip(ratios.jacobians(theta), wanted, strict=True):
        assert exact.abs().max() > 1e-3
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
