"""Rules about the code itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import selfcal

PACKAGE = Path(selfcal.__file__).parent
TRUTH_MODULE = "selfcal.data.closure_truth"
MAY_IMPORT = {
    TRUTH_MODULE: {"selfcal/study/truth.py"},
    "selfcal.study.truth": {
        "selfcal/study/closure.py",
        "selfcal/study/closure_rows.py",
        "selfcal/study/evaluation.py",
    },
    "selfcal.study.evaluation": {"selfcal/cli/execution.py"},
    "selfcal.study.closure_rows": {"selfcal/study/closure.py", "selfcal/study/evaluation.py"},
    "selfcal.study.closure": {"selfcal/study/fit_stage.py", "selfcal/study/detector_stage.py"},
    "selfcal.study.fit_stage": set(),
    "selfcal.study.detector_stage": set(),
}
"""The way from truth to the outside, and who may take each step; the pipeline names its end as text."""
TRUTH_NAMERS = {"selfcal/data/closure_truth.py", "selfcal/data/hdf5.py"}
"""Modules that may spell the name of the truth dataset: its reader, and the writer of files."""
TOO_VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def imported(path: Path) -> set[str]:
    """Every module and every name of a module that a file imports, absolute."""
    found: set[str] = set()
    package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_the_import_walk_sees_every_form(tmp_path, monkeypatch):
    folder = tmp_path / "selfcal" / "data"
    folder.mkdir(parents=True)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "selfcal")
    forms = [
        "import selfcal.data.closure_truth",
        "from selfcal.data import closure_truth",
        "from selfcal.data.closure_truth import read_closure_truth",
        "from . import closure_truth",
        "from .closure_truth import read_closure_truth",
        "from ..data import closure_truth as t",
        "def f():\n    from selfcal.data.closure_truth import read_closure_truth",
    ]
    for form in forms:
        path = folder / "x.py"
        path.write_text(form)
        assert TRUTH_MODULE in imported(path), form


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_the_closure_check_reads_the_truth_of_pseudo_data(path):
    for module, importers in MAY_IMPORT.items():
        if name_of(path) not in importers:
            assert module not in imported(path)
    if name_of(path) != "selfcal/data/closure_truth.py":
        assert "selfcal.data.hdf5.TRUTH_DATASET" not in imported(path)
    if name_of(path) not in TRUTH_NAMERS:
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # Messages and docstrings may speak of it; a lone name would be a way around the reader.
        assert "closure_truth" not in strings
        assert TRUTH_MODULE not in strings


MAY_USE = {
    "errors": set(),
    "config": {"errors"},
    "run": {"config", "errors"},
    "data": {"run", "config", "errors"},
    "penalty": {"errors"},
    "generate": {"data", "run", "config", "errors"},
    "tagger": {"data", "run", "config", "errors"},
    "transport": {"penalty", "data", "run", "config", "errors"},
    "sbi": {"generate", "transport", "data", "run", "config", "errors"},
    "training": {"sbi", "tagger", "transport", "penalty", "data", "run", "config", "errors"},
    "efficiency": {"tagger", "transport", "data", "run", "config", "errors"},
    "likelihood": {"tagger", "transport", "data", "run", "config", "errors"},
    "export": {"likelihood", "efficiency", "tagger", "transport", "data", "run", "config", "errors"},
    "report": {"sbi", "data", "run", "config", "errors"},
    "study": {"likelihood", "training", "sbi", "tagger", "transport", "data", "run", "config", "errors"},
}
"""The folders in the order in which data flow, and what each may import; ``cli`` may import all of them."""


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_table_of_the_architecture_says_what_may_be_imported():
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)/` \|.*\|([^|]*)\|$", text, re.M)
    said = {folder: set(re.findall(r"`(\w+)`", imports)) for folder, imports in table}
    assert said.pop("cli") == set()
    assert said == {name: allowed - {"errors"} for name, allowed in MAY_USE.items() if name != "errors"}


def test_arrows_run_one_way():
    """Down the table of ARCHITECTURE.md, also where an import stands inside of a function."""
    wrong = []
    for path in modules():
        folder = path.relative_to(PACKAGE).with_suffix("").parts[0]
        used = {folder_of(name) for name in imported(path) if name.startswith("selfcal.")} - {"__version__"}
        wrong += [
            (name_of(path), other)
            for other in used - {folder} - MAY_USE.get(folder, {*used})
            if folder != "cli"
        ]
    assert wrong == []


def test_no_folder_can_reach_itself():
    """Each may import only what stands before it; what is allowed is used somewhere."""
    names = list(MAY_USE)
    for number, (folder, allowed) in enumerate(MAY_USE.items()):
        assert allowed <= set(names[:number]), folder
        paths = [p for p in modules() if p.relative_to(PACKAGE).with_suffix("").parts[0] == folder]
        assert paths, folder
        assert allowed <= {folder_of(name) for path in paths for name in imported(path)}, folder
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *MAY_USE,
        "cli",
    } - {"errors"}


def test_no_module_can_reach_itself():
    known = {name_of(path).removesuffix(".py").replace("/", "."): path for path in modules()}
    arrows = {name: imported(path) & set(known) - {name} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in sorted(arrows[name]):
                walk(other, (*above, name))
            done.add(name)

    for name in sorted(known):
        walk(name, ())


def test_modules_are_named_after_what_they_hold():
    names = {part for path in modules() for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & TOO_VAGUE


def test_every_module_says_what_it_is():
    silent = [name_of(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_list_is_cut_to_the_length_of_another():
    """Lists that are walked side by side and differ in length are a mistake, not a reason to stop early."""
    calls = [node for path in modules() for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip"]  # fmt: skip
    assert len(calls) > 100
    cutting = [ast.unparse(call) for call in calls if "strict=True" not in ast.unparse(call)]
    assert cutting == []


MUTABLE = {
    "selfcal/config/document.py", "selfcal/data/guards.py", "selfcal/export/combine.py",
    "selfcal/report/sections.py", "selfcal/run/progress.py", "selfcal/sbi/jet_summaries.py",
    "selfcal/sbi/smearing.py", "selfcal/training/checkpoints.py",
}  # fmt: skip
"""Modules with a dataclass that something is written into after it was made."""


def test_dataclasses_are_frozen():
    """Results that pass from hand to hand do not change on the way."""
    found = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for decorator in map(ast.unparse, node.decorator_list):
                    if decorator.partition("(")[0] == "dataclass" and "frozen=True" not in decorator:
                        found[node.name] = name_of(path)
    assert set(found.values()) == MUTABLE
    assert len(found) == 11


def public_functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    found = [node for node in body if isinstance(node, ast.FunctionDef)]
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += public_functions(node.body)
    return [node for node in found if not node.name.startswith("_")]


def test_what_a_function_raises_stands_in_its_docstring():
    """Of our errors; the verbs of the command line, whose docstrings are their help, are left out."""
    silent, speaking = [], 0
    for path in set(modules()) - {PACKAGE / "cli" / "app.py"}:
        for function in public_functions(ast.parse(path.read_text()).body):
            text = ast.get_docstring(function) or ""
            within = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef)][1:]
            for node in set(ast.walk(function)) - {below for one in within for below in ast.walk(one)}:
                raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
                name = raised.partition("(")[0]
                if name in {"ConfigError", "DataError", "FitError", "Interrupted"}:
                    speaking += 1
                    if name not in text:
                        silent.append(f"{name_of(path)}:{function.name} {name}")
    assert sorted(silent) == []
    assert speaking > 200


def test_long_lists_of_arguments_are_named():
    """From eight on: two of one type in the wrong order look right, also to the type checker."""
    calls = [
        f"{name_of(path)}:{node.lineno} {ast.unparse(node.func)}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and len(node.args) >= 8 and "*" not in ast.unparse(node)
    ]
    assert calls == []
