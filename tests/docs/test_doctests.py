"""Examples in docstrings give what they say, and the code blocks of the pages run."""

from __future__ import annotations

import doctest
import importlib
import re
import warnings
from pathlib import Path

import pytest

import selfcal
from selfcal.config.fit import ExportConfig
from selfcal.export.contract import Results
from selfcal.export.correctionlib_export import export_correctionlib
from selfcal.export.rows import ScaleFactorRows
from selfcal.run.atomic import write_json
from tests.export.conftest import make_scale_factors, make_workspace

ROOT = Path(selfcal.__file__).parent
DOCS = ROOT.parent / "docs"
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


def blocks(page: str, language: str = "python") -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.fixture(scope="module")
def analysis(tmp_path_factory) -> Path:
    """A directory with the results of a run in ``runs/demo``, as an analysis has it."""
    folder = tmp_path_factory.mktemp("analysis")
    results = folder / "runs" / "demo" / "results"
    content, workspace = make_scale_factors(), make_workspace()
    write_json(results / "scale_factors.json", content)
    write_json(results / "workspace.json", workspace)
    export_correctionlib(Results(results, ScaleFactorRows(content), workspace, ExportConfig()))
    return folder


@pytest.mark.parametrize("number", range(len(blocks("howto/outputs.md"))))
def test_the_code_on_the_page_of_outputs_runs(analysis, monkeypatch, number, capsys):
    code = blocks("howto/outputs.md")[number]
    if "import cabinetry" in code:
        pytest.importorskip("cabinetry", reason="needs the extra 'cabinetry'", exc_type=ImportError)
    monkeypatch.chdir(analysis)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of cabinetry's and pyhf's own imports
        exec(compile(code, "outputs.md", "exec"), names)
    if "values" in names:
        rows = make_scale_factors()["rows"]
        wanted = [
            row["value"]
            for row in rows
            if (row["flavour"], row["working_point"], row["pt_gev"][0]) == ("b", 0.77, 20.0)
        ]
        assert list(names["measured"]) == [True, True, False]
        assert list(names["values"]) == pytest.approx(wanted * 2)
    elif "log_density" in names:
        assert names["log_density"] < 0
    elif "b_weight" in names:
        weight_of_events(names)
    elif "prediction" in names:
        channels = sorted(channel["name"] for channel in make_workspace()["channels"])
        assert names["model"].config.channels == channels
    else:
        assert "b 0.77 [20.0, 40.0]" in capsys.readouterr().out


def weight_of_events(names: dict[str, object]) -> None:
    """Two events, the second with one jet beyond the range: the product over the jets that have a factor."""
    import awkward as ak
    import correctionlib

    corrections = correctionlib.CorrectionSet.from_file("runs/demo/results/correctionlib.json")
    jets = ak.zip(
        {
            "hadronFlavour": [[5, 0], [4, 5]],
            "eta": [[0.1, -1.0], [1.0, 0.2]],
            "pt": [[30.0, 50.0], [70.0, 900.0]],
            "discriminant": [[9.0, -3.0], [1.0, 2.0]],
        }
    )
    found = names["b_weight"](jets, corrections)

    def factor(flavour: int, eta: float, pt: float, discriminant: float) -> float:
        return corrections["SelfCal_shape"].evaluate("central", flavour, eta, pt, discriminant)

    both = factor(5, 0.1, 30.0, 9.0) * factor(0, 1.0, 50.0, -3.0)
    assert ak.to_list(found) == pytest.approx([both, factor(4, 1.0, 70.0, 1.0)])
