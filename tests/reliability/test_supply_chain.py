"""What selfcal is made of, and what its files cannot make it do."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import selfcal

ROOT = Path(__file__).parents[2]
PACKAGE = Path(selfcal.__file__).parent
DANGEROUS = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.save",
    "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system",
}  # fmt: skip


def dotted_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def used(source: str) -> set[str]:
    """Names of everything that a module imports or calls."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(dotted_name(node.func))
    return found


@pytest.mark.fault(10, "no pickle, eval or unsafe YAML anywhere in the program")
def test_nothing_dangerous_is_called(attempts) -> None:
    assert used("import yaml\nyaml.load(x)\neval('1')") >= {"yaml.load", "eval"}
    for path in sorted(PACKAGE.rglob("*.py")):
        with attempts(path.relative_to(PACKAGE)):
            assert not used(path.read_text(encoding="utf-8")) & DANGEROUS


def test_pinned_packages() -> None:
    """lightning is not used, torch is new enough, and what is required is pinned to one version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[><=\[ ]", one)[0].lower() for one in project["dependencies"]}
    assert "torch>=2.10" in project["dependencies"]
    pinned = dict(
        line.partition("==")[::2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    names = {name.lower().replace("_", "-") for name in pinned}
    assert not {one for one in names if "lightning" in one}
    assert required - names - {"torch"} == set()
