"""Impacts of nuisance parameters: refits against first order, and sums against variances."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.errors import FitError
from selfcal.likelihood.fit import fit
from selfcal.likelihood.impacts import (
    AGREEMENT,
    hold,
    impacts,
    impacts_json,
    largest_difference,
    refitted_impacts,
    strongest,
)
from selfcal.likelihood.scale_factors import group_of
from selfcal.likelihood.stage import measure, pulls


def test_refitted_and_first_order_impacts_agree_within_two_per_cent_of_sigma(measured) -> None:
    model, result, factors = measured.model, measured.result, measured.factors
    found = impacts(model, result, factors)
    refitted = refitted_impacts(model, result, factors, strongest(found, factors, 40))
    assert refitted.failed == ()
    assert refitted.shift.shape == (len(factors.measured), 2, 40)
    differences = largest_difference(found, refitted, factors)
    assert differences.max() < AGREEMENT
    # The agreement is not one of zeros: these parameters move scale factors by a visible part of σ.
    assert np.abs(refitted.impact / np.sqrt(np.diag(factors.covariance))[:, None]).max() > 0.3


def test_a_wrong_covariance_is_seen_by_the_refits(measured) -> None:
    from dataclasses import replace

    model, result, factors = measured.model, measured.result, measured.factors
    wrong = replace(result, covariance=1.5 * result.covariance)
    chosen = strongest(impacts(model, result, factors), factors, 1)
    refitted = refitted_impacts(model, result, factors, chosen)
    assert largest_difference(impacts(model, wrong, factors), refitted, factors).max() > AGREEMENT


def test_contributions_add_up_in_quadrature_to_the_variance_of_their_group(measured) -> None:
    factors = measured.factors
    found = impacts(measured.model, measured.result, factors)
    groups = np.array([group_of(name) for name in found.names])
    for group in set(groups) - {"simulation_statistics"}:  # to which ε⁰'s own fluctuation is added
        squares = (found.contribution[:, groups == group] ** 2).sum(axis=1)
        np.testing.assert_allclose(squares, np.diag(factors.group_covariance[group]), rtol=1e-10, atol=1e-16)


def test_pulls_and_constraints_are_those_of_the_fit_report(measured) -> None:
    found = impacts(measured.model, measured.result, measured.factors)
    expected = {entry["name"]: entry for entry in pulls(measured.model, measured.result)}
    for name, pull, constraint in zip(found.names, found.pull, found.constraint, strict=True):
        assert (pull, constraint) == pytest.approx((expected[name]["value"], expected[name]["uncertainty"]))


def test_a_gaussian_scale_has_the_closed_form_impact(one_flavour) -> None:
    """Simulation statistics dominate: the b share of a bin moves with its own fluctuation alone."""
    counts = np.array([180.0, 120.0, 140.0, 260.0, 300.0])
    shape = counts / counts.sum()
    size = 2000.0
    measured = measure(one_flavour(counts * 1e6, shape, size=size), FitConfig(free_flavours=("b",)))
    found = impacts(measured.model, measured.result, measured.factors)
    # ε⁰_k ∝ N_k exp(δ_k α_k), δ_k = 1/√N_k; the data fix ε: d ln SF_k / dα_j = −δ_j (1_jk − ε⁰_j).
    for i, row in enumerate(measured.factors.measured):
        k = measured.factors.rows[row].bin
        if k is None:
            continue
        for j in range(5):
            column = found.names.index(f"simulation_b_0_{j}")
            expected = -((k == j) - shape[j]) / np.sqrt(size * shape[j])
            assert found.impact[i, column] == pytest.approx(expected, abs=1e-4)


def test_holding_a_parameter_leaves_the_model_as_it_was(measured) -> None:
    before = measured.model.fixed.clone()
    assert hold(measured.model, 3).fixed[3]
    assert (measured.model.fixed == before).all()


def test_the_table_lists_the_largest_first_and_is_plain_json(measured) -> None:
    model, result, factors = measured.model, measured.result, measured.factors
    found = impacts(model, result, factors)
    chosen = strongest(found, factors, 2)
    content = impacts_json(found, refitted_impacts(model, result, factors, chosen), factors, listed=6)
    content = json.loads(json.dumps(content, allow_nan=False))
    assert [entry["row"] for entry in content["scale_factors"]] == factors.measured.tolist()
    seen = 0
    for s, entry in enumerate(content["scale_factors"]):
        sizes = [abs(one["impact"]) for one in entry["impacts"]]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == pytest.approx(np.abs(found.impact[s]).max())
        for one in entry["impacts"]:
            if one["refit"] is not None:
                seen += 1
                half = (one["refit"]["up"] - one["refit"]["down"]) / 2
                assert half == pytest.approx(one["impact"], abs=AGREEMENT * entry["total"])
    assert seen > 0
    assert len(content["refits"]["largest_difference_in_sigma"]) == 2


def test_a_refit_that_fails_is_listed_and_not_a_number(measured, monkeypatch) -> None:
    def fails_for_the_second(held, **options):
        if not torch.equal(held.fixed & ~measured.model.fixed, first):
            raise FitError("the fit did not converge")
        return fit(held, **options)

    model, result, factors = measured.model, measured.result, measured.factors
    chosen = strongest(impacts(model, result, factors), factors, 2)
    first = hold(model, chosen[0]).fixed & ~model.fixed
    monkeypatch.setattr("selfcal.likelihood.impacts.fit", fails_for_the_second)
    refitted = refitted_impacts(model, result, factors, chosen)
    assert refitted.failed == (result.names[chosen[1]],)
    assert refitted.shift.shape[-1] == 1
    assert np.isfinite(refitted.shift).all()
