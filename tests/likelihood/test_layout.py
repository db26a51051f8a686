"""What a fit is about: regions, flavours and bins with data; what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.errors import ConfigError, DataError
from selfcal.likelihood.layout import make_layout

FREE_B = FitConfig(free_flavours=("b",))


def test_no_data_at_all_is_refused(random_world) -> None:
    empty = np.zeros_like(random_world.templates.data)
    with pytest.raises(DataError, match="no region has data in the measure fold"):
        make_layout(replace(random_world.templates, data=empty), FREE_B)


@pytest.mark.parametrize("name", ["replicas", "composition_relative_uncertainty"])
def test_undefined_shifts_are_counted_and_named(name, random_world) -> None:
    broken = getattr(random_world.templates, name).copy()
    broken.flat[:3] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match=rf"templates.{name} holds 3 infinite or undefined values") as caught:
        make_layout(replace(random_world.templates, **{name: broken}), FREE_B)
    assert caught.value.expected == "finite numbers"


def test_a_flavour_needs_a_residual_width(random_world) -> None:
    config = FREE_B.model_copy(update={"residual_width": {"b": 0.1, "c": 0.1, "light": 0.1}})
    with pytest.raises(ConfigError, match="no residual width for flavour 'tau'") as caught:
        make_layout(random_world.templates, config)
    assert caught.value.where == "fit.residual_width"


def test_a_region_without_a_flavour_takes_the_shape_of_all_others(random_world) -> None:
    """The shape of a flavour that a region's simulation does not hold is that of the sum over regions."""
    calibrated = random_world.templates.calibrated.copy()
    calibrated[0, 3] = 0.0
    layout = make_layout(replace(random_world.templates, calibrated=calibrated), FREE_B)
    others = calibrated[:, 3].sum(axis=0)
    filled = others > 10
    assert layout.shape[0, 3][filled] == pytest.approx((others / others.sum())[filled], rel=0.05)
    assert layout.shape[0, 3].sum() == pytest.approx(1.0)


def test_a_flavour_that_no_region_simulates_has_no_content(random_world) -> None:
    calibrated = random_world.templates.calibrated.copy()
    calibrated[:, 3] = 0.0
    layout = make_layout(replace(random_world.templates, calibrated=calibrated), FREE_B)
    assert not layout.shape[:, 3].any()
    assert not layout.relative_error[:, 3].any()


def test_templates_are_normalised_and_their_empty_bins_filled_bin_by_bin(random_world) -> None:
    """An empty bin holds a tenth of a simulated jet; its error is that of one jet, at most itself."""
    templates = random_world.templates
    calibrated, variance = templates.calibrated.copy(), templates.calibrated_variance.copy()
    calibrated[:, :, :, 1] = variance[:, :, :, 1] = 0.0
    calibrated[1, 2, 0, 2], variance[1, 2, 0, 2] = 1e-9, 1.0
    changed = replace(templates, calibrated=calibrated, calibrated_variance=variance)
    layout = make_layout(changed, FREE_B)
    for r, f in np.ndindex(calibrated.shape[:2]):
        content, squares = calibrated[r, f], variance[r, f]
        jet = squares.sum() / content.sum()
        filled, relative = np.zeros_like(content), np.zeros_like(content)
        for place in np.ndindex(content.shape):
            filled[place] = max(content[place], 0.1 * jet)
            error = squares[place] ** 0.5 if content[place] > 0 else jet
            relative[place] = min(error / filled[place], 1.0)
        assert layout.active[r].all()
        assert layout.shape[r, f] == pytest.approx(filled / filled.sum(), rel=1e-12)
        assert layout.relative_error[r, f] == pytest.approx(relative, rel=1e-12)


def test_a_reference_region_that_is_not_there_is_the_one_with_most_jets(random_world) -> None:
    regions = {"b": "ttbar_emu", "c": "elsewhere", "light": "elsewhere", "tau": "elsewhere"}
    config = FREE_B.model_copy(update={"reference_regions": regions})
    layout = make_layout(random_world.templates, config)
    names = random_world.templates.regions
    assert layout.reference[0] == names.index("ttbar_emu")
    assert layout.reference[1:].tolist() == layout.yields[:, 1:].argmax(axis=0).tolist()
    assert layout.own_region.tolist() == [True, False, False, False]
    assert [layout.status(f, 0) for f in range(4)] == ["measured", *["extrapolated"] * 3]
