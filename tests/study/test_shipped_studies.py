"""The shipped studies on a few hundred jets, in one store: they run, and every check is judged.

What the numbers say needs the full size.
"""

from __future__ import annotations

import pytest

from selfcal.config.shipped import shipped_names
from selfcal.run.progress import SilentReporter
from selfcal.study.engine import plan_study, run_study
from selfcal.study.executors import in_process
from selfcal.study.points import load_study, study_points
from selfcal.study.tasks import Store

SMALL = (
    "closure",
    "map_families",
    "composition",
    "transfer",
    "gluon_splitting",
    "sbi",
    "generator",
    "statistics",
    "absorption",
    "devils_advocate",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


def test_every_study_can_be_planned(tmp_path):
    for name in shipped_names("studies"):
        study = load_study(name)
        planned = plan_study(study, Store(tmp_path), ("small",), write=False)
        assert len(set(planned.keys)) == len(study_points(study.config))
        assert planned.problems == (None,) * len(planned.keys)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_small_studies_run(folder, name):
    study, store = load_study(name), Store(folder / "store")
    planned = plan_study(study, store, ("small",))
    summary = run_study(study, folder / name, store, planned, in_process(SilentReporter()), lambda text: None)
    assert [row["error"] for row in summary["rows"]] == [None] * len(planned.keys)
    assert all(check["passed"] is not None or check["why"] for check in summary["checks"])
    assert any(check["found"] for check in summary["checks"])
