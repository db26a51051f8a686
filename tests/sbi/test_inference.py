"""Closure: simulation smeared with known parameters gives them back."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from selfcal.config.inference import InferenceConfig
from selfcal.config.smearing_parameters import NOMINAL, PARAMETERS, SmearingParameters, prior_widths
from selfcal.sbi.chain_check import chain_available, compare_with_chain, log_density_of
from selfcal.sbi.diagnostics import predictive_check
from selfcal.sbi.donors import collect_donors
from selfcal.sbi.inference import RegionTracks, design_sizes, infer_smearing
from selfcal.sbi.smearing import smear

TRUTH = SmearingParameters(
    d0_core_scale_low=1.12,
    d0_core_scale_high=1.06,
    z0_core_scale_low=1.08,
    z0_core_scale_high=1.04,
    tail_scale_low=1.5,
    tail_scale_high=1.3,
    far_tail_scale=1.6,
    efficiency_shift=-0.01,
    innermost_efficiency_shift=-0.02,
    pileup_scale=1.2,
    fake_scale=1.3,
)
CONFIG = InferenceConfig(modelling_error=0.0, multiplicity_error=0.01)
FRACTIONS = np.full(4, 0.25)


def region(make_toy_jets, theta, seed, simulated=3000, observed=3000):
    """Data are other jets of the same law, smeared with donors and a seed of their own."""
    simulation = make_toy_jets(simulated, seed=seed, dataset=f"simulation{seed}")
    source = make_toy_jets(observed, seed=1000 + seed, dataset=f"data{seed}")
    data = smear(source, theta, collect_donors([source], seed), seed=50 + seed)
    return RegionTracks("toy", [simulation], [data], FRACTIONS, np.full(4, 0.2))


@pytest.fixture(scope="module")
def inferred(make_toy_jets, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    seen = []
    found = infer_smearing(
        [region(make_toy_jets, TRUTH, 1)], CONFIG, 1, scratch=scratch, on_point=seen.append
    )
    return found, scratch, seen


def test_known_parameters_are_found_again(inferred):
    posterior = inferred[0].posterior
    pulls = (posterior.mean - TRUTH.vector()) / posterior.uncertainty
    assert np.abs(pulls).max() < 3.5, dict(zip(PARAMETERS, pulls, strict=True))
    assert (pulls**2).mean() < 2.0
    shift = (posterior.mean - NOMINAL.vector()) / posterior.uncertainty
    for name in ("d0_core_scale_low", "z0_core_scale_low", "innermost_efficiency_shift", "fake_scale"):
        assert abs(shift[PARAMETERS.index(name)]) > 2, name
    assert ((posterior.contraction >= -1e-6) & (posterior.contraction < 1)).all()


def test_the_fitted_model_predicts_the_data(inferred):
    found = inferred[0]
    assert predictive_check(found.likelihood, found.fit, seed=1)[0]["p_value"] > 0.01


def test_progress_counts_every_point_once_and_a_second_run_reads_the_files(
    inferred, make_toy_jets, monkeypatch
):
    first, scratch, seen = inferred
    assert seen == sorted(seen)
    assert seen[-1] == sum(design_sizes(CONFIG))
    monkeypatch.setattr("selfcal.sbi.inference.SmearedRates.__call__", None)
    again = infer_smearing([region(make_toy_jets, TRUTH, 1)], CONFIG, 1, scratch=scratch)
    assert np.array_equal(again.posterior.mean, first.posterior.mean)
    assert np.array_equal(again.posterior.covariance, first.posterior.covariance)


@pytest.mark.skipif(not chain_available(), reason="needs pyro (extra 'chain')")
def test_a_chain_agrees_with_the_laplace_posterior(inferred, monkeypatch):
    monkeypatch.setattr("selfcal.sbi.chain_check.SAMPLES", 200)
    monkeypatch.setattr("selfcal.sbi.chain_check.WARM_UP", 50)
    found = inferred[0]
    density = log_density_of(partial(found.likelihood.residuals, variance=found.fit.variance))
    chain = compare_with_chain(density, found.fit.best, found.fit.covariance, len(PARAMETERS), seed=1)
    assert np.abs(chain["mean_shift"]).max() < 0.7
    assert 0.6 < min(chain["width_ratio"]) <= max(chain["width_ratio"]) < 1.4
    assert chain["divergences"] == 0


@pytest.mark.long
def test_pulls_over_pseudo_experiments(make_toy_jets):
    """Random truths from the prior: no bias, and intervals that cover."""
    generator = np.random.default_rng(1)
    pulls = []
    for seed in range(12):
        values = NOMINAL.vector() + prior_widths({}) * generator.normal(size=len(PARAMETERS))
        theta = SmearingParameters.from_vector(values)
        posterior = infer_smearing([region(make_toy_jets, theta, seed)], CONFIG, 1).posterior
        pulls.append((posterior.mean - theta.vector()) / posterior.uncertainty)
    table = np.array(pulls)
    print(dict(zip(PARAMETERS, table.mean(axis=0).round(2), strict=True)), table.std())
    covered = (np.abs(table) < 1).mean()
    assert 0.58 < covered < 0.90
    assert np.abs(table.mean(axis=0)).max() < 1.2
