"""The detector's posterior in the fit: fewer modes, the same uncertainty, one parameter for all flavours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.errors import DataError
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.shifts import independent_modes
from selfcal.likelihood.stage import measure
from selfcal.likelihood.templates import read_templates, templates_json
from selfcal.likelihood.workspace import build_workspace, template_shifts
from selfcal.run.atomic import write_json


def test_modes_have_the_covariance_of_the_templates():
    generator = np.random.default_rng(1)
    nominal = generator.uniform(50, 100, (2, 4, 1, 3))
    varied = nominal * (1 + 0.02 * generator.normal(size=(6, *nominal.shape)))
    modes = independent_modes(varied, nominal, 1.0)
    covariance = [np.tensordot(x - nominal, x - nominal, axes=(0, 0)) for x in (varied, modes)]
    assert np.allclose(*covariance)
    fewer = independent_modes(varied, nominal, 0.8)
    assert len(fewer) < len(modes)
    kept = (((fewer - nominal) ** 2 / nominal).sum()) / (((varied - nominal) ** 2 / nominal).sum())
    assert 0.8 <= kept < 1
    assert len(independent_modes(np.stack([nominal, nominal]), nominal, 0.99)) == 0


def test_the_detector_is_one_parameter_of_all_flavours_and_regions(asimov_world):
    templates, config = asimov_world.templates, FitConfig()
    moved = templates.calibrated.copy()
    moved[..., -1] *= 1.04
    moved[..., 0] -= moved.sum(axis=-1) - templates.calibrated.sum(axis=-1)
    varied = replace(templates, detector={"0": moved})
    workspace = build_workspace(varied, make_layout(varied, config), config)
    users = {
        (channel["name"], sample["name"].partition("_")[0])
        for channel in workspace["channels"]
        for sample in channel["samples"]
        if any(m["name"] == "detector_0" for m in sample["modifiers"])
    }
    assert len({flavour for _, flavour in users}) > 1
    assert len({channel for channel, _ in users}) > 1
    factors = measure(varied, config).factors
    assert np.diag(factors.group_covariance["detector"]).max() > 0
    plain = measure(templates, config).factors
    assert np.diag(plain.group_covariance["detector"]).max() == 0


def test_files_bring_the_detector_back(asimov_world, tmp_path):
    templates = asimov_world.templates
    with_detector = replace(templates, corrected=templates.nominal + 1, detector={"0": templates.nominal + 2})
    for one in (templates, with_detector):
        write_json(tmp_path / "templates.json", templates_json(one))
        again = read_templates(tmp_path / "templates.json")
        assert np.array_equal(again.before_map, one.before_map)
        assert again.detector.keys() == one.detector.keys()
        assert all(np.array_equal(again.detector[name], one.detector[name]) for name in one.detector)


def test_extrapolation_follows_the_map_and_not_the_detector(asimov_world):
    """A shift that the detector explains is the same in all regions: only the rest is extrapolated."""
    templates, config = asimov_world.templates, FitConfig()
    inferred = replace(templates, corrected=templates.calibrated)
    names = []
    for one in (templates, inferred):
        workspace = build_workspace(one, make_layout(one, config), config)
        names.append(
            {
                m["name"]
                for channel in workspace["channels"]
                for sample in channel["samples"]
                for m in sample["modifiers"]
                if m["name"].startswith("extrapolation_")
            }
        )
    assert names[0]
    assert not names[1]


def test_templates_of_another_version_are_refused(asimov_world, tmp_path):
    content = templates_json(asimov_world.templates)
    for changed, message in (
        (content | {"schema_version": 2}, "another schema version"),
        ({key: value for key, value in content.items() if key != "regions"}, "'regions'"),
    ):
        write_json(tmp_path / "templates.json", changed)
        with pytest.raises(DataError, match=f"not the templates of a fit: {message}") as caught:
            read_templates(tmp_path / "templates.json")
        assert caught.value.fix == "run 'selfcal fit' again"


def test_every_named_shift_is_a_ratio_of_templates_bin_by_bin(random_world):
    """varied/calibrated - 1: of the detector for all flavours, of another map, of the map elsewhere.

    Where the shape of a flavour is free nothing of it moves but what carries the map to another region.
    """
    random = np.random.default_rng(3)
    plain = random_world.templates
    other, moved, corrected = (
        plain.calibrated * random.uniform(0.9, 1.1, plain.calibrated.shape) for _ in range(3)
    )
    templates = replace(plain, variations={"stiff": other}, detector={"0": moved}, corrected=corrected)
    config = FitConfig(free_flavours=("b",), extrapolation_fraction=0.3)
    layout = make_layout(templates, config)
    shifts, rests = template_shifts(templates, layout, config)
    assert layout.free[0].all()
    for f, flavour in enumerate(layout.flavours):
        found = dict(shifts[f])
        names = {name for name in found if not name.startswith(("map_mode_", "residual_slide_"))}
        elsewhere = {region for r, region in enumerate(layout.regions) if r != layout.reference[f]}
        extrapolated = {f"extrapolation_{region}_{flavour}" for region in elsewhere}
        models = set() if flavour == "b" else {f"map_model_stiff_{flavour}"}
        assert names == {"detector_0", *models, *extrapolated}
        for r, p, k in np.ndindex(plain.data.shape):
            content = templates.calibrated[r, f, p, k]
            for name, varied in (("detector_0", moved), *((model, other) for model in models)):
                expected = 0.0 if flavour == "b" or content == 0 else varied[r, f, p, k] / content - 1
                assert found[name][r, p, k] == pytest.approx(expected, rel=1e-12, abs=1e-15)
            for region in elsewhere:
                expected = 0.0
                if layout.regions[r] == region and content > 0:
                    expected = 0.3 * (corrected[r, f, p, k] / content - 1)
                assert found[f"extrapolation_{region}_{flavour}"][r, p, k] == pytest.approx(
                    expected, rel=1e-12
                )
        assert (rests[f].max() > 0) == (flavour != "b")
