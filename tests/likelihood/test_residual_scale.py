"""What data say of the widths of residuals: closed forms, the marginal likelihood itself, drawn worlds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.data.flavours import FLAVOURS
from selfcal.likelihood import residual_scale as module
from selfcal.likelihood.fit import fit
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.residual_scale import improved, residual_scale
from selfcal.likelihood.stage import measure, measurement_of
from selfcal.likelihood.templates import templates_json
from selfcal.likelihood.workspace import build_workspace
from selfcal.run.atomic import write_json

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])
ALONE = FitConfig(free_flavours=(), residual_slide={})
"""A fit in which nothing but the residuals can move the shape of b jets."""


def scale_of(templates, config: FitConfig, worth: float = 1.0):
    return residual_scale(templates, make_layout(templates, config), config, worth)


def residual_widths_in(workspace) -> dict[str, float]:
    """ln(hi) of every modifier of single bins."""
    return {
        modifier["name"]: np.log(modifier["data"]["hi"])
        for channel in workspace["channels"]
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
        if modifier["name"].startswith("residual_") and not modifier["name"].startswith("residual_slide_")
    }


@pytest.mark.parametrize("worth", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("sizes", [(0.0, 0.0, 0.0, 0.0), (0.03, -0.05, 0.02, 0.01), (0.3, -0.2, 0.4, 0.1)])
def test_residuals_that_data_determine_give_their_mean_square(one_flavour, sizes, worth) -> None:
    """λ² = (Σ (d_k / w)² + ν) / (4 + ν) with the deviations d_k from the largest bin, of 10⁸ jets."""
    shape = SHAPE * np.exp([*sizes, 0.0])
    found = scale_of(one_flavour(1e8 * shape, SHAPE, size=1e12), ALONE, worth)
    width = ALONE.residual_width["b"]
    expected = (np.sum((np.array(sizes) / width) ** 2) + worth) / (4 + worth)
    assert found.settled
    assert found.determined[0] == pytest.approx(4.0, abs=0.01)
    assert found.factor[0] ** 2 == pytest.approx(expected, rel=0.02, abs=1e-4)


def away_from_the_maximum(templates, config: FitConfig, flavour: str) -> tuple[float, float]:
    """How far ln λ is from the maximum of the marginal likelihood, and what it loses of −2 ln L there.

    Laplace's integral and the prior, one fit for each of seven λ, a polynomial through them.
    """
    layout = make_layout(templates, config)
    found = residual_scale(templates, layout, config, 1.0)
    assert found.settled
    f = layout.flavours.index(flavour)
    steps, objective = np.linspace(-0.4, 0.4, 7), []
    for step in steps:
        factor = found.factor.copy()
        factor[f] *= np.exp(step)
        result = fit(HistFactory(build_workspace(templates, layout, config, factor)))
        moving = np.diag(result.covariance) > 0
        log_volume = np.linalg.slogdet(result.covariance[np.ix_(moving, moving)])[1]
        objective.append(result.twice_nll - log_volume + 2 * np.log(factor[f]) + factor[f] ** -2)
    curvature, slope = np.polyfit(steps, objective, 4)[2:4]
    assert curvature > 0
    return -slope / (2 * curvature), slope**2 / (4 * curvature)


@pytest.mark.parametrize("jets", [1e3, 1e4])
def test_it_is_the_maximum_of_the_marginal_likelihood(one_flavour, jets) -> None:
    """Between two and four of four residuals are determined, by counts that are nearly Gaussian."""
    shape = SHAPE * np.exp([0.1, -0.15, 0.05, 0.12, 0.0])
    distance, _ = away_from_the_maximum(one_flavour(jets * shape, SHAPE, size=1e12), ALONE, "b")
    assert distance == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("flavour", ["b", "c", "light", "tau"])
def test_with_few_jets_the_marginal_likelihood_can_hardly_tell(random_world, flavour) -> None:
    """γ leaves out that the information itself changes with α: 8 % of λ for τ, 2 % or less elsewhere."""
    _, lost = away_from_the_maximum(random_world.templates, FitConfig(), flavour)
    assert lost < 0.02


def test_worlds_that_differ_less_get_narrower_residuals(make_world) -> None:
    """Residuals 0.3, 1 and 2 times as wide as configured, each in three worlds of ten times the data."""
    config = FitConfig(free_flavours=(), residual_slide={})
    widths = np.array([config.residual_width[flavour] for flavour in FLAVOURS])
    mean = {}
    for size in (0.3, 1.0, 2.0):
        settings = {"residual": tuple(size * widths), "simulation_size": 4.0, "data_factor": 10.0}
        factors = [scale_of(make_world(seed, **settings).templates, config).factor for seed in range(3)]
        mean[size] = np.exp(np.mean(np.log(factors)[:, :3]))
    assert mean[1.0] == pytest.approx(1.0, abs=0.2)
    assert mean[0.3] < 0.7 * mean[1.0]
    assert mean[2.0] > 1.4 * mean[1.0]


def test_only_the_product_of_factor_and_width_matters_where_the_prior_is_weak(make_world) -> None:
    templates = make_world(1, simulation_size=4.0, data_factor=10.0).templates
    doubled = {name: 2 * width for name, width in ALONE.residual_width.items()}
    wider = ALONE.model_copy(update={"residual_width": doubled})
    first, second = (scale_of(templates, config, 1e-3) for config in (ALONE, wider))
    assert first.factor == pytest.approx(2 * second.factor, rel=0.03)


def test_what_data_do_not_determine_stays_as_configured(one_flavour) -> None:
    templates = one_flavour(1e4 * SHAPE, SHAPE)
    layout = make_layout(templates, ALONE)
    model = HistFactory(build_workspace(templates, layout, ALONE))
    found = fit(model)
    n_parameters = len(found.names)
    prior = replace(found, best_fit=np.zeros(n_parameters), covariance=np.eye(n_parameters))
    same = improved(np.full(len(layout.flavours), 0.4), prior, layout.flavours, 1.0)
    assert same.factor == pytest.approx(1.0)
    assert same.determined == pytest.approx(0.0)


def test_a_free_flavour_has_no_residuals_to_scale(one_flavour) -> None:
    found = scale_of(one_flavour(1e6 * SHAPE[::-1], SHAPE), FitConfig(free_flavours=("b",)))
    assert found.factor == pytest.approx(1.0)


def test_the_workspace_has_the_scaled_widths(random_world) -> None:
    config = FitConfig()
    before = residual_widths_in(measure(random_world.templates, config, blind=True).workspace)
    measured = measure(random_world.templates, config)
    after = residual_widths_in(measured.workspace)
    factor = dict(zip(measured.layout.flavours, measured.residual_scale.factor, strict=True))
    assert before.keys() == after.keys()
    assert len(before) > 20
    for name, width in before.items():
        flavour = name.split("_")[1]
        assert width == pytest.approx(config.residual_width[flavour])
        assert after[name] == pytest.approx(factor[flavour] * width)
    assert any(abs(value - 1) > 0.1 for value in factor.values())


@pytest.mark.parametrize("blind", [True, False])
def test_a_measurement_can_be_made_again_from_its_files(random_world, tmp_path, blind) -> None:
    """What studies do with a finished run: a blinded one has blinded templates and the configured widths."""
    config = FitConfig()
    measured = measure(random_world.templates, config, blind=blind)
    write_json(tmp_path / "templates.json", templates_json(measured.templates))
    write_json(tmp_path / "scale_factors.json", {"blinded": blind})
    again = measurement_of(tmp_path, config)
    assert again.blinded == blind
    assert residual_widths_in(again.workspace) == pytest.approx(residual_widths_in(measured.workspace))
    assert again.factors.value == pytest.approx(measured.factors.value, rel=1e-9)
    assert again.factors.covariance == pytest.approx(measured.factors.covariance, rel=1e-6, abs=1e-15)


def test_without_a_worth_the_widths_stay(random_world) -> None:
    config = FitConfig(residual_width_worth=None)
    measured = measure(random_world.templates, config)
    assert (measured.residual_scale.factor == 1).all()
    assert measured.workspace == build_workspace(random_world.templates, measured.layout, config)


def test_too_few_fits_are_said(random_world, monkeypatch) -> None:
    monkeypatch.setattr(module, "FITS_MAX", 1)
    found = scale_of(random_world.templates, FitConfig())
    assert not found.settled
    assert json.loads(json.dumps(found.as_json(tuple(FLAVOURS))))["settled"] is False
