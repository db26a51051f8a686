"""Smoothing and pruning of systematic shifts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfcal.config.fit import FitConfig
from selfcal.likelihood.histfactory import Cell
from selfcal.likelihood.interpolation import Scales
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.shifts import SHIFT_MAX, pruned, smoothed
from selfcal.likelihood.stage import measure
from selfcal.likelihood.workspace import REACH, _split, build_workspace, treated_shifts

CONTENT = np.array([[[50.0, 30.0, 12.0, 5.0, 3.0, 20.0]]])
MIDDLE = (np.cumsum(CONTENT) - CONTENT.ravel() / 2) / CONTENT.sum()


def test_a_polynomial_of_the_degree_is_left_as_it_is() -> None:
    shift = (0.03 - 0.2 * MIDDLE + 0.15 * MIDDLE**2)[None, None]
    np.testing.assert_allclose(smoothed(shift, CONTENT, 2), shift, atol=1e-12)
    assert np.abs(smoothed(shift, CONTENT, 1) - shift).max() > 1e-3


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_change_of_the_yield_is_kept_and_noise_shrinks(degree) -> None:
    random = np.random.default_rng(3)
    before, after = [], []
    for _ in range(200):
        noise = random.normal(size=CONTENT.shape) / np.sqrt(CONTENT)
        smooth = smoothed(noise, CONTENT, degree)
        assert (CONTENT * smooth).sum() == pytest.approx((CONTENT * noise).sum())
        before.append((CONTENT * noise**2).sum())
        after.append((CONTENT * smooth**2).sum())
    # Of 6 unit Gaussians the projection on degree + 1 functions leaves that many.
    assert np.mean(before) == pytest.approx(6, abs=0.9)
    assert np.mean(after) == pytest.approx(degree + 1, abs=0.5)


def test_empty_bins_and_channels_with_too_few_bins_stay() -> None:
    content = np.array([[[10.0, 0.0, 5.0]], [[10.0, 0.0, 0.0]]])
    shift = np.array([[[0.1, 0.7, -0.2]], [[0.3, 0.1, 0.2]]])
    found = smoothed(shift, content, 0)
    np.testing.assert_allclose(found[0, 0], [0.0, 0.7, 0.0], atol=1e-12)
    np.testing.assert_array_equal(found[1], shift[1])


def test_only_channels_without_any_notable_shift_are_pruned() -> None:
    shift = np.array([[[0.001, -0.002], [0.001, 0.2]], [[0.0, 0.0], [-0.004, 0.0]]])
    kept, channels, largest = pruned(shift, 0.005)
    assert (channels, largest) == (2, 0.004)
    np.testing.assert_array_equal(kept[0, 1], shift[0, 1])
    assert not kept[0, 0].any()
    assert not kept[1].any()
    np.testing.assert_array_equal(pruned(shift, 0.0)[0], shift)


def test_pruning_is_reported_and_hardly_changes_the_result(small_world) -> None:
    templates = small_world.templates
    varied = templates.calibrated * (1 + 2e-4 * np.linspace(-1, 1, 5))
    templates = replace(templates, variations={"stiff": varied})
    configs = [FitConfig(), FitConfig(prune_below=1e-3)]
    layout = make_layout(templates, configs[0])
    names = [
        {m["name"] for c in build_workspace(templates, layout, config)["channels"] for s in c["samples"]
         for m in s["modifiers"]}
        for config in configs
    ]  # fmt: skip
    gone = names[0] - names[1]
    assert gone == {f"map_model_stiff_{flavour}" for flavour in ("b", "c", "light", "tau")}
    report = treated_shifts(templates, layout, configs[1])[2]
    assert gone <= set(report["pruned"])
    assert all(entry["largest"] < 1e-3 for entry in report["pruned"].values())
    full, fewer = (measure(templates, config).factors for config in configs)
    total = np.sqrt(np.diag(full.covariance))
    assert np.abs((full.value - fewer.value) / total).max() < 0.02
    np.testing.assert_allclose(np.sqrt(np.diag(fewer.covariance)), total, rtol=0.01)


def test_smoothing_leaves_bootstrap_modes_alone_and_is_reported(small_world) -> None:
    random = np.random.default_rng(1)
    templates = small_world.templates
    varied = templates.calibrated * (1 + 0.05 * random.normal(size=templates.calibrated.shape))
    templates = replace(templates, variations={"stiff": varied})
    layout = make_layout(templates, FitConfig())
    plain, smooth = (
        treated_shifts(templates, layout, config) for config in (FitConfig(), FitConfig(smoothing_degree=1))
    )
    for own, other in zip(plain[0], smooth[0], strict=True):
        for (name, before), (_, after) in zip(own, other, strict=True):
            if name.startswith("map_mode_"):
                np.testing.assert_array_equal(before, after)
            if name.startswith("map_model_"):
                assert smooth[2]["largest_change_by_smoothing"][name] == pytest.approx(
                    np.abs(after - before).max()
                )
                assert np.abs(after - before).max() > 1e-3


def test_no_shift_of_a_flavour_empties_a_bin_or_leaves_the_fit_without_minimum(make_world) -> None:
    """Bins with no data and replicas that differ a lot: shifts together go ``REACH`` sigma downwards."""
    templates = make_world(5, map_width=0.8, data_factor=0.2).templates
    measured = measure(templates, FitConfig())
    model = measured.model
    assert measured.result.certificate["converged"]
    kinds = {"normsys": 0, "histosys": 0}
    for channel in measured.workspace["channels"]:
        for sample in channel["samples"]:
            for modifier in sample["modifiers"]:
                if modifier["name"].startswith("map_mode_"):
                    kinds[modifier["type"]] += 1
    assert min(kinds.values()) > 10
    for flavour in measured.layout.flavours:
        names = [p.name for p in model.parameters]
        own = [j for j, name in enumerate(names) if name.startswith(f"map_mode_{flavour}_")]
        slopes = torch.autograd.functional.jacobian(model.expected, model.start)[:, own]
        for downwards in -slopes[slopes.norm(dim=1) > 0]:
            theta = model.start.clone()
            theta[own] = REACH * downwards / downwards.norm()
            assert bool((model.expected(theta) > 0).all())


@pytest.mark.parametrize(("bin_", "linear"), [(0, True), (4, False)])
def test_shifts_add_up_unless_they_could_empty_the_bin(asimov_world, bin_, linear) -> None:
    """Of 6 % of tt's first bin b jets move by half; of the last bin they are nearly all."""
    templates = asimov_world.templates
    shape = np.ones(5)
    shape[bin_] = 1.5
    config = FitConfig(extrapolation_fraction=0.0)
    measured = measure(replace(templates, variations={"other": templates.calibrated * shape}), config)
    model, j = measured.model, measured.model.index["map_model_other_b"]
    cell = model.cell_index[Cell("ttbar_emu_pt0", f"b_bin{bin_}", bin_)]
    for alpha in (-2.0, -0.4, 0.7, 1.0, 3.0):
        theta = model.start.clone()
        theta[j] = alpha
        ratio = float(model.rates(theta)[cell] / model.rates(model.start)[cell])
        if linear:
            assert ratio == pytest.approx(1 + 0.5 * alpha, rel=1e-12, abs=1e-12)
        else:  # hi = e^s, lo = e^−s: pyhf's code 4 is then e^{sα} to better than a permille of the shift
            assert np.log(ratio) == pytest.approx(0.5 * alpha, rel=1e-3)


def test_the_largest_shift_is_a_positive_and_monotonic_factor_and_three_times_as_much_is_not() -> None:
    for size, good in ((SHIFT_MAX, True), (SHIFT_MAX + np.log(3.1), False)):
        high, low = (torch.tensor([np.exp(sign * size)], dtype=torch.float64) for sign in (1, -1))
        factor = Scales(high, low, "code4").value(torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None])[
            :, 0
        ]
        assert bool(factor.min() > 0) is good
        assert bool((factor.diff() >= 0).all()) is good


def test_a_shift_by_pt_is_cut_into_parts_that_add_up_to_it() -> None:
    shift = np.random.default_rng(1).normal(size=(2, 3, 5))
    assert _split("map", shift, False) == [("map", shift)]
    parts = _split("map", shift, True)
    assert [name for name, _ in parts] == ["map_0", "map_1", "map_2"]
    for p, (_, part) in enumerate(parts):
        assert np.array_equal(part[:, p], shift[:, p])
        assert not np.delete(part, p, axis=1).any()
