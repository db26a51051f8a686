"""The posterior: its directions, its files, its parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, PRIORS, SmearingParameters, prior_widths
from selfcal.errors import DataError
from selfcal.run.atomic import read_arrays
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.posterior import POSTERIOR_NAME, SAMPLES_NAME, Posterior, load_posterior, save_posterior
from selfcal.sbi.smearing import smear


@pytest.fixture(scope="module")
def posterior():
    generator = np.random.default_rng(1)
    widths = prior_widths({})
    root = generator.normal(size=(len(PARAMETERS), len(PARAMETERS))) * 0.1 * widths
    return Posterior(NOMINAL.vector() + 0.2 * widths, root.T @ root, widths)


def test_directions_make_up_the_covariance(posterior):
    rows = posterior.directions()
    assert np.allclose(rows.T @ rows, posterior.covariance, rtol=1e-9, atol=1e-15)
    lengths = np.linalg.norm(rows / posterior.prior_width, axis=1)
    assert (np.diff(lengths) <= 1e-12).all()


def test_draws_have_its_mean_and_covariance(posterior):
    draws = posterior.draw(20000, seed=1)
    sigma = posterior.uncertainty
    assert np.abs((draws.mean(axis=0) - posterior.mean) / sigma).max() < 4 / np.sqrt(20000)
    assert np.abs(np.cov(draws.T) - posterior.covariance).max() < 0.05 * (sigma.max() ** 2)


def test_files_bring_back_the_same_jets(posterior, make_toy_jets, tmp_path):
    jets = make_toy_jets(500, seed=1)
    donors = collect_donors([jets], seed=1)
    save_posterior(posterior, donors, 5, {"diagnostics": {}}, tmp_path)
    found, again, seed = load_posterior(tmp_path)
    assert np.array_equal(found.covariance, posterior.covariance)
    assert seed == 5
    before, after = (smear(jets, p.parameters, d, 5) for p, d in ((posterior, donors), (found, again)))
    assert np.array_equal(before.tracks, after.tracks)
    assert read_arrays(tmp_path / SAMPLES_NAME)["theta"].shape[1] == len(PARAMETERS)


def test_a_posterior_of_other_parameters_is_refused(posterior, make_toy_jets, tmp_path):
    save_posterior(posterior, collect_donors([make_toy_jets(50, seed=1)], 1), 1, {}, tmp_path)
    content = json.loads((tmp_path / POSTERIOR_NAME).read_text())
    content["parameters"][0]["name"] = "something_else"
    (tmp_path / POSTERIOR_NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match="parameters are not those of this version"):
        load_posterior(tmp_path)


def test_vectors_and_parameters_are_the_same():
    values = NOMINAL.vector() + 0.01
    assert np.allclose(SmearingParameters.from_vector(values).vector(), values)
    assert set(PRIORS) == set(SmearingParameters.model_fields)
    beyond = SmearingParameters.from_vector(NOMINAL.vector() - 100)
    assert beyond.fake_scale == 0.0
    assert beyond.d0_core_scale_low > 0.2
    highest = SmearingParameters.from_vector(NOMINAL.vector() + 100)
    ranges = {"d0_core_scale": 5.0, "z0_core_scale": 5.0, "tail_scale": 8.0, "far_tail": 20.0}
    ranges |= {"d0_bias": 0.2, "z0_bias": 0.5, "efficiency_shift": 0.3, "innermost": 0.5}
    ranges |= {"pileup": 8.0, "fake": 20.0}
    for name, value in highest.model_dump().items():
        limit = next(limit for start, limit in ranges.items() if name.startswith(start))
        assert value == pytest.approx(limit, rel=1e-5)
        assert value < limit


def test_priors_cover_the_ratios_seen_by_cms():
    """Core 0.97-1.10 and fraction beyond three sigma 0.85-1.41 within two prior widths."""
    from scipy.stats import norm

    from selfcal.sbi.smearing import FAR_TAIL_FACTOR, FAR_TAIL_FRACTION, TAIL_FACTOR, TAIL_FRACTION

    for name in ("d0_core_scale_low", "d0_core_scale_high"):
        assert PRIORS[name].width * 2 > 0.10

    def beyond(core, tail, far):
        shares = [(TAIL_FRACTION * tail, TAIL_FACTOR), (FAR_TAIL_FRACTION * far, FAR_TAIL_FACTOR)]
        rest = 1 - sum(share for share, _ in shares)
        return sum(2 * share * norm.sf(3 / (core * factor)) for share, factor in [(rest, 1.0), *shares])

    reach = [
        beyond(1.0, 1 + s * 2 * PRIORS["tail_scale_high"].width, 1.0) / beyond(1.0, 1.0, 1.0) for s in (-1, 1)
    ]
    assert reach[0] < 0.85
    assert reach[1] > 1.41


def test_unknown_priors_are_refused():
    with pytest.raises(ValidationError, match="names \\['nonsense'\\]"):
        InferenceConfig(prior_width={"nonsense": 1.0})


def test_a_posterior_of_another_version_or_without_donors_is_refused(posterior, make_toy_jets, tmp_path):
    save_posterior(posterior, collect_donors([make_toy_jets(50, seed=1)], 1), 1, {}, tmp_path)
    usual = json.loads((tmp_path / POSTERIOR_NAME).read_text())
    for change, words in (
        ({"schema_version": 99}, "schema version 99, expected"),
        ({"model": "nonsense"}, "not a posterior of this version: 'nonsense'"),
        ({"seed": None}, "not a posterior of this version"),
        ({"track_fields": None}, "not a posterior of this version"),
    ):
        (tmp_path / POSTERIOR_NAME).write_text(json.dumps(usual | change))
        with pytest.raises(DataError, match=words) as caught:
            load_posterior(tmp_path)
        assert caught.value.where == str(tmp_path)
