"""Expected results and blinding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.likelihood.asimov import blinded_templates
from selfcal.likelihood.fit import fit
from selfcal.likelihood.scale_factors import as_json
from selfcal.likelihood.stage import fit_json, measure

CONFIG = FitConfig()


def test_an_asimov_fit_gives_back_its_parameters_and_the_first_order_uncertainty(small_world) -> None:
    measured = measure(small_world.templates, CONFIG)
    model = measured.model
    theta = torch.from_numpy(measured.result.best_fit)
    expected = fit(model.with_centre(theta), model.expected(theta), start=theta)
    assert expected.deviance == pytest.approx(0.0, abs=1e-7)
    pull = (expected.best_fit - measured.result.best_fit) / np.where(
        expected.uncertainty > 0, expected.uncertainty, 1.0
    )
    assert np.abs(pull).max() < 1e-4


def test_blinded_scale_factors_are_one_with_an_uncertainty(small_world) -> None:
    blinded = measure(small_world.templates, CONFIG, blind=True).factors
    np.testing.assert_allclose(blinded.value, 1.0, atol=1e-3)
    assert (np.diag(blinded.covariance) > 0).all()


def test_blinded_results_do_not_depend_on_the_discriminant_in_data_or_on_the_shift_of_the_map(
    small_world,
) -> None:
    templates = small_world.templates
    # Other data with the same number of jets, and a map that moves every template elsewhere.
    tilt = np.linspace(0.8, 1.2, templates.binning.n_bins)
    other = replace(
        templates,
        data=0.97 * templates.data + 0.03 * templates.data[..., ::-1],
        calibrated=templates.calibrated * tilt,
        calibrated_variance=templates.calibrated_variance * tilt**2,
        replicas=templates.replicas * tilt,
    )
    seen = [measure(one, CONFIG).factors.value for one in (templates, other)]
    assert np.abs(seen[0] - seen[1]).max() > 0.1
    hidden = [measure(one, CONFIG, blind=True) for one in (templates, other)]
    np.testing.assert_allclose(hidden[0].factors.value, hidden[1].factors.value, rtol=1e-9)
    np.testing.assert_allclose(hidden[0].factors.covariance, hidden[1].factors.covariance, rtol=1e-6)
    counts = [[entry["data"] for entry in one.workspace["observations"]] for one in hidden]
    np.testing.assert_allclose(counts[0], counts[1], rtol=1e-12)


def test_the_expected_uncertainty_is_near_the_observed_one(small_world) -> None:
    observed, expected = (
        measure(small_world.templates, CONFIG, blind=blind).factors for blind in (False, True)
    )
    many = observed.expected_passing > 500
    ratio = np.sqrt(np.diag(expected.covariance) / np.diag(observed.covariance))[many]
    assert many.sum() > 5
    assert 0.5 < np.median(ratio) < 1.5


def test_channels_without_data_stay_without(random_world) -> None:
    templates = random_world.templates
    data = templates.data.copy()
    data[3, 2] = 0
    hidden = blinded_templates(replace(templates, data=data), CONFIG)
    assert (hidden.data[3, 2] == 0).all()
    assert (hidden.data[3, :2].sum(axis=1) > 0).all()


def test_the_files_say_whether_they_are_blinded(small_world) -> None:
    for blind in (False, True):
        measured = measure(small_world.templates, CONFIG, blind=blind)
        assert fit_json(measured, {})["blinded"] is blind
        assert as_json(measured.factors, measured.layout, "T", blinded=blind)["blinded"] is blind
