"""The compiled likelihood against pyhf and against its plain twin, modifier by modifier and as a whole."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.errors import FitError
from selfcal.likelihood.histfactory import HistFactory
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.plain import plain_twice_nll
from selfcal.likelihood.pyhf_check import pyhf_twice_nll
from selfcal.likelihood.workspace import build_workspace

POINTS = 100
KINDS = ("normfactor", "shapefactor", "normsys", "histosys", "staterror", "shapesys", "lumi")
CODES = (("code4", "code4p"), ("code1", "code0"))


def random_points(model: HistFactory, n: int, seed: int = 1, wide: float = 1.5) -> torch.Tensor:
    """(n, D): nuisance parameters on both sides of ±1, factors around 1, all positive."""
    rng = np.random.default_rng(seed)
    factor = torch.from_numpy(rng.uniform(0.7, 1.4, (n, len(model.parameters))))
    alpha = torch.from_numpy(rng.normal(0.0, wide, (n, len(model.parameters))))
    return torch.where(model.start == 0, alpha, factor)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_modifier_gives_the_likelihood_of_pyhf(kind, codes, workspaces, pyhf_reference) -> None:
    spec = workspaces.small([workspaces.MODIFIERS[kind]])
    assert_same_likelihood_as_pyhf(spec, codes, pyhf_reference)


@pytest.mark.parametrize("codes", CODES)
def test_all_modifiers_together_give_the_likelihood_of_pyhf(codes, workspaces, pyhf_reference) -> None:
    assert_same_likelihood_as_pyhf(workspaces.everything(), codes, pyhf_reference)


@pytest.mark.parametrize("name", ["uncorrelated", "correlated"])
def test_models_of_pyhf_give_the_likelihood_of_pyhf(name, workspaces, pyhf_reference) -> None:
    assert_same_likelihood_as_pyhf(workspaces.simple_models()[name], CODES[0], pyhf_reference)


def assert_same_likelihood_as_pyhf(spec, codes, pyhf_reference) -> None:
    normsys, histosys = codes
    model = HistFactory(spec, normsys_code=normsys, histosys_code=histosys)
    reference = pyhf_reference(spec, model.index, normsys=normsys, histosys=histosys)
    config = reference.pdf.config
    start = [model.start.tolist()[i] for i in reference.order]
    assert config.suggested_init() == start
    bounds = [(model.parameters[i].lower, model.parameters[i].upper) for i in reference.order]
    assert [tuple(pair) for pair in config.suggested_bounds()] == bounds
    assert list(config.suggested_fixed()) == [model.parameters[i].fixed for i in reference.order]
    theta = random_points(model, POINTS)
    values = model.twice_nll(theta, model.observed)
    for point, value in zip(theta.numpy(), values.tolist(), strict=True):
        assert value == pytest.approx(reference.twice_nll(point), rel=1e-10)
        plain = plain_twice_nll(spec, point.tolist(), normsys_code=normsys, histosys_code=histosys)
        assert value == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("name", ["scale_factor_fit", "degenerate_fit"])
def test_the_benchmark_workspaces_give_the_likelihood_of_pyhf(name, shared_file, pyhf_reference) -> None:
    spec = json.loads(gzip.decompress(shared_file(f"peers/{name}.workspace.json.gz").read_bytes()))
    model = HistFactory(spec)
    reference = pyhf_reference(spec, model.index)
    theta = random_points(model, POINTS, wide=1.0)
    values = model.twice_nll(theta, model.observed)
    for point, value in zip(theta.numpy(), values.tolist(), strict=True):
        assert value == pytest.approx(reference.twice_nll(point), rel=1e-10)
    plain = plain_twice_nll(spec, theta[0].tolist())
    assert float(values[0]) == pytest.approx(plain, rel=1e-12)


def test_the_full_model_gives_the_likelihood_and_gradient_of_pyhf(random_world) -> None:
    config = FitConfig(free_flavours=("b",))
    layout = make_layout(random_world.templates, config)
    spec = build_workspace(random_world.templates, layout, config)
    model = HistFactory(spec)
    (theta,) = random_points(model, 1, seed=2, wide=0.5)
    theta = torch.where(model.fixed, model.start, theta)
    reference, slope = pyhf_twice_nll(spec, tuple(model.index), theta.numpy())
    theta.requires_grad_()
    value = model.twice_nll(theta, model.observed)
    assert value.item() == pytest.approx(reference, rel=1e-10)
    (gradient,) = torch.autograd.grad(value, theta)
    np.testing.assert_allclose(gradient.numpy() / 2, slope, rtol=1e-8, atol=1e-8)


def test_a_batch_is_the_same_as_its_points_one_by_one(workspaces) -> None:
    model = HistFactory(workspaces.everything())
    theta = random_points(model, 6).reshape(2, 3, -1)
    counts = torch.poisson(model.observed.expand(2, 3, -1), generator=torch.Generator().manual_seed(1))
    together = model.twice_nll(theta, counts, model.centre.expand(2, 3, -1))
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                together[i, j], model.twice_nll(theta[i, j], counts[i, j]), rtol=1e-13, atol=0
            )
    assert model.rates(theta).shape == (2, 3, len(model.cells))
    torch.testing.assert_close(model.rates(theta)[1, 2], model.rates(theta[1, 2]), rtol=1e-13, atol=0)


def test_a_measurement_is_chosen_by_name(workspaces, pyhf_reference) -> None:
    spec = workspaces.everything()
    other = {"name": "tight", "config": {"poi": "", "parameters": [dict(workspaces.LUMI, sigmas=[0.001])]}}
    spec["measurements"].append(other)
    model = HistFactory(spec, "tight")
    assert model.measurement == "tight"
    reference = pyhf_reference(spec, model.index, "tight")
    (point,) = random_points(model, 1)
    value = float(model.twice_nll(point, model.observed))
    assert value == pytest.approx(reference.twice_nll(point.numpy()), rel=1e-10)
    assert float(HistFactory(spec).twice_nll(point, model.observed)) != pytest.approx(value, rel=1e-3)
    with pytest.raises(FitError, match="no measurement 'loose'"):
        HistFactory(spec, "loose")


def test_the_polynomial_of_normsys_may_dip_below_zero_as_in_pyhf(workspaces, pyhf_reference) -> None:
    spec = workspaces.small([{"name": "x", "type": "normsys", "data": {"hi": 90.0, "lo": 0.9}}])
    model = HistFactory(spec)
    reference = pyhf_reference(spec, model.index)
    scales = []
    for alpha in np.linspace(-0.95, 0.95, 39):
        theta = model.start.clone()
        theta[model.index["x"]] = alpha
        scales.append(float(model.rates(theta)[0]))
        expected = reference.pdf.main_model.expected_data(theta.numpy()[reference.order])
        np.testing.assert_allclose(model.expected(theta).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert min(scales) < 0


@pytest.mark.parametrize(
    ("modifier", "message"),
    [
        ({"name": "x", "type": "bootstrap", "data": None}, "bootstrap"),
        ({"name": "yield", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}, "'yield' stands for"),
        ({"name": "x", "type": "normsys", "data": {"hi": 1.1, "lo": 0.0}}, "lo = 0"),
        ({"name": "x", "type": "staterror", "data": [1.0]}, "1 bins"),
        ({"name": "x", "type": "histosys", "data": {"hi_data": [1.0], "lo_data": [1.0]}}, "1 bins"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(modifier, message, workspaces) -> None:
    with pytest.raises(FitError, match=message) as caught:
        HistFactory(workspaces.small([modifier]))
    assert caught.value.where is not None
    assert "channel 'region', sample" in caught.value.where


def test_luminosity_without_settings_is_refused(workspaces) -> None:
    spec = workspaces.small([workspaces.MODIFIERS["lumi"]])
    spec["measurements"][0]["config"]["parameters"] = []
    with pytest.raises(FitError, match="no 'inits'"):
        HistFactory(spec)


def test_a_channel_without_observation_or_with_other_bins_is_named(workspaces) -> None:
    spec = workspaces.small([])
    spec["channels"][0]["samples"][1]["data"] = [8.0, 18.0]
    with pytest.raises(FitError, match="sample 'background' has 2 bins") as caught:
        HistFactory(spec)
    assert caught.value.where == "channel 'region'"
    spec["observations"] = []
    with pytest.raises(FitError, match="a channel has no observation") as caught:
        HistFactory(spec)
    assert caught.value.where == "channel 'region'"


def test_settings_of_the_wrong_length_are_refused(workspaces) -> None:
    spec = workspaces.small([workspaces.MODIFIERS["lumi"]])
    spec["measurements"][0]["config"]["parameters"][0]["sigmas"] = [0.03, 0.03]
    with pytest.raises(FitError, match="'sigmas' has 2 values") as caught:
        HistFactory(spec)
    assert caught.value.expected == "1"


def test_a_shift_of_nothing_is_a_constraint_and_no_more(workspaces, pyhf_reference) -> None:
    """A histosys with equal sides acts on no bin: its parameter stays, as in pyhf, with its unit Gaussian."""
    nothing = {"hi_data": [3.0, 10.0, 0.0], "lo_data": [3.0, 10.0, 0.0]}
    shift = workspaces.MODIFIERS["histosys"] | {"name": "y"}
    spec = workspaces.small([{"name": "x", "type": "histosys", "data": nothing}, shift])
    model = HistFactory(spec)
    theta = model.start.clone()
    theta[model.index["x"]] = 1.7
    assert torch.equal(model.expected(theta), model.expected(model.start))
    reference = pyhf_reference(spec, model.index)
    assert float(model.twice_nll(theta, model.observed)) == pytest.approx(
        reference.twice_nll(theta.numpy()), rel=1e-12
    )
