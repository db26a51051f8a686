"""Full pseudo-experiments of the demonstration: quoted uncertainties cover, and wrong ones are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfcal.config.study import PseudoExperimentsConfig
from selfcal.errors import DataError
from selfcal.run.atomic import read_json
from selfcal.study.full_coverage import full_coverage
from selfcal.study.pseudo_stage import FOLDER, finished_run, run_pseudo_experiments

DEMO = Path(__file__).parents[2] / "runs" / "demo"
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def experiments() -> list[dict[str, Any]]:
    """200 experiments; those that an earlier call has done are taken as they are."""
    try:
        finished_run(DEMO)
    except DataError:
        pytest.skip("no finished demonstration to make pseudo-experiments of: 'make demo' makes it")
    table = read_json(run_pseudo_experiments(DEMO, PseudoExperimentsConfig()))
    folder = DEMO / FOLDER / table["made_of"].split()[0]
    found = [read_json(path) for path in sorted(folder.glob("experiment_*.json"))]
    assert len(found) >= 200
    return found


def test_the_uncertainties_cover_on_average_and_every_fit_converges(experiments) -> None:
    passed = full_coverage(experiments)["summary"]["passed_by"]
    assert passed["average"]
    assert passed["detector"]
    assert passed["calibration"]
    assert passed["failures"]


def test_every_scale_factor_covers(experiments) -> None:
    summary = full_coverage(experiments)["summary"]
    assert summary["passed_by"]["scale_factors"], f"{summary['flagged_count']} of {summary['judged']} do not"


def test_halved_uncertainties_are_flagged(experiments) -> None:
    halved = [
        {**one, "scale_factors": [{**row, "total": row["total"] / 2} for row in one["scale_factors"]]}
        for one in experiments
        if one["error"] is None
    ]
    summary = full_coverage(halved)["summary"]
    assert not summary["passed_by"]["average"]
    assert summary["flagged_count"] > 0.9 * summary["judged"]
