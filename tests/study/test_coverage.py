"""The coverage study on a run directory that holds nothing but a fit."""

from __future__ import annotations

import numpy as np
import pytest

from selfcal.config.fit import FitConfig
from selfcal.config.study import CoverageConfig
from selfcal.errors import DataError
from selfcal.likelihood.templates import Binning, Templates, read_templates, templates_json
from selfcal.run.atomic import read_json, write_json, write_text
from selfcal.study.coverage import run_coverage
from selfcal.study.points import load_study
from selfcal.study.tasks import additions_of


@pytest.fixture
def templates() -> Templates:
    """One region of b jets only."""
    shape = np.array([0.3, 0.3, 0.4])
    content = np.zeros((1, 4, 1, 3))
    content[0, 0, 0] = shape * 2e4
    return Templates(
        regions=("ttbar_emu",),
        binning=Binning((20.0, 250.0), (0.5, 1.5), (0.77, 0.6)),
        data=(shape * 5e3).reshape(1, 1, 3),
        nominal=content,
        nominal_variance=content.copy(),
        calibrated=content.copy(),
        calibrated_variance=content.copy(),
        replicas=np.stack([content, content]),
        variations={"stiff": content.copy()},
        composition=np.array([[1.0, 0.0, 0.0, 0.0]]),
        composition_relative_uncertainty=np.full((1, 4), 0.2),
    )


@pytest.fixture
def finished(tmp_path, templates):
    """Writes the files of a finished fit into a run directory."""

    def finish(assignments, directory):
        write_json(directory / "results" / "templates.json", templates_json(templates))
        write_json(directory / "results" / "scale_factors.json", {"blinded": False})
        write_text(directory / "config.resolved.yaml", "fit: {free_flavours: [b]}\n")

    return finish


def test_templates_come_back_as_they_were(tmp_path, templates) -> None:
    write_json(tmp_path / "templates.json", templates_json(templates))
    back = read_templates(tmp_path / "templates.json")
    assert (back.regions, back.binning) == (templates.regions, templates.binning)
    for name in ("data", "nominal", "calibrated_variance", "replicas", "composition"):
        np.testing.assert_array_equal(getattr(back, name), getattr(templates, name))
    np.testing.assert_array_equal(back.variations["stiff"], templates.variations["stiff"])


def test_damaged_templates_are_refused(tmp_path) -> None:
    write_json(tmp_path / "templates.json", {"schema_version": 1, "binning": {}})
    with pytest.raises(DataError, match="not the templates of a fit"):
        read_templates(tmp_path / "templates.json")


def test_a_study_with_coverage_asks_for_it_after_every_run() -> None:
    study = load_study("coverage").config
    assert additions_of(study) == {"coverage": {"toys": 1000, "seed": 1}}
    assert additions_of(study.model_copy(update={"coverage": None})) == {}


def test_toys_are_not_drawn_again_unless_something_changed(tmp_path, finished) -> None:
    finished((), tmp_path)
    path = run_coverage(tmp_path, CoverageConfig(toys=10))
    stamp, first = path.stat().st_mtime_ns, read_json(path)
    assert run_coverage(tmp_path, CoverageConfig(toys=10)).stat().st_mtime_ns == stamp
    other = read_json(run_coverage(tmp_path, CoverageConfig(toys=10, seed=2)))
    assert other["made_of"] != first["made_of"]
    assert other["rows"] != first["rows"]
    assert read_json(run_coverage(tmp_path, CoverageConfig(toys=10))) == first


def test_a_run_without_a_fit_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match="no finished fit"):
        run_coverage(tmp_path / "nothing", CoverageConfig())


def test_the_shipped_study_is_the_thousand_toys_of_the_acceptance_figures() -> None:
    study = load_study("coverage")
    assert study.config.coverage == CoverageConfig(toys=1000)
    assert FitConfig().goodness_toys > 0
