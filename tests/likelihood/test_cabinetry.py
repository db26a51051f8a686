"""The workspace of the fit in pyhf's and cabinetry's own hands: the same best fit and uncertainties."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.likelihood.pyhf_check import backend, pyhf_order
from selfcal.likelihood.stage import measure
from selfcal.run.atomic import write_json

pytest.importorskip("cabinetry", reason="needs the extra 'cabinetry'")


@pytest.fixture
def measured(one_flavour):
    """b jets of one region in five bins: 4 residual factors, the yield, the simulation's statistics."""
    shape = np.array([0.15, 0.08, 0.07, 0.10, 0.60])
    data = np.array([160.0, 75.0, 70.0, 110.0, 585.0])
    return measure(one_flavour(data, shape, 4000.0), FitConfig(pt_gev_edges=(20.0, 250.0)))


@pytest.fixture
def opened(measured, tmp_path):
    """Model and data as cabinetry makes them from the file."""
    import cabinetry

    write_json(tmp_path / "workspace.json", measured.workspace)
    with warnings.catch_warnings(), backend("numpy"):
        # pyhf 0.7 validates with an interface that jsonschema has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield cabinetry.model_utils.model_and_data(cabinetry.workspace.load(tmp_path / "workspace.json"))


def test_cabinetry_gives_the_same_fit(measured, opened) -> None:
    import cabinetry

    model, data = opened
    fitted = cabinetry.fit.fit(model, data, tolerance=1e-3)
    order = pyhf_order(measured.result.names, model)
    ours, sigma = measured.result.best_fit[order], measured.result.uncertainty[order]
    assert fitted.best_twice_nll == pytest.approx(measured.result.twice_nll, abs=1e-6)
    assert (np.abs(fitted.bestfit - ours) < 2e-3 * sigma).all()
    np.testing.assert_allclose(fitted.uncertainty, sigma, rtol=0.01)
    moving = np.ix_(sigma > 0, sigma > 0)
    correlation = measured.result.covariance[np.ix_(order, order)] / np.outer(sigma, sigma)
    np.testing.assert_allclose(fitted.corr_mat[moving], correlation[moving], atol=0.01)


def test_pyhf_gives_the_same_fit(measured, opened) -> None:
    import pyhf

    model, data = opened
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-3))
    found, twice_nll = pyhf.infer.mle.fit(data, model, return_fitted_val=True)
    order = pyhf_order(measured.result.names, model)
    assert float(twice_nll) == pytest.approx(measured.result.twice_nll, abs=1e-6)
    ours, sigma = measured.result.best_fit[order], measured.result.uncertainty[order]
    assert (np.abs(np.asarray(found) - ours) < 2e-3 * sigma).all()


def test_cabinetry_sees_the_same_yields(measured, opened) -> None:
    import cabinetry

    model, _ = opened
    prediction = cabinetry.model_utils.prediction(model)
    for i, name in enumerate(model.config.channels):
        ours = measured.model.expected(measured.model.start)[measured.model.channels[name]]
        np.testing.assert_allclose(np.sum(prediction.model_yields[i], axis=0), ours.numpy(), rtol=1e-12)
