"""Scale factors known from elsewhere: they are what the fit gives unless data say otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.optimize import minimize_scalar

from selfcal.config.external import ExternalPrior
from selfcal.config.fit import FitConfig
from selfcal.errors import ConfigError
from selfcal.likelihood.external import bin_factors, external_entries, with_external
from selfcal.likelihood.pyhf_check import confirm_with_pyhf
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Templates

POINTS = (0.60, 0.70, 0.77, 0.85)
SHAPE = np.array([0.6, 0.15, 0.1, 0.1, 0.05])


def without_tau_region(templates: Templates) -> Templates:
    names = ("data", "nominal", "nominal_variance", "calibrated", "calibrated_variance", "composition")
    fewer = {name: getattr(templates, name)[:3] for name in names}
    fewer["composition_relative_uncertainty"] = templates.composition_relative_uncertainty[:3]
    return replace(templates, regions=templates.regions[:3], replicas=templates.replicas[:, :3], **fewer)


def rows_of(measured, flavour: str, kind: str = "working_point") -> list[dict]:
    rows = as_json(measured.factors, measured.layout, "SelfCal")["rows"]
    return [row for row in rows if row["flavour"] == flavour and row["kind"] == kind]


def test_without_data_information_the_posterior_is_the_prior(make_world) -> None:
    """A few tau jets among thousands of others say nothing of their own efficiency."""
    templates = without_tau_region(make_world(3, asimov=True, simulation_size=1e4).templates)
    composition = templates.composition.copy()
    composition[:, 3] *= 1e-6
    templates = replace(templates, composition=composition / composition.sum(axis=1, keepdims=True))
    value, uncertainty = (1.4, 1.3, 1.2, 1.1), (0.3, 0.2, 0.15, 0.1)
    prior = ExternalPrior(flavour="tau", value=value, uncertainty=uncertainty)
    measured = measure(templates, FitConfig(free_flavours=("b",), external=(prior,)))
    rows = rows_of(measured, "tau")
    assert len(rows) == 12
    for row in rows:
        place = POINTS.index(row["working_point"])
        assert row["status"] == "external"
        assert row["value"] == pytest.approx(value[place], rel=1e-4)
        assert row["syst"]["external"] == pytest.approx(uncertainty[place], rel=1e-3)
        assert row["total"] == pytest.approx(uncertainty[place], rel=1e-3)
    confirm_with_pyhf(measured.workspace, measured.model, measured.result)


def test_with_data_it_is_the_product_of_likelihood_and_prior(one_flavour) -> None:
    """b jets alone, one factor s for all that pass: multinomial likelihood times a Gaussian in s."""
    counts = np.array([560.0, 160.0, 120.0, 105.0, 55.0])
    prior = ExternalPrior(flavour="b", value=1.3, uncertainty=0.05)
    measured = measure(one_flavour(counts, SHAPE), FitConfig(external=(prior,), pt_shape_width=3.0))
    passing, failing, share = counts[1:].sum(), counts[0], SHAPE[1:].sum()

    def negative(s: float) -> float:
        return -passing * np.log(s) - failing * np.log(1 - s * share) + ((s - 1.3) / 0.05) ** 2 / 2

    best = minimize_scalar(negative, bounds=(0.5, 2.0), method="bounded", options={"xatol": 1e-10}).x
    curvature = passing / best**2 + failing * share**2 / (1 - best * share) ** 2 + 1 / 0.05**2
    for row in rows_of(measured, "b"):
        assert row["value"] == pytest.approx(best, rel=1e-5)
        assert row["total"] == pytest.approx(curvature**-0.5, rel=1e-3)
        assert row["status"] == "measured"


def test_factors_keep_the_sum_and_give_the_efficiencies_wanted() -> None:
    prior = ExternalPrior(flavour="c", value=(1.2, 1.15, 1.1, 1.05), uncertainty=0.1)
    for alpha in (-1.0, 0.0, 2.0):
        moved = SHAPE * bin_factors(SHAPE, prior, alpha)
        assert moved.sum() == pytest.approx(1.0, abs=1e-12)
        for w, value in enumerate((1.05, 1.1, 1.15, 1.2)):
            wanted = (value + 0.1 * alpha) * SHAPE[w + 1 :].sum()
            assert moved[w + 1 :].sum() == pytest.approx(wanted, rel=1e-12)


def test_a_blinded_fit_keeps_external_scale_factors_and_expects_one_elsewhere(asimov_world) -> None:
    prior = ExternalPrior(flavour="tau", value=1.2, uncertainty=0.1)
    config = FitConfig(free_flavours=("b",), external=(prior,))
    measured = measure(without_tau_region(asimov_world.templates), config, blind=True)
    assert [row["value"] for row in rows_of(measured, "tau")] == pytest.approx([1.2] * 12, rel=0.01)
    assert [row["value"] for row in rows_of(measured, "b")] == pytest.approx([1.0] * 12, rel=1e-4)


def test_empty_bins_of_the_simulation_do_not_change_an_external_scale_factor(asimov_world) -> None:
    templates = without_tau_region(asimov_world.templates)
    emptied = {name: getattr(templates, name).copy() for name in ("nominal", "calibrated")}
    for content in emptied.values():
        content[:, 3, :, 3] = 0
    prior = ExternalPrior(flavour="tau", value=1.2, uncertainty=0.1)
    config = FitConfig(free_flavours=("b",), external=(prior,))
    measured = measure(replace(templates, **emptied), config, blind=True)
    assert [row["value"] for row in rows_of(measured, "tau")] == pytest.approx([1.2] * 12, rel=1e-3)


def test_entries_are_for_whole_bins_and_each_bin_has_one(random_world) -> None:
    binning = random_world.templates.binning
    low = ExternalPrior(flavour="c", value=1.1, uncertainty=0.1, pt_gev=(20, 70))
    high = ExternalPrior(flavour="c", value=1.2, uncertainty=0.1, pt_gev=(70, 250))
    entries = external_entries(binning, FitConfig(external=(low, high)))
    assert entries.tolist() == [[-1] * 3, [0, 0, 1], [-1] * 3, [-1] * 3]
    for other, what in (
        (low, "second one"),
        (high.model_copy(update={"pt_gev": (60, 250)}), "ends within a bin"),
        (high.model_copy(update={"pt_gev": (300, 400)}), "covers no bin"),
    ):
        with pytest.raises(ConfigError, match=what):
            external_entries(binning, FitConfig(external=(low, other)))


def test_impossible_or_contradictory_priors_are_refused(random_world) -> None:
    large = ExternalPrior(flavour="b", value=1.5, uncertainty=0.1)
    with pytest.raises(ConfigError, match="negative share"):
        with_external(random_world.templates, FitConfig(external=(large,)))
    with pytest.raises(ValidationError, match="cannot be in 'free_flavours' and in 'external'"):
        FitConfig(free_flavours=("b",), external=(large,))
    with pytest.raises(ValidationError, match="2 numbers for 4 working points"):
        FitConfig(external=(ExternalPrior(flavour="c", value=(1.0, 1.1), uncertainty=0.1),))


def test_a_region_without_simulation_of_the_flavour_keeps_its_emptiness(asimov_world) -> None:
    templates = without_tau_region(asimov_world.templates)
    emptied = {name: getattr(templates, name).copy() for name in ("nominal", "calibrated")}
    for content in emptied.values():
        content[1, 3] = 0
    prior = ExternalPrior(flavour="tau", value=1.2, uncertainty=0.1)
    found = with_external(replace(templates, **emptied), FitConfig(free_flavours=("b",), external=(prior,)))
    assert found.calibrated[1, 3].tolist() == np.zeros_like(found.calibrated[1, 3]).tolist()
    assert found.calibrated[0, 3].sum(-1) == pytest.approx(templates.nominal[0, 3].sum(-1))
    assert np.isfinite(found.calibrated_variance).all()
