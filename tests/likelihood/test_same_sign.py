"""OS − SS inside the likelihood: closed forms, and the fit without background."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.errors import ConfigError
from selfcal.likelihood.pyhf_check import confirm_with_pyhf
from selfcal.likelihood.same_sign import subtract_same_sign
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import Templates, read_templates, templates_json
from selfcal.run.atomic import write_json

SHAPE = np.array([0.2, 0.1, 0.15, 0.25, 0.3])
SAME_SIGN = {"w_charm": "w_charm_ss"}
BACKGROUND = np.array([400.0, 0.0, 900.0, 30.0])
"""Jets of each flavour in the control sample."""


def with_background(templates: Templates, size: float) -> Templates:
    """The same region w_charm plus a background, and a control sample that is this background alone.

    The simulation of the region is that of signal and background together, ``size`` times the prior yields.
    """
    r = templates.regions.index("w_charm")
    yields = templates.composition * templates.data.sum(axis=(1, 2))[:, None]
    spectrum = templates.data[r].sum(axis=1) / templates.data[r].sum()

    def background(of: np.ndarray) -> np.ndarray:
        share = of[0] / of[0].sum(axis=2, keepdims=True)
        return BACKGROUND[:, None, None] * spectrum[:, None] * share

    observed = background(templates.calibrated).sum(axis=0)
    control = yields[r] + BACKGROUND
    fields: dict[str, np.ndarray] = {}
    for name in ("nominal", "calibrated"):
        content = getattr(templates, name)
        extra = background(content)
        fields[name] = np.concatenate([content, extra[None] * size])
        fields[name][r] = content[r] + extra * size
        fields[f"{name}_variance"] = fields[name].copy()
    data = np.concatenate([templates.data, observed[None]])
    data[r] = templates.data[r] + observed
    composition = np.concatenate([templates.composition, BACKGROUND[None] / BACKGROUND.sum()])
    composition[r] = control / control.sum()
    replicas = np.concatenate(
        [templates.replicas, templates.replicas[:, :1] * 0 + fields["calibrated"][-1]], 1
    )
    replicas[:, r] = templates.replicas[:, r] + fields["calibrated"][-1]
    relative = templates.composition_relative_uncertainty
    return replace(
        templates,
        regions=(*templates.regions, "w_charm_ss"),
        data=data,
        replicas=replicas,
        composition=composition,
        composition_relative_uncertainty=np.concatenate([relative, relative[:1]]),
        **fields,
    )


def test_the_free_shape_of_one_flavour_is_that_of_the_subtracted_counts(one_flavour) -> None:
    """ε = (n_OS − n_SS)/Σ(n_OS − n_SS), with the covariance of a difference of Poisson counts."""
    signal, background = 8000 * SHAPE, np.array([900.0, 1300.0, 250.0, 90.0, 40.0])
    one = one_flavour(signal, SHAPE)
    zeros = np.zeros((4, 1, 5))
    light = zeros.copy()
    light[2, 0] = 1e9 * background / background.sum()
    share = signal.sum() / (signal + background).sum()
    region = one.nominal[0] * share + light * (1 - share)
    content = np.stack([region, light])
    templates = replace(
        one,
        regions=("ttbar_emu", "control"),
        data=np.stack([signal + background, background])[:, None],
        replicas=np.stack([content, content]),
        composition=np.array([[share, 0, 1 - share, 0], [0, 0, 1, 0]]),
        composition_relative_uncertainty=np.full((2, 4), 0.2),
        **dict.fromkeys(("nominal", "nominal_variance", "calibrated", "calibrated_variance"), content),
    )
    config = FitConfig(free_flavours=("b",), same_sign={"ttbar_emu": "control"}, pt_shape_width=3.0)
    measured = measure(templates, config)
    slope = (np.eye(5) - SHAPE[:, None]) / signal.sum()
    covariance = slope @ np.diag(signal + 2 * background) @ slope.T
    found = {
        measured.factors.rows[row].bin: (measured.factors.value[i], measured.factors.covariance[i, i] ** 0.5)
        for i, row in enumerate(measured.factors.measured)
        if measured.factors.rows[row].bin is not None
    }
    for k in range(5):
        assert found[k][0] == pytest.approx(1.0, abs=1e-5)
        assert found[k][1] * SHAPE[k] == pytest.approx(covariance[k, k] ** 0.5, rel=2e-3)
    assert "ttbar_emu_pt0_same_sign" in measured.model.channels


@pytest.mark.parametrize("free_flavours", [("b",), ("b", "c")])
def test_it_equals_the_direct_fit_where_the_background_has_both_signs(asimov_world, free_flavours) -> None:
    direct = measure(asimov_world.templates, FitConfig(free_flavours=free_flavours))
    templates = with_background(asimov_world.templates, 10.0)
    config = FitConfig(free_flavours=free_flavours, same_sign=SAME_SIGN)
    subtracted = measure(templates, config)
    assert subtracted.layout.regions == direct.layout.regions
    np.testing.assert_allclose(subtracted.factors.value, direct.factors.value, rtol=1e-4)
    width, narrow = (np.sqrt(np.diag(m.factors.covariance)) for m in (subtracted, direct))
    assert (width > 0.999 * narrow).all()
    of_charm = [subtracted.factors.rows[i].flavour == "c" for i in subtracted.factors.measured]
    assert (width[of_charm] > 1.01 * narrow[of_charm]).any()
    confirm_with_pyhf(subtracted.workspace, subtracted.model, subtracted.result)


def test_a_flavour_of_the_background_alone_is_left_out_and_no_template_is_negative(asimov_world) -> None:
    templates = with_background(asimov_world.templates, 10.0)
    composition = templates.composition.copy()
    composition[-1, 2] *= 10
    found = subtract_same_sign(replace(templates, composition=composition), FitConfig(same_sign=SAME_SIGN))
    r = found.regions.index("w_charm")
    assert found.composition[r, 2] == 0
    assert (found.calibrated[r, 2] == 0).all()
    for part in (found.nominal, found.calibrated, found.replicas, found.calibrated_variance):
        assert (part >= 0).all()


def test_a_blinded_fit_gives_one(asimov_world) -> None:
    templates = with_background(asimov_world.templates, 10.0)
    config = FitConfig(free_flavours=("b",), same_sign=SAME_SIGN)
    values = measure(templates, config, blind=True).factors.value
    np.testing.assert_allclose(values, 1.0, atol=1e-3)


def test_templates_are_subtracted_once_and_survive_their_file(asimov_world, tmp_path) -> None:
    config = FitConfig(same_sign=SAME_SIGN)
    found = subtract_same_sign(with_background(asimov_world.templates, 10.0), config)
    write_json(tmp_path / "templates.json", templates_json(found))
    again = read_templates(tmp_path / "templates.json")
    np.testing.assert_array_equal(again.same_sign["w_charm"], found.same_sign["w_charm"])
    assert subtract_same_sign(again, config) is again


def test_a_missing_control_sample_is_refused(asimov_world) -> None:
    with pytest.raises(ConfigError, match="no region 'w_charm_ss'"):
        measure(asimov_world.templates, FitConfig(same_sign=SAME_SIGN))
